//! What a run takes of the disk, asked for before it is begun and before each save.

use super::Trainer;
use crate::model::ModelConfig;

/// The names of tensors and what else stands beside them in a file, at most.
const HEADER: u64 = 1 << 20;

/// A step in the metrics and in the event file, at most.
const STEP: u64 = 512;
/// The norms of a tensor in both, at most.
const TENSOR: u64 = 1024;
/// What is asked for the metrics, at most: who trains for so long without a save hears of a full disk from the metrics.
const MOST_METRICS: u64 = 64 << 20;

/// Bytes that a new run takes: its best checkpoint, its last and the next; the weights at the root and their next; the ids;
/// the metrics up to the next save.
pub(super) fn of_run(trainer: &Trainer) -> u64 {
    3 * checkpoint(trainer) + 2 * weights(trainer.config()) + trainer.corpus().bytes_to_save() + metrics(trainer)
}

/// Bytes that a save takes: a checkpoint, perhaps a copy of the weights at the root, and the metrics up to the next save.
pub(super) fn of_save(trainer: &Trainer) -> u64 {
    checkpoint(trainer) + weights(trainer.config()) + metrics(trainer)
}

/// A model's weights, at most: biases that it has not are written as zeros.
fn weights(config: &ModelConfig) -> u64 {
    let weights = 4 * config.parameter_count() as u64;
    weights + weights / 50 + HEADER
}

/// Weights and moments, and of an average the weights in training too.
fn checkpoint(trainer: &Trainer) -> u64 {
    let moments = trainer.moments();
    let moments = moments.iter().map(|(_, tensor)| 4 * tensor.elem_count() as u64).sum::<u64>();
    weights(trainer.config()) + moments + HEADER
}

/// Metrics and event file up to the next save.
fn metrics(trainer: &Trainer) -> u64 {
    let options = trainer.options();
    let steps = options.eval_every.min(options.steps.saturating_sub(trainer.step()));
    let reports = steps.checked_div(options.statistics_every).unwrap_or(0);
    let tensors = trainer.vars.len() as u64;
    steps.saturating_mul(STEP).saturating_add(reports.saturating_mul(tensors * TENSOR)).min(MOST_METRICS)
}
