//! `attn inspect`: what a model has learned.

mod weights;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

/// The command line of `attn inspect`.
pub fn command() -> Command {
    let path = |name: &'static str| Arg::new(name).value_parser(value_parser!(PathBuf));
    let switch = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    Command::new("inspect").about("Show what a model has learned").args([
        path("run")
            .value_name("RUN")
            .required(true)
            .help("The folder of a run, any Hugging Face model folder of a gpt2, llama or qwen3, or a .gguf file"),
        Arg::new("prompt").long("prompt").value_name("TEXT").allow_hyphen_values(true).help("Text to look at"),
        path("prompt-file").long("prompt-file").value_name("FILE").conflicts_with("prompt").help("File with that text"),
        switch("accept-unknown").help("Accept characters of the prompt that the tokenizer has no token for"),
        weights::arg(),
        path("out").long("out").value_name("FILE").help("Write a page (.html) instead"),
    ])
}

/// Shows it.
pub fn run(matches: &ArgMatches, out: &mut dyn Write) -> Result<()> {
    if matches.get_flag("weights") {
        return weights::run(matches, out);
    }
    bail!("expected --weights")
}
