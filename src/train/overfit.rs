//! One batch, learned by heart: the first thing to try on a new model.

use std::collections::HashMap;
use std::ops::ControlFlow;

use candle_core::{Result, bail};

use super::step::BadStep;
use super::{Schedule, StepOutcome, StepReport, TrainOptions, Trainer};
use crate::text::Batch;

/// How near to the lowest possible loss, in nats a token, is near enough.
const NEAR: f64 = 0.05;

/// What became of learning one batch by heart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OverfitReport {
    /// Steps made.
    pub steps: u64,
    /// The loss before the first step, in nats a token.
    pub first_loss: f64,
    /// The loss before the last step.
    pub last_loss: f64,
    /// The lowest loss that a model can have on the batch: where two sequences begin alike and go on differently, nothing
    /// tells them apart.
    pub lowest_possible: f64,
}

impl OverfitReport {
    /// Whether the loss came near the lowest possible one.
    pub fn succeeded(&self) -> bool {
        self.last_loss - self.lowest_possible < NEAR
    }
}

impl TrainOptions {
    /// The same with nothing that keeps a model from learning one batch by heart: a constant rate, no weight decay, no label
    /// smoothing, no z-loss, no average, no ramps. The model should have no dropout.
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

/// Trains on the batch of the next step, for a new trainer the first, again and again, until its loss is near the lowest
/// possible or the steps of the options are made. A model and options that are sound succeed within some hundred steps;
/// `on_step` may break off.
///
/// # Errors
/// If the options have fewer than two steps, a step is bad or fails; see [`Trainer::next_step`].
pub fn overfit_one_batch(
    trainer: &mut Trainer,
    on_step: &mut dyn FnMut(&StepReport) -> ControlFlow<()>,
) -> Result<OverfitReport> {
    if trainer.options.steps < 2 {
        // What the first step learns is seen by the loss of the second.
        bail!("overfit one batch: expected steps of at least 2, got {}", trainer.options.steps);
    }
    let batch = trainer.next_batch()?;
    let lowest_possible = lowest_loss(&batch);
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

/// The mean entropy of a target, given all ids of its sequence up to it, in nats: over the positions of the batch.
fn lowest_loss(batch: &Batch) -> f64 {
    let (b, t) = (batch.batch_size, batch.seq_len);
    // The number of what each sequence has been so far: sequences that began alike share it.
    let mut beginnings = vec![0usize; b];
    let documents = batch.documents.as_ref();
    let mut sum = 0.0;
    for position in 0..t {
        let mut numbers = HashMap::new();
        let mut counts: HashMap<(usize, u32), f64> = HashMap::new();
        let mut totals: HashMap<usize, f64> = HashMap::new();
        for (sequence, beginning) in beginnings.iter_mut().enumerate() {
            let place = sequence * t + position;
            if documents.is_some_and(|numbers| position > 0 && numbers[place] != numbers[place - 1]) {
                // Nothing before this position is seen.
                *beginning = usize::MAX;
            }
            let next = numbers.len();
            *beginning = *numbers.entry((*beginning, batch.inputs[place])).or_insert(next);
            *counts.entry((*beginning, batch.targets[place])).or_default() += 1.0;
            *totals.entry(*beginning).or_default() += 1.0;
        }
        // In a fixed order, so that the sum has the same bits each time.
        let mut terms: Vec<f64> = counts.iter().map(|((of, _), n)| n * (totals[of] / n).ln()).collect();
        terms.sort_by(f64::total_cmp);
        sum += terms.iter().sum::<f64>();
    }
    sum / (b * t) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_that_begin_alike_and_go_on_differently_cannot_be_told_apart() {
        let batch = |inputs: &[[u32; 3]], targets: &[[u32; 3]]| Batch {
            inputs: inputs.concat(),
            targets: targets.concat(),
            batch_size: inputs.len(),
            seq_len: 3,
            starts: vec![0; inputs.len()],
            documents: None,
        };
        // Each begins in its own way: all can be learned.
        assert_eq!(lowest_loss(&batch(&[[1, 2, 3], [2, 3, 4]], &[[2, 3, 4], [3, 4, 5]])), 0.0);
        // The same beginning twice, with two targets at the first position; then they are told apart.
        let alike = lowest_loss(&batch(&[[1, 2, 3], [1, 4, 3]], &[[2, 3, 7], [4, 3, 8]]));
        assert!((alike - 2.0 * 2f64.ln() / 6.0).abs() < 1e-15, "{alike}");
        // Three of one, of which one goes on differently.
        let one_of_three = lowest_loss(&batch(&[[1, 2, 3]; 3], &[[2, 3, 4], [2, 3, 4], [2, 3, 5]]));
        let expected = (2.0 * 1.5f64.ln() + 3f64.ln()) / 9.0;
        assert!((one_of_three - expected).abs() < 1e-15, "{one_of_three}");
        // Told apart by what is before, unless that is another document, which a position does not see.
        let before = batch(&[[1, 9, 3], [2, 9, 3]], &[[9, 3, 7], [9, 3, 8]]);
        assert_eq!(lowest_loss(&before), 0.0);
        let apart = lowest_loss(&before.kept_apart(Some(9)));
        assert!((apart - 2.0 * 2f64.ln() / 6.0).abs() < 1e-15, "{apart}");
    }
}
