//! `attn generate`: text from a model.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_attention::generate::{Continuation, OutputForm, Pipeline, SamplingOptions};
use candle_core::Device;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::{options, remarks, sample};

/// The command line of `attn generate`.
pub fn command() -> Command {
    let text = |name: &'static str| Arg::new(name).long(name).value_name("TEXT").allow_hyphen_values(true);
    let number =
        |name: &'static str, value| Arg::new(name).long(name).value_name(value).value_parser(value_parser!(f64));
    let whole =
        |name: &'static str, value| Arg::new(name).long(name).value_name(value).value_parser(value_parser!(u64));
    Command::new("generate").about("Write text with a trained model").allow_negative_numbers(true).args([
        Arg::new("run")
            .value_name("RUN")
            .required(true)
            .value_parser(value_parser!(PathBuf))
            .help("Folder of a run, or any Hugging Face model folder of a gpt2, llama or qwen3"),
        text("prompt").default_value("").hide_default_value(true).help(
            "Text to continue [default: empty; generation then starts from the beginning-of-text token or, without one, the \
             end-of-text token, a line break or token 0]",
        ),
        whole("max-tokens", "N").default_value("500").help("Maximum number of tokens to write"),
        number("temperature", "T")
            .default_value("0.8")
            .help("Divisor of the logits: below 1 is safer, above 1 more varied; 0 always takes the likeliest token"),
        whole("top-k", "K").help("Sample only from this many likeliest tokens"),
        number("top-p", "P").help("Sample only from the fewest likeliest tokens that together have this probability"),
        number("min-p", "P").help("Sample only from tokens at least this many times as likely as the likeliest one"),
        number("repetition-penalty", "FACTOR").default_value("1").help(
            "Above 1, tokens that already occur in the text become less likely: positive logits are divided by this, \
             negative ones multiplied",
        ),
        text("stop").action(ArgAction::Append).help("Stop before this text; may be given several times"),
        Arg::new("accept-unknown").long("accept-unknown").action(ArgAction::SetTrue).help(
            "Accept characters of the prompt that the tokenizer has no token for: they become its unknown token, or nothing",
        ),
        whole("seed", "N").default_value("1").help("Seed: the same one gives the same text"),
        Arg::new("samples").long("samples").value_name("N").default_value("1").value_parser(options::count(65_535)).help(
            "Number of texts: generated in one batch, shown one after the other, separated by lines of dashes",
        ),
    ])
}

/// Generates text with a trained model.
pub fn run(matches: &ArgMatches, out: &mut dyn Write) -> Result<()> {
    let root = matches.get_one::<PathBuf>("run").context("RUN")?;
    let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let number = |name: &str| matches.get_one::<f64>(name).copied();
    let whole = |name: &str| matches.get_one::<u64>(name).copied();
    let sampling = SamplingOptions {
        temperature: number("temperature").unwrap_or_default(),
        top_k: whole("top-k").map(|k| k as usize),
        top_p: number("top-p"),
        min_p: number("min-p"),
        repetition_penalty: number("repetition-penalty").unwrap_or_default(),
    };
    sampling.validate()?;
    let pipeline = Pipeline::open(root, &Device::Cpu)?;
    let continuation = Continuation {
        max_tokens: whole("max-tokens").unwrap_or_default() as usize,
        sampling,
        seed: whole("seed").unwrap_or_default(),
        samples: whole("samples").unwrap_or_default() as usize,
        stop: matches.get_many::<String>("stop").into_iter().flatten().cloned().collect(),
        accept_unknown: matches.get_flag("accept-unknown"),
        // A terminal shows characters, not bytes.
        form: match pipeline.tokenizer.takes_any_bytes() && !io::stdout().is_terminal() {
            true => OutputForm::Bytes,
            false => OutputForm::Text,
        },
    };
    if continuation.accept_unknown
        && let Ok((_, unknown)) = pipeline.tokenizer.encode_with_unknown(&text("prompt"))
    {
        remarks::note_unknown(unknown, None);
    }
    sample::write(&pipeline, &text("prompt"), &continuation, out)
}
