//! Resuming a run: everything is put back as its latest checkpoint has it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::frozen_base::FrozenBase;
use super::join::send_run;
use super::latest::{CheckpointState, Latest, latest};
use super::run_dir::forget_lost_best;
use super::trainer::{TrainState, audit_of};
use super::{RunDir, TrainOptions, Trainer, metrics, settings_file};
use crate::host::{Error, Result, adapter_base, bail, bail_option, listed};
use crate::model::{ModelConfig, own_adapter};
use crate::nn::Parameters;
use crate::processes::{Alone, Processes};
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
    resume_on(Arc::new(Alone), root, changes, device, progress)
}

/// Resumes a run on several processes, of which this is the first and the others call [`join`](super::join): [`resume`], and
/// [`lead`](super::lead) before anything is changed.
///
/// # Errors
/// Those of both. If a change is refused or the run cannot be shared, it is as it was.
pub fn resume_on(
    processes: Arc<dyn Processes>,
    root: &Path,
    changes: &toml::Table,
    device: &Device,
    progress: &mut dyn FnMut(TextProgress),
) -> Result<(Trainer, RunDir, Vec<Error>)> {
    let Latest { state: CheckpointState { trainer: state, metrics_bytes, seconds }, mut tensors, damaged, lock } =
        latest(root, device)?;
    let (settings, saved) = settings_file::read(&root.join("training"))?;
    let (settings, mut options) = settings_file::with(settings, changes)?;
    if changes.contains_key("minutes") {
        let pace = pace(root, state.step, seconds).unwrap_or_else(|| match saved.is_timed() {
            true => saved.steps as f64 / (60.0 * saved.minutes),
            false => state.step as f64 / seconds,
        });
        options = with_time(options, &saved, (state.step, seconds), pace)?;
    }
    if options.last_step() < state.step {
        bail_option!("steps", "expected at least the {} that are done, got {}", state.step, options.steps);
    }
    let mut trainer = trainer_at(root, state, &mut tensors, &options, device, progress)?;
    forget_lost_best(root, &mut trainer);
    send_run(root, &settings, &mut trainer, processes)?;
    let run = RunDir::resumed(root, (lock, metrics_bytes, seconds), &trainer, &settings)?;
    Ok((trainer, run, damaged))
}

/// The trainer of the run in `root` with the state and the tensors of a checkpoint.
pub(super) fn trainer_at(
    root: &Path,
    state: TrainState,
    tensors: &mut BTreeMap<String, Tensor>,
    options: &TrainOptions,
    device: &Device,
    progress: &mut dyn FnMut(TextProgress),
) -> Result<Trainer> {
    let (config, base) = model_files(root, state.base.as_deref(), device)?;
    let ids = root.join("training/ids.safetensors");
    let corpus = Corpus::open(&ids, progress)?;
    if state.corpus != corpus.fingerprint {
        return Err(Error::corrupt(&ids, "they are not the ids that the run was trained on"));
    }
    let parameters = Parameters::restored(weights(tensors, "weight", &config, base.as_ref()))?;
    let mut trainer = Trainer::from_parameters(parameters, base, &config, options, corpus, device)?;
    restore(&mut trainer, tensors)?;
    trainer.state = state;
    if trainer.state.audit.is_over() {
        trainer.state.audit = audit_of(&config, &trainer.vars);
    }
    Ok(trainer)
}

/// The steps that the run in `root` has made in a second since the first of them, before which the text was read.
fn pace(root: &Path, step: u64, seconds: f64) -> Option<f64> {
    let first = metrics::lines(&root.join("training/metrics.jsonl")).ok()?.next()?.ok()?;
    let pace = step.checked_sub(first.step)? as f64 / (seconds - first.seconds);
    Some(pace).filter(|pace| pace.is_finite() && *pace > 0.0)
}

/// How far from its minutes a run ends; a fraction of them.
const ENDED_ABOUT: f64 = 0.1;

