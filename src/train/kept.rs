//! What a run has kept, to look inside: its checkpoints, its best model, and the maps of the option `watch`.

use std::path::Path;

use candle_core::{DType, Device};

use super::latest::parse;
use super::resume::{model_files, weights};
use super::run_dir::held;
use super::{Best, checkpoint, ownership, watch};
use crate::host::file_names::{ADAPTER_WEIGHTS, WEIGHTS};
use crate::host::{Result, input};
use crate::inspect::AttentionMap;
use crate::model::CausalLm;
use crate::nn::Parameters;

/// The steps of the checkpoints that the run in `root` has kept, in order; none if it is not a run.
///
/// # Errors
/// If the folder cannot be read.
pub fn kept_steps(root: &Path) -> Result<Vec<u64>> {
    let training = root.join("training");
    let steps = if ownership::is_of_a_run(&training) { checkpoint::steps(&training)? } else { vec![] };
    Ok(steps.into_iter().rev().collect())
}

/// The model at one of them, without a graph: the average of the weights, if the run has one.
///
/// # Errors
/// If the checkpoint cannot be read or is damaged, or does not fit the run's configuration.
pub fn kept_model(root: &Path, step: u64, device: &Device) -> Result<CausalLm> {
    let path = checkpoint::path(&root.join("training"), step);
    let (state, tensors) = checkpoint::read(&path, device)?;
    let (config, base) = model_files(root, parse(&path, &state)?.trainer.base.as_deref(), device)?;
    let is_averaged = tensors.keys().any(|name| name.starts_with("average."));
    let kind = if is_averaged { "average" } else { "weight" };
    let vb = Parameters::restored(weights(&tensors, kind, &config, base.as_ref()))?.frozen(DType::F32, device);
    Ok(match &base {
        None => CausalLm::new(&config, vb)?,
        Some(base) => base.with_adapters(&config, vb)?,
    })
}

/// The step and the validation loss of the weights in the folder `root`, if they are those of a run that has validated.
pub fn best_of(root: &Path) -> Option<Best> {
    [WEIGHTS, ADAPTER_WEIGHTS].into_iter().find_map(|name| held(root, name))
}

/// The steps at which the run in `root` has kept attention maps of the text of its option `watch`, in order; none if it has
/// not, or is not a run.
///
/// # Errors
/// If the folder cannot be read.
pub fn watched_steps(root: &Path) -> Result<Vec<u64>> {
    watch::steps(&root.join("training"))
}

/// The attention map of one of them.
///
/// # Errors
/// If it cannot be read.
pub fn watched_map(root: &Path, step: u64) -> Result<AttentionMap> {
    AttentionMap::open(&checkpoint::path(&input::inside(&root.join("training"), watch::FOLDER)?, step))
}
