//! Resuming a run: everything is put back as its latest checkpoint has it.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::frozen_base::FrozenBase;
use super::run_dir::{CheckpointState, Latest, tensors};
use super::trainer::audit_of;
use super::{RunDir, Trainer, settings_file};
use crate::host::{Error, Result, adapter_base, bail, bail_option, listed};
use crate::model::{ModelConfig, own_adapter};
use crate::nn::Parameters;
use crate::text::{Corpus, TextProgress};

/// Opens the run in `root` at its latest checkpoint, with `changes` of its options, each one of
/// [`CHANGE_THE_RESULT`](super::CHANGE_THE_RESULT) or [`KEEP_THE_RESULT`](super::KEEP_THE_RESULT). Without changes, the
/// result is that of an uninterrupted run, to the last bit. If this fails, the run is as it was.
///
/// Also gives the errors of newer checkpoints that are damaged: what was learned since is lost, and is learned again.
///
/// # Errors
/// If there is no run, another process is training in it, no checkpoint is whole, its ids are lost or damaged, or the
/// changes are not allowed.
pub fn resume(
    root: &Path,
    changes: &toml::Table,
    device: &Device,
    progress: &mut dyn FnMut(TextProgress),
) -> Result<(Trainer, RunDir, Vec<Error>)> {
    let Latest { state: CheckpointState { trainer: state, metrics_bytes, seconds }, mut tensors, damaged, lock } =
        RunDir::latest(root, device)?;
    let (settings, options) = settings_file::read(&root.join("training"), changes)?;
    if options.last_step() < state.step {
        bail_option!("steps", "expected at least the {} that are done, got {}", state.step, options.steps);
    }
    if changes.contains_key("minutes") && 60.0 * options.minutes <= seconds {
        bail_option!(
            "minutes",
            "expected more than the {:.2} that the run has taken, got {}",
            seconds / 60.0,
            options.minutes
        );
    }
    let (config, base) = model_files(root, state.base.as_deref(), device)?;
    let ids = root.join("training/ids.safetensors");
    let corpus = Corpus::open(&ids, progress)?;
    if state.corpus != corpus.fingerprint {
        return Err(Error::corrupt(&ids, "they are not the ids that the run was trained on"));
    }
    let parameters = Parameters::restored(weights(&tensors, "weight", &config, base.as_ref()))?;
    let mut trainer = Trainer::from_parameters(parameters, base, &config, &options, corpus, device)?;
    restore(&mut trainer, &mut tensors)?;
    trainer.state = state;
    if trainer.state.audit.is_over() {
        trainer.state.audit = audit_of(&config, &trainer.vars);
    }
    let run = RunDir::resumed(root, (lock, metrics_bytes, seconds), &mut trainer, &settings)?;
    Ok((trainer, run, damaged))
}

/// The configuration of the model of the run in `root` and, if the run trains adapters, the model below them, whose weights
/// must have this fingerprint.
pub(super) fn model_files(
    root: &Path,
    fingerprint: Option<&str>,
    device: &Device,
) -> Result<(ModelConfig, Option<FrozenBase>)> {
    let Some(fingerprint) = fingerprint else { return Ok((ModelConfig::open(root)?, None)) };
    let config = ModelConfig::open(&root.join("training"))?;
    let base = FrozenBase::open(&adapter_base(root)?, &own_adapter(root)?, &config, device)?;
    // What a run may have of its own.
    let theirs = ModelConfig {
        dropout: config.dropout,
        begin_of_text_id: config.begin_of_text_id,
        end_of_text_id: config.end_of_text_id,
        other_end_ids: config.other_end_ids.clone(),
        ..ModelConfig::open(&base.path)?
    };
    if base.fingerprint != fingerprint || theirs != config {
        bail!(
            "{}: its weights, its configuration, or r and lora_alpha in adapter_config.json, are not those that this run \
             trains adapters with",
            base.path.display()
        );
    }
    Ok((config, Some(base)))
}

/// What is trained, of one kind among the tensors of a checkpoint, by its names in the model.
pub(super) fn weights(
    tensors: &BTreeMap<String, Tensor>,
    kind: &str,
    config: &ModelConfig,
    base: Option<&FrozenBase>,
) -> Vec<(String, Tensor)> {
    let names = match base {
        None => config.parameters(),
        Some(base) => config.lora_parameters(&base.lora),
    };
    let found = names.into_iter().filter_map(|(name, _)| {
        let tensor = tensors.get(&format!("{kind}.{name}"))?.clone();
        Some((name, tensor))
    });
    found.collect()
}

/// Puts averages and optimizer state back into their places.
fn restore(trainer: &mut Trainer, saved: &mut BTreeMap<String, Tensor>) -> Result<()> {
    let described = |tensor: &Tensor| (tensor.dims().to_vec(), tensor.dtype());
    let expected = tensors(trainer);
    let is_as_saved = |(name, tensor): &(&String, &Tensor)| saved.get(*name).map(described) == Some(described(tensor));
    let missing: Vec<String> = expected
        .iter()
        .filter(|pair| !is_as_saved(pair))
        .map(|(name, _)| format!("{name} is not as expected"))
        .collect();
    if !missing.is_empty() {
        bail!("the checkpoint does not belong to config.json and settings.toml: {}", listed(&missing));
    }
    if let Some(average) = &trainer.average {
        for (name, var) in &average.vars {
            if let Some(tensor) = saved.get(&format!("average.{name}")) {
                var.set(&tensor.to_dtype(DType::F32)?)?;
            }
        }
    }
    Ok(trainer.optimizer.restore(saved)?)
}
