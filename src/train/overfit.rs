//! Overfitting a single batch: the first thing to try with a new model.

use std::collections::HashMap;
use std::ops::ControlFlow;

use candle_core::{Result, bail};

use super::step::BadStep;
use super::{Schedule, StepOutcome, StepReport, TrainOptions, Trainer};
use crate::text::Batch;

/// How close to the lowest possible loss, in nats per token, counts as success.
const TOLERANCE_NATS: f64 = 0.05;

/// The result of overfitting one batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OverfitReport {
    /// Steps made.
    pub steps: u64,
    /// The loss before the first step, in nats per token.
    pub first_loss: f64,
    /// The loss before the last step.
    pub last_loss: f64,
    /// The lowest loss that any model can have on the batch. It is above 0 if the model sees the same at two positions
    /// that have different targets.
    pub lowest_possible: f64,
}

impl OverfitReport {
    /// Whether the loss came close to the lowest possible one.
    pub fn succeeded(&self) -> bool {
        self.last_loss - self.lowest_possible < TOLERANCE_NATS
    }
}

impl TrainOptions {
    /// These options without anything that keeps a model from overfitting one batch: a constant learning rate, and no
    /// weight decay, label smoothing, z-loss, moving average or ramps. The model should have no dropout.
    pub fn for_overfitting(&self) -> Self {
        Self {
            schedule: Schedule::Constant,
            weight_decay: 0.0,
            matrix_weight_decay: 0.0,
            label_smoothing: 0.0,
            z_loss: 0.0,
            batch_ramp: None,
            context_ramp: None,
            ema: 0.0,
            ..self.clone()
        }
    }
}

/// Trains on the batch of the next step (for a new trainer the first) repeatedly, until its loss is close to the lowest
/// possible or the options' steps are done. A sound model with sound options succeeds within a few hundred steps;
/// `on_step` can stop early.
///
/// # Errors
/// If the options have fewer than two steps, a step is bad or fails; see [`Trainer::next_step`].
pub fn overfit_one_batch(
    trainer: &mut Trainer,
    on_step: &mut dyn FnMut(&StepReport) -> ControlFlow<()>,
) -> Result<OverfitReport> {
    if trainer.options.steps < 2 {
        // The effect of the first step shows in the loss of the second.
        bail!("overfit one batch: expected steps of at least 2, got {}", trainer.options.steps);
    }
    let batch = trainer.next_batch()?;
    let lowest_possible = lowest_loss(&batch, trainer.config().architecture.is_rotary());
    let mut first_loss = None;
    loop {
        let report = match trainer.next_step_on(&batch)? {
            StepOutcome::Done(report) => report,
            StepOutcome::Skipped(bad) | StepOutcome::Failed(bad) => bail!("{bad}; {}", BadStep::ADVICE),
        };
        let first_loss = *first_loss.get_or_insert(report.loss);
        let overfit = OverfitReport { steps: report.step, first_loss, last_loss: report.loss, lowest_possible };
        if on_step(&report).is_break() || overfit.succeeded() || report.step >= trainer.options.steps {
            return Ok(overfit);
        }
    }
}

