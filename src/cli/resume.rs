//! `attn train --resume`: from the folder of a run and the options given to its trainer.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_attention::run::check_vocabulary;
use candle_attention::text::Tokenizer;
use candle_attention::train::{RunFolder, Trainer};
use candle_core::Device;

use super::document::spill_beside;
use super::options::Options;
use super::plan;
use super::prepared::encode;
use super::terminal::{note, quoted};
use super::text_progress::text_progress;
use super::train::is_done;

/// The texts, which may be given with --resume but must be the same.
const TEXTS: [&str; 2] = ["texts", "validation"];

/// The options that --resume may change; those of them that are training options are in `TrainOptions::changed_as` too.
const CHANGEABLE: [&str; 17] = [
    "steps",
    "lr",
    "min-lr",
    "warmup",
    "schedule",
    "decay-steps",
    "weight-decay",
    "matrix-lr",
    "matrix-weight-decay",
    "embedding-lr",
    "head-lr",
    "clip",
    "eval-every",
    "save-every",
    "patience",
    "skip-bad-steps",
    "statistics-every",
];

/// The help of `--resume`.
pub fn help() -> String {
    let options = CHANGEABLE.map(|name| format!("--{name}")).join(", ");
    format!(
        "Continue the run in --out with its saved options; only these can be changed: {options}. TEXT is not needed; if it is \
         given, it must be the same"
    )
}

/// Opens the run in `root` at its last checkpoint.
pub fn resume(root: &Path, given: &Options) -> Result<(Trainer, RunFolder)> {
    let may_be_given = |name: &str| TEXTS.contains(&name) || CHANGEABLE.contains(&name);
    if let Some(name) = given.given()?.iter().find(|name| !may_be_given(name)) {
        bail!("--{name} cannot be given with --resume: the run keeps its own");
    }
    if !RunFolder::exists(root) {
        bail!("{} is not a run to resume: it has no training/current", root.display());
    }
    let saved = Options::from_toml(&RunFolder::settings(root)?).context("training/settings.toml")?;
    let options = given.resumed_from(&saved)?;
    options.check_combinations()?;
    let train_options = options.train_options();
    train_options.validate()?;
    let (mut folder, config, checkpoint) = RunFolder::resume(root, &Device::Cpu)?;
    options.save_time()?.into_iter().for_each(|time| folder.set_save_interval(time));
    if folder.lost_metrics() > 0 {
        note(&format!(
            "training/metrics.jsonl has lost {} bytes since the checkpoint; the run continues without them",
            folder.lost_metrics()
        ));
    }
    let tokenizer = Tokenizer::from_file(root)?;
    check_vocabulary(root, &config, &tokenizer)?;
    let has_texts = !(given.texts.is_empty() && given.validation.is_empty());
    let kept = if has_texts { Ok(None) } else { folder.ids(&mut text_progress()) };
    let kept = kept.context("the ids of the run cannot be read; giving TEXT encodes it again")?;
    let is_kept = kept.is_some();
    let corpus = match kept {
        Some(corpus) => corpus,
        None => {
            check_texts(root, given, &saved)?;
            encode(&tokenizer, &options, config.context_len, spill_beside(root))?
        }
    };
    plan::check_memory(&config, &corpus, &train_options)?;
    let changes = checkpoint.state.options.differences(&train_options)?;
    let trainer = Trainer::resume(checkpoint, &config, &train_options, corpus, &Device::Cpu)?;
    if !is_kept {
        folder.write_ids(trainer.corpus())?;
    }
    if !is_done(&trainer) {
        folder.write_settings(&options.with_absolute_paths()?.to_toml()?)?;
    }
    if !changes.is_empty() && !is_done(&trainer) {
        let changes: Vec<String> = changes.iter().map(|(name, was, is)| format!("{name} {was} -> {is}")).collect();
        note(&format!("changed: {}; the result will differ from the unchanged run's", changes.join(", ")));
    }
    Ok((trainer, folder))
}

/// Refuses to read texts that only the settings of a run name, as a stranger's run folder could name any file.
fn check_texts(root: &Path, given: &Options, saved: &Options) -> Result<()> {
    let is_given = |given: &[PathBuf], saved: &[PathBuf]| saved.is_empty() || !given.is_empty();
    if is_given(&given.texts, &saved.texts) && is_given(&given.validation, &saved.validation) {
        return Ok(());
    }
    let texts = saved.texts.iter().map(|path| format!(" {}", quoted(path)));
    let validation = saved.validation.iter().map(|path| format!(" --validation {}", quoted(path)));
    bail!(
        "the run's token ids are lost: expected its texts on the command line, as paths found only in its settings are not \
         read; if these are yours: attn train{} --resume --out {}",
        texts.chain(validation).collect::<String>(),
        quoted(root)
    )
}
