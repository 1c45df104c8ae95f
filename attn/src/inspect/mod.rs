//! `attn inspect`: which token attends to which, and what the model would say next: on the terminal, as a page, a picture
//! or numbers.

mod page;
mod picture;
mod units;
mod view;
mod weights;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_attention::generate::Pipeline;
use candle_attention::inspect::{AttentionMap, Words};
use candle_attention::train::{watched_map, watched_steps};
use candle_core::Device;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::terminal::{note, one_line, quoted};
use super::{generate, options, out_file, remarks};
use units::Units;

/// The command line of `attn inspect`.
pub fn command() -> Command {
    let number = |name: &'static str| Arg::new(name).long(name).value_name("N").value_parser(options::count(1 << 20));
    Command::new("inspect")
        .about("Show which token attends to which, and what the model would say next")
        .args([
            Arg::new("run")
                .value_name("RUN")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("The folder of a run, any Hugging Face model folder of a gpt2, llama or qwen3, or a .gguf file"),
        ])
        .args(generate::prompt_args("Text to look at [default: that of the run's --watch]"))
        .args([
            number("layer").help("Show this layer, counted from 1 [default: the heads that look up most]"),
            number("head").requires("layer").help("Show this head of the layer, counted from 1"),
            Arg::new("tokens").long("tokens").action(ArgAction::SetTrue).help(
                "Show single tokens even where words have several; otherwise a word's weight on another is the mean over its \
                 tokens of the sum over the other's",
            ),
            weights::arg(),
            Arg::new("out").long("out").value_name("FILE").value_parser(value_parser!(PathBuf)).help(
                "Write a page to explore (.html), a picture (.svg, .png) or all numbers (.safetensors) instead",
            ),
        ])
}

/// A prompt and what a model makes of it.
struct Inspected {
    pipeline: Pipeline,
    words: Words,
    map: AttentionMap,
}

/// Shows the map, or writes it to a file.
pub fn run(matches: &ArgMatches, out: &mut dyn Write) -> Result<()> {
    if matches.get_flag("weights") {
        return weights::run(matches, out);
    }
    let root = matches.get_one::<PathBuf>("run").context("RUN")?;
    let file = matches.get_one::<PathBuf>("out");
    let extension = file.map(|file| out_file::extension(file, &EXTENSIONS)).transpose()?;
    if extension == Some("safetensors") {
        check_numbers(file.context("--out")?, matches)?;
    }
    let inspected = Inspected::open(root, matches)?;
    let chosen = Chosen::of(matches, &inspected.map)?;
    let as_tokens = matches.get_flag("tokens");
    let units = Units::new(&inspected.words, as_tokens);
    let Some((file, extension)) = file.zip(extension) else {
        return view::show(&inspected, &units, chosen, out);
    };
    match extension {
        "html" => page::write(file, root, &inspected, chosen, as_tokens)?,
        "safetensors" => {
            let tokens = serde_json::to_string(&inspected.words.tokens)?;
            inspected.map.save(file, BTreeMap::from([("tokens", tokens)]))?;
        }
        _ => picture::write(file, extension == "png", &inspected, &units, chosen)?,
    }
    note(&format!("wrote {}", quoted(file)));
    Ok(())
}

/// What the name of the file to write may end in.
const EXTENSIONS: [&str; 4] = ["html", "svg", "png", "safetensors"];

/// Refuses to take the place of what may be a model's weights, and options that choose among the numbers, all of which are
/// written.
fn check_numbers(file: &Path, matches: &ArgMatches) -> Result<()> {
    if file.exists() {
        bail!("--out: {} exists: choose another name, or remove it first", quoted(file));
    }
    let is_given = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
    match ["layer", "head", "tokens"].into_iter().find(|name| is_given(name)) {
        Some(name) => bail!("--{name} has no effect on a .safetensors file, which has everything"),
        None => Ok(()),
    }
}

impl Inspected {
    fn open(root: &Path, matches: &ArgMatches) -> Result<Self> {
        let pipeline = Pipeline::open(root, &Device::Cpu)?;
        let accepts_unknown = matches.get_flag("accept-unknown");
        let ids = match generate::prompt(matches, pipeline.tokenizer.takes_any_bytes())? {
            Some(prompt) => {
                if accepts_unknown {
                    remarks::note_in_prompt(&pipeline.tokenizer, &prompt);
                }
                pipeline.prompt_ids(&prompt, accepts_unknown)?
            }
            None => match watched_steps(root)?.last() {
                Some(step) => watched_map(root, *step)?.ids,
                None => bail!("expected --prompt TEXT or --prompt-file FILE, as this is no run with --watch TEXT"),
            },
        };
        let map = AttentionMap::new(&pipeline.model, &ids)?;
        Ok(Self { words: Words::new(&pipeline.tokenizer, &ids)?, pipeline, map })
    }
}

/// The name of the model at a path.
fn name(root: &Path) -> String {
    let absolute = std::path::absolute(root).unwrap_or_else(|_| root.to_path_buf());
    one_line(&absolute.file_name().map_or_else(|| root.display().to_string(), |name| name.to_string_lossy().into()))
}

/// The layer and head that the command line asks for, counted from 0.
#[derive(Clone, Copy, Default)]
struct Chosen {
    layer: Option<usize>,
    head: Option<usize>,
}

impl Chosen {
    fn of(matches: &ArgMatches, map: &AttentionMap) -> Result<Self> {
        let (layers, heads) = map.heads();
        let get = |name: &str, count: usize| match matches.get_one::<u64>(name) {
            Some(&n) if n as usize > count => bail!("--{name}: expected a number from 1 to {count}, got {n}"),
            n => Ok(n.map(|n| *n as usize - 1)),
        };
        Ok(Self { layer: get("layer", layers)?, head: get("head", heads)? })
    }

    /// The heads that are meant, those that look up most first.
    fn heads(self, map: &AttentionMap) -> Result<Vec<(usize, usize)>> {
        let scores = map.scores()?;
        let (layers, heads) = map.heads();
        let all = (0..layers).flat_map(|layer| (0..heads).map(move |head| (layer, head)));
        let is_meant = |&(layer, head): &(usize, usize)| {
            self.layer.is_none_or(|meant| meant == layer) && self.head.is_none_or(|meant| meant == head)
        };
        let mut meant: Vec<_> = all.filter(is_meant).collect();
        meant.sort_by(|a, b| scores[b.0][b.1].telling.total_cmp(&scores[a.0][a.1].telling));
        Ok(meant)
    }
}
