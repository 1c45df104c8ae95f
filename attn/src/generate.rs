//! `attn generate`: text from a model.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_attention::generate::{Chat, Continuation, OutputForm, Pipeline};
use candle_core::Device;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::sampling::{self, Sampling};
use super::terminal::note;
use super::{chat, options, remarks, sample, texts};

/// The command line of `attn generate`.
pub fn command() -> Command {
    let whole =
        |name: &'static str, value| Arg::new(name).long(name).value_name(value).value_parser(value_parser!(u64));
    let run = Arg::new("run")
        .value_name("RUN")
        .required(true)
        .value_parser(value_parser!(PathBuf))
        .help("Folder of a run, or any Hugging Face model folder of a gpt2, llama or qwen3");
    let prompt = prompt_args(
        "Text to continue [default: empty; generation then starts from the beginning-of-text token or, without one, the \
         end-of-text token, a line break or token 0]",
    );
    let others = [
        text("stop").action(ArgAction::Append).help("Stop before this text; may be given several times"),
        Arg::new("chat").long("chat").action(ArgAction::SetTrue).conflicts_with_all(["samples", "accept-unknown"]).help(
            "Answer --prompt as a message of a conversation or, without it, each line of standard input, in the words of the \
             model's chat template",
        ),
        text("system").requires("chat").help("What the model is told before the conversation"),
        whole("seed", "N").default_value("1").help("Seed: the same one gives the same text"),
        Arg::new("samples")
            .long("samples")
            .value_name("N")
            .default_value("1")
            .value_parser(options::count(65_535))
            .help("Number of texts: generated in one batch, shown one after the other, separated by lines of dashes"),
    ];
    let args = [run].into_iter().chain(prompt).chain(sampling::args()).chain(others);
    Command::new("generate").about("Write text with a trained model").allow_negative_numbers(true).args(args)
}

fn text(name: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("TEXT").allow_hyphen_values(true)
}

/// The arguments of a prompt, with this help.
pub fn prompt_args(help: &'static str) -> [Arg; 3] {
    [
        text("prompt").help(help),
        Arg::new("prompt-file")
            .long("prompt-file")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .conflicts_with("prompt")
            .help("File with the prompt, to its last line break; - is standard input"),
        Arg::new("accept-unknown").long("accept-unknown").action(ArgAction::SetTrue).help(
            "Accept characters of the prompt that a tokenizer.json has no token for: they become its unknown token, or \
             nothing; one of char refuses them all the same",
        ),
    ]
}

/// The prompt, if one is given: any bytes for a model of bytes.
pub fn prompt(matches: &ArgMatches, takes_any_bytes: bool) -> Result<Option<Vec<u8>>> {
    let Some(path) = matches.get_one::<PathBuf>("prompt-file") else {
        return Ok(matches.get_one::<String>("prompt").map(|prompt| prompt.clone().into_bytes()));
    };
    let document = texts::open_one(path).context("--prompt-file")?;
    Ok(Some(if takes_any_bytes { document.bytes()? } else { document.text()?.into_bytes() }))
}

/// Generates text with a trained model.
pub fn run(matches: &ArgMatches, out: &mut dyn Write) -> Result<()> {
    let root = matches.get_one::<PathBuf>("run").context("RUN")?;
    let whole = |name: &str| matches.get_one::<u64>(name).copied();
    let Sampling { options: sampling, max_tokens, from_model } = Sampling::of(matches, root)?;
    let pipeline = Pipeline::open(root, &Device::Cpu)?;
    let prompt = prompt(matches, pipeline.tokenizer.takes_any_bytes())?;
    let continuation = Continuation {
        max_tokens,
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
    from_model.iter().for_each(|line| note(line));
    if matches.get_flag("chat") {
        let conversation = Chat::new(&pipeline, matches.get_one::<String>("system").map(String::as_str))?;
        let prompt = prompt.as_deref().map(String::from_utf8_lossy);
        return chat::run(conversation, prompt.as_deref(), &continuation, out);
    }
    let prompt = prompt.unwrap_or_default();
    if continuation.accept_unknown {
        remarks::note_in_prompt(&pipeline.tokenizer, &prompt);
    }
    sample::write(&pipeline, &prompt, &continuation, out)
}
