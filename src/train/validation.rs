//! How a model in training does on the validation part.

use std::ops::ControlFlow;

use candle_core::{Error, Result, bail};
use serde::{Deserialize, Serialize};

use super::step::BadStep;
use super::{Best, Trainer};
use crate::evaluate::evaluate;
use crate::text::{Rest, windows};

/// Tokens of a validation batch: enough for large matrix products, few enough to stay small in memory.
pub const VALIDATION_BATCH_TOKENS: usize = 4096;

/// What a pass over the validation part gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationReport {
    /// Steps done.
    pub step: u64,
    /// Mean cross-entropy over all non-overlapping windows, in nats a token.
    pub validation_loss: f64,
    /// The same in bits a byte of text.
    pub validation_bits_per_byte: f64,
    /// Whether it is the lowest so far.
    pub is_best: bool,
}

impl Trainer {
    /// The loss over the whole validation part, all non-overlapping windows of the context's length.
    ///
    /// # Errors
    /// If the corpus has no validation part, or the loss is not finite: what is, is named.
    pub fn validate(&mut self) -> Result<ValidationReport> {
        let validation = self.validate_while(&mut || ControlFlow::Continue(()))?;
        validation.ok_or_else(|| Error::Msg("validate: nobody broke it off, and there is no loss".into()))
    }

    /// [`Trainer::validate`], broken off as soon as `go_on` says so, which is asked before each batch: then there is no
    /// report, and the validation [is pending](Self::validation_is_pending).
    ///
    /// # Errors
    /// Those of [`Trainer::validate`].
    pub fn validate_while(&mut self, go_on: &mut dyn FnMut() -> ControlFlow<()>) -> Result<Option<ValidationReport>> {
        self.broken_off_at = Some(self.step);
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
            return Ok(None);
        }
        let evaluation = evaluation?;
        self.broken_off_at = None;
        if !evaluation.loss.is_finite() {
            let cause = match (self.unsound_weight()?, self.first_bad_window()?) {
                (Some(name), _) => format!(", as {name} is no longer finite"),
                (None, Some(start)) => format!(", first in the window that starts at its token {start}"),
                (None, None) => String::new(),
            };
            bail!("step {}: the validation loss is {}{cause}; {}", self.step, evaluation.loss, BadStep::ADVICE);
        }
        let is_best = self.best.is_none_or(|best| evaluation.loss < best.validation_loss);
        self.counters.without_improvement += 1;
        if is_best {
            self.counters.without_improvement = 0;
            self.best = Some(Best { step: self.step, validation_loss: evaluation.loss });
        }
        Ok(Some(ValidationReport {
            step: self.step,
            validation_loss: evaluation.loss,
            validation_bits_per_byte: evaluation
                .bits_per_byte(self.corpus.validation.len(), self.corpus.validation_bytes),
            is_best,
        }))
    }

    /// The batches of a pass over the validation part; 0 where there is none.
    pub fn validation_batches(&self) -> usize {
        let windows = self.corpus.validation.len().saturating_sub(1) / self.config().context_len;
        windows.div_ceil(self.validation_batch_size())
    }

    fn validation_batch_size(&self) -> usize {
        (VALIDATION_BATCH_TOKENS / self.config().context_len).max(1)
    }

    /// Where the first window of the validation part starts whose own loss is not finite.
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

    /// Whether a validation was broken off at this step: it is the next thing to do.
    pub fn validation_is_pending(&self) -> bool {
        self.broken_off_at == Some(self.step)
    }
}
