//! The disk space that a run takes, checked before it is created and before each save.

use super::Trainer;
use crate::model::ModelConfig;

/// An upper bound on what a file of tensors contains beside their values.
const HEADER: u64 = 1 << 20;

/// The most bytes of a step in metrics and event file.
const STEP: u64 = 512;
/// The most bytes of a tensor's norms in both.
const TENSOR: u64 = 1024;
/// The most bytes reserved for the metrics: in a longer time without a save the metrics themselves meet the full disk.
const MOST_METRICS: u64 = 64 << 20;

/// Bytes that a new run takes: its best, its current and its next checkpoint; the weights at the root and their
/// replacement; the ids; the metrics up to the next save.
pub(super) fn of_run(trainer: &Trainer) -> u64 {
    3 * checkpoint(trainer) + 2 * weights(trainer.config()) + trainer.corpus().bytes_to_save() + metrics(trainer)
}

/// Bytes that a save takes: a checkpoint, possibly new weights at the root, and the metrics up to the next save.
pub(super) fn of_save(trainer: &Trainer) -> u64 {
    checkpoint(trainer) + weights(trainer.config()) + metrics(trainer)
}

/// The most bytes of a model's weights: biases that it lacks are written as zeros.
fn weights(config: &ModelConfig) -> u64 {
    let weights = 4 * config.parameter_count() as u64;
    weights + weights / 50 + HEADER
}

/// The most bytes of a checkpoint: weights and moments, and with an average the weights in training as well.
fn checkpoint(trainer: &Trainer) -> u64 {
    let moments = trainer.moments();
    let moments = moments.iter().map(|(_, tensor)| 4 * tensor.elem_count() as u64).sum::<u64>();
    weights(trainer.config()) + moments + HEADER
}

/// The most bytes that metrics and event file grow by up to the next save.
fn metrics(trainer: &Trainer) -> u64 {
    let options = trainer.options();
    let steps = options.eval_every.min(options.steps.saturating_sub(trainer.step()));
    let reports = steps.checked_div(options.statistics_every).unwrap_or(0);
    let tensors = trainer.vars.len() as u64;
    steps.saturating_mul(STEP).saturating_add(reports.saturating_mul(tensors * TENSOR)).min(MOST_METRICS)
}
