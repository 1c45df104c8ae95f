//! The validation of a model in training.

use std::ops::ControlFlow;

use super::super::bits_per_byte;
use super::super::evaluate::evaluate_windows;
use super::{Best, TrainState, Trainer};
use crate::host::{Error, Result};
use crate::text::BatchSampler;

/// The result of a pass over the validation part.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ValidationReport {
    /// Steps done.
    pub step: u64,
    /// Mean cross-entropy over all non-overlapping windows, in nats per token.
    pub loss: f64,
    /// The same in bits per byte of text.
    pub bits_per_byte: f64,
    /// Whether it is the lowest so far.
    pub is_best: bool,
}

impl Trainer {
    /// The loss over the whole validation part: all non-overlapping windows of the length trained on. `on_batch` is told,
    /// before each batch, how many of how many tokens are done or in progress, and may break off: then there is no
    /// result. After [`Trainer::divide`] each process is told of its own batches, and none can break off.
    ///
    /// # Errors
    /// If the corpus has no validation part, or the loss is not finite.
    pub fn validate(
        &mut self,
        on_batch: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<ValidationReport>> {
        let (step, ids) = (self.state.step, &self.corpus.validation);
        let BatchSampler { context_len, separator, .. } = self.sampler();
        let evaluation =
            evaluate_windows(&self.model, ids, (context_len, true), separator, self.processes(), on_batch)?;
        let Some(evaluation) = evaluation else { return Ok(None) };
        let loss = evaluation.loss;
        if !loss.is_finite() {
            return Err(Error::Diverged { step, what: "the validation loss".into(), value: loss });
        }
        let is_best = self.state.best.is_none_or(|best| loss < best.loss);
        let TrainState { best, without_improvement, validated, .. } = &mut self.state;
        *validated = step;
        *without_improvement = if is_best { 0 } else { *without_improvement + 1 };
        *best = if is_best { Some(Best { step, loss }) } else { *best };
        let bits_per_byte = self.validation_bits_per_byte(loss);
        Ok(Some(ValidationReport { step, loss, bits_per_byte, is_best }))
    }

    /// A validation loss, such as that of [`Trainer::best`], in bits per byte of the validation part.
    pub fn validation_bits_per_byte(&self, loss: f64) -> f64 {
        bits_per_byte(loss, self.corpus.validation.learned(), self.corpus.validation_bytes)
    }

    /// A loss on the training part in bits per byte.
    pub fn training_bits_per_byte(&self, loss: f64) -> f64 {
        bits_per_byte(loss, self.corpus.train.learned(), self.corpus.train_bytes)
    }

    /// Whether this step ends with a validation, or a checkpoint where there is no validation text, that is still to be
    /// made.
    pub(in crate::train) fn validation_is_due(&self) -> bool {
        let step = self.state.step;
        let every = self.eval_interval();
        step > self.state.validated && (step == self.options.last_step() || step.is_multiple_of(every))
    }

    /// Steps between validations.
    pub(in crate::train) fn eval_interval(&self) -> u64 {
        self.options.eval_interval(self.corpus.validation.len(), self.options.window_len(self.config()))
    }

    /// The lowest validation loss so far.
    pub fn best(&self) -> Option<Best> {
        self.state.best
    }

    /// Validations since the one with the lowest loss.
    pub fn validations_without_improvement(&self) -> u64 {
        self.state.without_improvement
    }

    /// Whether there have been as many validations without improvement as the options' patience allows.
    pub(in crate::train) fn is_out_of_patience(&self) -> bool {
        self.options.patience > 0 && self.state.without_improvement >= self.options.patience
    }
}
