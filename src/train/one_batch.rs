//! Overfitting a single batch: the first thing to try with a new model.

use std::ops::ControlFlow;

use super::{StepReport, TrainOptions, Trainer};
use crate::host::{Result, bail_option};
use crate::optim::Schedule;

/// The result of overfitting one batch.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct OverfitReport {
    /// Steps made.
    pub steps: u64,
    /// The loss before the first step, in nats per token.
    pub first_loss: f64,
    /// The loss before the last step.
    pub last_loss: f64,
}

impl OverfitReport {
    /// Whether the loss has fallen below a tenth of the first one. Some is left for positions that no model can tell apart,
    /// such as the first of sequences that begin alike.
    pub fn succeeded(&self) -> bool {
        self.last_loss < 0.1 * self.first_loss
    }
}

impl TrainOptions {
    /// These options without anything that keeps a model from overfitting one batch: a constant learning rate, and no
    /// weight decay, label smoothing or moving average. The model should have no dropout.
    pub fn for_overfitting(&self) -> Self {
        Self {
            minutes: 0.0,
            schedule: Schedule::Constant,
            weight_decay: 0.0,
            matrix_weight_decay: 0.0,
            label_smoothing: 0.0,
            average: 0.0,
            ..self.clone()
        }
    }
}

/// Trains on the batch of the next step (for a new trainer the first) repeatedly, until its loss has fallen below a
/// tenth of the first one or the options' steps are done. A sound model with sound options succeeds within a few hundred steps;
/// `on_step` can stop early.
///
/// # Errors
/// If the options have fewer than two steps, and those of [`Trainer::step`].
pub fn overfit_one_batch(
    trainer: &mut Trainer,
    on_step: &mut dyn FnMut(&StepReport) -> ControlFlow<()>,
) -> Result<OverfitReport> {
    let steps = trainer.options().steps;
    if steps < 2 {
        // The effect of the first step shows in the loss of the second.
        bail_option!("steps", "expected at least 2, to overfit one batch, got {steps}");
    }
    let batch = trainer.next_batch()?;
    let mut first_loss = None;
    loop {
        let report = trainer.step(&batch)?;
        let first_loss = *first_loss.get_or_insert(report.loss);
        let overfit = OverfitReport { steps: report.step, first_loss, last_loss: report.loss };
        if on_step(&report).is_break() || overfit.succeeded() || report.step >= steps {
            return Ok(overfit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_first_loss_is_what_has_to_be_reached() {
        let report = |last_loss| OverfitReport { steps: 5, first_loss: 4.0, last_loss };
        assert!(report(0.39).succeeded() && !report(0.4).succeeded() && !report(f64::NAN).succeeded());
    }

    #[test]
    fn what_keeps_a_model_from_learning_by_heart_is_turned_off_and_all_else_kept() {
        let kept = TrainOptions { lr: 0.017, batch: 7, seed: 3, ..Default::default() };
        let recipe = TrainOptions {
            schedule: Schedule::WarmupStableDecay,
            weight_decay: 0.3,
            matrix_weight_decay: 0.2,
            label_smoothing: 0.1,
            average: 0.9,
            ..kept.clone()
        };
        let expected =
            TrainOptions { schedule: Schedule::Constant, weight_decay: 0.0, matrix_weight_decay: 0.0, ..kept };
        assert_eq!(recipe.for_overfitting(), expected);
    }
}
