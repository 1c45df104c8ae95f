//! The loss of a model in training on the validation part.

use std::ops::ControlFlow;

use candle_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Best, Trainer};
use crate::evaluate::evaluate;
use crate::text::{Rest, windows};

/// Tokens per validation batch: enough for large matrix products, few enough to need little memory.
pub const VALIDATION_BATCH_TOKENS: usize = 4096;

/// The result of a pass over the validation part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationReport {
    /// Steps done.
    pub step: u64,
    /// Mean cross-entropy over all non-overlapping windows, in nats per token.
    pub validation_loss: f64,
    /// The same in bits per byte of text.
    pub validation_bits_per_byte: f64,
    /// Whether it is the lowest so far.
    pub is_best: bool,
}

/// The outcome of an attempt to validate.
pub(super) enum Validated {
    Done(ValidationReport),
    BrokenOff,
    /// The loss is not finite; names the cause.
    NotFinite(String),
}

impl Trainer {
    /// The loss over the whole validation part: all non-overlapping windows of the context's length.
    ///
    /// # Errors
    /// If the corpus has no validation part, or the loss is not finite: the cause is named.
    pub fn validate(&mut self) -> Result<ValidationReport> {
        let validation = self.validate_while(&mut || ControlFlow::Continue(()))?;
        validation.ok_or_else(|| Error::Msg("validate: expected a loss, got none".into()))
    }

    /// [`Trainer::validate`], which `go_on`, called before each batch, can break off: then there is no report, and the
    /// validation [is pending](Self::validation_is_pending).
    ///
    /// # Errors
    /// Those of [`Trainer::validate`].
    pub fn validate_while(&mut self, go_on: &mut dyn FnMut() -> ControlFlow<()>) -> Result<Option<ValidationReport>> {
        match self.attempt_validation(go_on)? {
            Validated::Done(report) => Ok(Some(report)),
            Validated::BrokenOff => Ok(None),
            Validated::NotFinite(cause) => Err(Error::Msg(cause)),
        }
    }

    pub(super) fn attempt_validation(&mut self, go_on: &mut dyn FnMut() -> ControlFlow<()>) -> Result<Validated> {
        self.postpone_validation();
        let context_len = self.config().context_len;
        let batches = windows(&self.corpus.validation, context_len, self.validation_batch_size(), Rest::Drop)?;
        let separator = self.separator();
        let batches = batches.map(|batch| Ok(batch?.with_isolated_documents(separator)));
        let mut is_broken_off = false;
        let batches = batches.take_while(|_| {
            is_broken_off |= go_on().is_break();
            !is_broken_off
        });
        let evaluation = evaluate(&self.model, batches, &self.device);
        if is_broken_off {
            return Ok(Validated::BrokenOff);
        }
        let evaluation = evaluation?;
        if !evaluation.loss.is_finite() {
            let cause = match (self.non_finite_weight()?, self.first_bad_window()?) {
                (Some(name), _) => format!(", as {name} is no longer finite"),
                (None, Some(start)) => format!(", first in the window that starts at its token {start}"),
                (None, None) => String::new(),
            };
            let cause = format!("step {}: the validation loss is {}{cause}", self.step, evaluation.loss);
            return Ok(Validated::NotFinite(cause));
        }
        self.pending_validation = None;
        let is_best = self.best.is_none_or(|best| evaluation.loss < best.validation_loss);
        self.counters.without_improvement += 1;
        if is_best {
            self.counters.without_improvement = 0;
            self.best = Some(Best { step: self.step, validation_loss: evaluation.loss });
        }
        Ok(Validated::Done(ValidationReport {
            step: self.step,
            validation_loss: evaluation.loss,
            validation_bits_per_byte: evaluation
                .bits_per_byte(self.corpus.validation.len(), self.corpus.validation_bytes),
            is_best,
        }))
    }

    /// The number of batches of a pass over the validation part; 0 if there is none.
    pub fn validation_batches(&self) -> usize {
        let windows = self.corpus.validation.len().saturating_sub(1) / self.config().context_len;
        windows.div_ceil(self.validation_batch_size())
    }

    fn validation_batch_size(&self) -> usize {
        (VALIDATION_BATCH_TOKENS / self.config().context_len).max(1)
    }

    /// The start of the first window of the validation part whose own loss is not finite.
    fn first_bad_window(&self) -> Result<Option<usize>> {
        let context_len = self.config().context_len;
        for window in windows(&self.corpus.validation, context_len, 1, Rest::Drop)? {
            let window = window?.with_isolated_documents(self.separator());
            let start = window.starts.first().copied();
            if !evaluate(&self.model, std::iter::once(Ok(window)), &self.device)?.loss.is_finite() {
                return Ok(start);
            }
        }
        Ok(None)
    }

    /// Whether the validation of this step has been postponed or broken off: it comes before the next step.
    pub fn validation_is_pending(&self) -> bool {
        self.pending_validation == Some(self.step)
    }

    /// Marks the validation of this step as due and not yet made.
    pub(super) fn postpone_validation(&mut self) {
        self.pending_validation = Some(self.step);
    }
}
