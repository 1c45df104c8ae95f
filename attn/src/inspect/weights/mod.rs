//! `attn inspect --weights`: norms and spectra of each head, how far the weights have moved, and where a gradient goes.

mod page;
mod tables;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_attention::generate::Pipeline;
use candle_attention::inspect::{HeadSpectra, TensorReport, WeightReport};
use candle_attention::model::{ModelConfig, load_weights};
use candle_attention::text::{Batch, windows};
use candle_attention::train::{first_batch, gradients, initial_weights};
use candle_core::{Device, Tensor};
use clap::{Arg, ArgAction, ArgMatches};
use indicatif::HumanCount;

use crate::progress::text_progress;
use crate::terminal::{counted, note, one_line, quoted};
use crate::{generate, out_file};

/// The switch.
pub fn arg() -> Arg {
    Arg::new("weights").long("weights").action(ArgAction::SetTrue).conflicts_with_all(["layer", "head", "tokens"]).help(
        "Show the weights instead: norms and spectra of each head, how far they have moved since the start of training, and \
         the gradients of the first training batch or, if given, of the prompt",
    )
}

/// A report, with what it says of a start and of gradients, or why it says nothing.
struct Inspected {
    config: ModelConfig,
    name: String,
    report: WeightReport,
    /// The heads that training started from.
    start: Result<Vec<Vec<HeadSpectra>>, String>,
    gradients: Result<Gradients, String>,
}

/// The batch that the gradients are of.
struct Gradients {
    /// In nats per token.
    loss: f64,
    tokens: usize,
    is_of_prompt: bool,
}

/// Prints the report, or writes its page.
pub fn run(matches: &ArgMatches, out: &mut dyn Write) -> Result<()> {
    let root = matches.get_one::<PathBuf>("run").context("RUN")?;
    let file = matches.get_one::<PathBuf>("out");
    file.map(|file| out_file::extension(file, &["html"])).transpose()?;
    let inspected = Inspected::open(root, matches)?;
    let Some(file) = file else { return tables::print(&inspected, out) };
    page::write(file, &inspected)?;
    note(&format!("wrote {}", quoted(file)));
    Ok(())
}

impl Inspected {
    fn open(root: &Path, matches: &ArgMatches) -> Result<Self> {
        let config = ModelConfig::open(root)?;
        let prompt = batch_of_prompt(root, matches)?;
        let weights = load_weights(root, &config, &Device::Cpu)?;
        let initial = initial_weights(root, &config, &Device::Cpu).map_err(|error| reason(&error));
        let (gradients, of_batch) = match gradients_of(root, prompt, &config, &weights) {
            Ok((gradients, of_batch)) => (Ok(gradients), Some(of_batch)),
            Err(error) => (Err(reason(&error)), None),
        };
        let report = WeightReport::new(&config, &weights, initial.as_ref().ok(), of_batch.as_ref())?;
        let start = match initial {
            Ok(initial) => Ok(WeightReport::new(&config, &initial, None, None)?.heads),
            Err(reason) => Err(reason),
        };
        Ok(Self { config, name: super::name(root), report, start, gradients })
    }

    /// The tensors of layer `i`, with their names in it.
    fn layer(&self, i: usize) -> Vec<(&str, &TensorReport)> {
        let prefix = format!("blocks.{i}.");
        self.report.tensors.iter().filter_map(|tensor| Some((tensor.name.strip_prefix(&prefix)?, tensor))).collect()
    }

    /// The tensors that belong to no layer.
    fn outside(&self) -> Vec<(&str, &TensorReport)> {
        let outside = self.report.tensors.iter().filter(|tensor| !tensor.name.starts_with("blocks."));
        outside.map(|tensor| (tensor.name.as_str(), tensor)).collect()
    }
}

fn reason(error: &dyn std::fmt::Display) -> String {
    one_line(&error.to_string())
}

/// The gradients of the prompt or, without one, of the run's first batch.
fn gradients_of(
    root: &Path,
    prompt: Option<Batch>,
    config: &ModelConfig,
    weights: &BTreeMap<String, Tensor>,
) -> candle_attention::Result<(Gradients, BTreeMap<String, Tensor>)> {
    let is_of_prompt = prompt.is_some();
    let batch = match prompt {
        Some(batch) => batch,
        None => first_batch(root, config, &Device::Cpu, &mut text_progress())?,
    };
    let (loss, gradients) = gradients(config, weights, &batch)?;
    Ok((Gradients { loss, tokens: batch.learned()?, is_of_prompt }, gradients))
}

/// The prompt as one window or, if it is longer than the model's context, in whole windows.
fn batch_of_prompt(root: &Path, matches: &ArgMatches) -> Result<Option<Batch>> {
    if !matches.contains_id("prompt") && !matches.contains_id("prompt-file") {
        return Ok(None);
    }
    let pipeline = Pipeline::open(root, &Device::Cpu)?;
    let Some(prompt) = generate::prompt(matches, pipeline.tokenizer.takes_any_bytes())? else { return Ok(None) };
    let ids = pipeline.prompt_ids(&prompt, matches.get_flag("accept-unknown"))?;
    let (count, context) = (ids.len(), pipeline.model.config().context_len);
    if count < 2 {
        bail!("the prompt: expected at least 2 tokens, of which each but the first is predicted, got {count}");
    }
    let ids = ids.into();
    let mut all = windows(&ids, (count, context), count > context, None, &Device::Cpu)?;
    Ok(all.next().transpose()?)
}

/// What the gradients are of.
fn described(gradients: &Gradients) -> String {
    let of = if gradients.is_of_prompt { "the prompt" } else { "the first training batch, without dropout" };
    format!("mean loss {:.4} over {} tokens of {of}", gradients.loss, HumanCount(gradients.tokens as u64))
}

/// The model in a few words.
fn model(config: &ModelConfig) -> String {
    let &ModelConfig { num_layers, num_heads, embed_dim, .. } = config;
    let shared = match config.kv_heads() {
        groups if groups == num_heads => String::new(),
        groups => format!(", which share {groups} of keys and values"),
    };
    format!(
        "{}, {} of {}{shared}; {}, {} in a head; {}",
        config.architecture.model_type(),
        counted(num_layers, "layer"),
        counted(num_heads, "head"),
        counted(embed_dim, "channel"),
        config.head_channels(),
        counted(config.parameter_count(), "parameter")
    )
}