/// The mean entropy, in nats, of a target given what the model sees: the ids up to it of its sequence or, with isolated
/// documents, of its document.
///
/// With `relative_positions` it does not see where in the window a document begins, so equal beginnings of documents
/// are the same to it anywhere; otherwise only at the same position.
fn lowest_loss(batch: &Batch, relative_positions: bool) -> f64 {
    const START: usize = usize::MAX;
    // Numbers each different beginning: what came before it, its last id and, where this counts, its position.
    let mut numbers: HashMap<(usize, u32, usize), usize> = HashMap::new();
    let mut counts: HashMap<(usize, u32), f64> = HashMap::new();
    let mut totals: HashMap<usize, f64> = HashMap::new();
    for sequence in 0..batch.batch_size {
        let mut beginning = START;
        for position in 0..batch.seq_len {
            let place = sequence * batch.seq_len + position;
            if batch.documents.as_ref().is_some_and(|of| position > 0 && of[place] != of[place - 1]) {
                beginning = START;
            }
            let seen_position = if relative_positions { 0 } else { position };
            let next = numbers.len();
            beginning = *numbers.entry((beginning, batch.inputs[place], seen_position)).or_insert(next);
            *counts.entry((beginning, batch.targets[place])).or_default() += 1.0;
            *totals.entry(beginning).or_default() += 1.0;
        }
    }
    // Sorted, so that the sum has the same bits each time.
    let mut terms: Vec<f64> = counts.iter().map(|((of, _), n)| n * (totals[of] / n).ln()).collect();
    terms.sort_by(f64::total_cmp);
    terms.iter().sum::<f64>() / (batch.batch_size * batch.seq_len) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_that_begin_alike_and_go_on_differently_have_a_floor() {
        let batch = |inputs: &[[u32; 3]], targets: &[[u32; 3]]| Batch {
            inputs: inputs.concat(),
            targets: targets.concat(),
            batch_size: inputs.len(),
            seq_len: 3,
            starts: vec![0; inputs.len()],
            documents: None,
        };
        // In one piece each, so both kinds of positions have the same floor.
        let lowest = |batch: Batch| {
            let [absolute, relative] = [false, true].map(|relative| lowest_loss(&batch, relative));
            assert!((absolute - relative).abs() < 1e-15, "{absolute} {relative}");
            absolute
        };
        // Each begins differently: everything can be learned.
        assert_eq!(lowest(batch(&[[1, 2, 3], [2, 3, 4]], &[[2, 3, 4], [3, 4, 5]])), 0.0);
        // The same beginning twice, with two targets at the first position; after that they differ.
        let alike = lowest(batch(&[[1, 2, 3], [1, 4, 3]], &[[2, 3, 7], [4, 3, 8]]));
        assert!((alike - 2.0 * 2f64.ln() / 6.0).abs() < 1e-15, "{alike}");
        // Three equal ones, of which one continues differently.
        let one_of_three = lowest(batch(&[[1, 2, 3]; 3], &[[2, 3, 4], [2, 3, 4], [2, 3, 5]]));
        let expected = (2.0 * 1.5f64.ln() + 3f64.ln()) / 9.0;
        assert!((one_of_three - expected).abs() < 1e-15, "{one_of_three}");
        // Distinguished by what comes before, unless that is another document, which a position does not see.
        let before = batch(&[[1, 9, 3], [2, 9, 3]], &[[9, 3, 7], [9, 3, 8]]);
        assert_eq!(lowest(before.clone()), 0.0);
        let apart = lowest(before.with_isolated_documents(Some(9)));
        assert!((apart - 2.0 * 2f64.ln() / 6.0).abs() < 1e-15, "{apart}");
    }
    /// Two documents in a window, " ab" and " ac", and the first again in another.
    #[test]
    fn with_relative_positions_documents_that_begin_alike_have_a_floor_anywhere() {
        let inputs: Vec<u32> = vec![1, 2, 9, 1, 3, 9, 4, 9, 1, 2, 9, 1];
        let targets: Vec<u32> = vec![2, 9, 1, 3, 9, 4, 9, 1, 2, 9, 1, 2];
        let batch = Batch { inputs, targets, batch_size: 2, seq_len: 6, starts: vec![0, 6], documents: None };
        assert_eq!(lowest_loss(&batch, true), 0.0);
        let batch = batch.with_isolated_documents(Some(9));
        // At each position another document begins, so positions within the window tell all of them apart.
        assert_eq!(lowest_loss(&batch, false), 0.0);
        // The start of a document is 1 four times, with the targets 2, 3, 2, 2. An end after "1 2" is followed by 1
        // each time.
        let expected = (3.0 * (4.0f64 / 3.0).ln() + 4f64.ln()) / 12.0;
        let got = lowest_loss(&batch, true);
        assert!((got - expected).abs() < 1e-15, "{got}, expected {expected}");
    }
}