/// The options of a run that gets another time, after so many steps and seconds, at a pace of so many steps a second: the
/// lengths of warm-up and average stay, and the decay is the same part of the steps that are expected now, as far as there is
/// time for it.
fn with_time(
    options: TrainOptions,
    saved: &TrainOptions,
    (step, seconds): (u64, f64),
    pace: f64,
) -> Result<TrainOptions> {
    if !saved.is_timed() && step < saved.steps {
        bail_option!("minutes", "the run has {} steps, which no time changes now; --steps does", saved.steps);
    }
    let left = 60.0 * options.minutes - seconds;
    // A run ends about when it has to: the time that it had is not more.
    if !saved.is_timed() && left.abs() <= ENDED_ABOUT * 60.0 * options.minutes {
        return Ok(TrainOptions { minutes: 0.0, ..options });
    }
    if left <= 0.0 {
        let (taken, minutes) = (seconds / 60.0, options.minutes);
        bail_option!("minutes", "expected more than the {taken:.2} that the run has taken, got {minutes}");
    }
    if options.minutes == saved.minutes {
        return Ok(options);
    }
    let steps_left = pace * left;
    let steps = step as f64 + steps_left;
    let same = |fraction: f64| (fraction * saved.steps as f64 / steps).min(1.0);
    let warmup = if options.warmup == saved.warmup { same(saved.warmup) } else { options.warmup };
    let (decay, average) = (options.decay.min(steps_left / steps).min(1.0 - warmup), same(options.average));
    Ok(TrainOptions { steps: steps as u64, warmup, average, decay, ..options })
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
    let expected = trainer.tensors()?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::Schedule;

    #[test]
    fn another_time_is_another_number_of_steps_and_as_much_of_a_decay() {
        let saved = TrainOptions {
            steps: 1000,
            minutes: 5.0,
            schedule: Schedule::WarmupStableDecay,
            warmup: 0.1,
            decay: 0.6,
            average: 0.15,
            ..Default::default()
        };
        // At 4 steps a second.
        let with = |saved: &TrainOptions, minutes: f64, step, seconds| {
            with_time(TrainOptions { minutes, ..saved.clone() }, saved, (step, seconds), 4.0)
        };
        // 200 steps in 50 s: 480 in two minutes, 280 of which are left.
        let options = with(&saved, 2.0, 200, 50.0).unwrap();
        assert_eq!((options.steps, options.minutes, options.warmup), (480, 2.0, 100.0 / 480.0));
        assert_eq!((options.decay, options.average), (280.0 / 480.0, 150.0 / 480.0));
        let options = with(&saved, 10.0, 200, 50.0).unwrap();
        assert_eq!((options.steps, options.decay), (2400, 0.6));
        assert_eq!(with(&saved, 5.0, 200, 50.0).unwrap(), saved, "the same time changes nothing");
        // All of the 240 steps are left, 100 of them for the warm-up.
        let options = with(&saved, 1.0, 0, 0.0).unwrap();
        assert_eq!((options.steps, options.warmup, options.decay), (240, 100.0 / 240.0, 1.0 - 100.0 / 240.0));
        assert!(options.validate().is_ok());
        let warmer = TrainOptions { minutes: 10.0, warmup: 0.2, ..saved.clone() };
        assert_eq!(with_time(warmer, &saved, (200, 50.0), 4.0).unwrap().warmup, 0.2, "what is given stays");
        let settled = TrainOptions { minutes: 0.0, ..saved.clone() };
        assert!(with(&settled, 2.0, 1000, 60.0).is_ok());
        for seconds in [109.0, 131.0] {
            assert_eq!(with(&settled, 2.0, 1000, seconds).unwrap(), settled, "the time that it has taken");
        }
        for (saved, minutes, step, expected) in [
            (&saved, 0.8, 200, "minutes: expected more than the 0.83 that the run has taken, got 0.8"),
            (&settled, 2.0, 999, "minutes: the run has 1000 steps, which no time changes now; --steps does"),
        ] {
            let error = with(saved, minutes, step, 50.0).unwrap_err().to_string();
            assert_eq!(error, expected);
        }
    }
}
