//! `attn convert`: a model in the forms in which other programs take it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use candle_attention::generate::{Pipeline, export_folder, export_gguf};
use candle_attention::model::{GgufType, load_weights};
use candle_core::Device;
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgGroup, ArgMatches, Command, value_parser};

use super::terminal::{note, quoted};

/// The command line of `attn convert`.
pub fn command() -> Command {
    let path = |name: &'static str| Arg::new(name).value_parser(value_parser!(PathBuf));
    let types = GgufType::NAMES.map(|(name, _)| name);
    Command::new("convert")
        .about("Write a model in a form that other programs take")
        .args([
            path("run")
                .value_name("RUN")
                .required(true)
                .help("The folder of a run, any Hugging Face model folder of a gpt2, llama or qwen3, or a .gguf file"),
            path("gguf").long("gguf").value_name("FILE").help("Write a GGUF file, for llama.cpp and Ollama"),
            path("merge")
                .long("merge")
                .value_name("DIR")
                .help("Write a plain Hugging Face model folder: an adapter becomes part of its base's weights"),
            Arg::new("type")
                .long("type")
                .value_name("TYPE")
                .value_parser(PossibleValuesParser::new(types))
                .default_value("f16")
                .help("How the GGUF file stores matrices"),
        ])
        .group(ArgGroup::new("form").args(["gguf", "merge"]).required(true))
}

/// Writes the file or the folder.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let root = matches.get_one::<PathBuf>("run").context("RUN")?;
    let (config, tokenizer) = Pipeline::open_config(root)?;
    let weights = load_weights(root, &config, &Device::Cpu)?;
    if let Some(path) = matches.get_one::<PathBuf>("gguf") {
        let name = matches.get_one::<String>("type").context("--type")?;
        let kind = GgufType::NAMES.into_iter().find(|(other, _)| other == name).context("--type")?.1;
        for line in export_gguf(path, (&config, &tokenizer), &weights, kind)? {
            note(&line);
        }
        note(&format!("wrote {}", quoted(path)));
        return Ok(());
    }
    let Some(folder) = matches.get_one::<PathBuf>("merge") else { bail!("expected --gguf or --merge") };
    export_folder(folder, root, (&config, &tokenizer), &weights)?;
    note(&format!("wrote {}", quoted(folder)));
    Ok(())
}
