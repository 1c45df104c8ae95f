//! One step of training, and the handling of bad ones.

use std::fmt;

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize, Serializer};

use super::average::WeightAverage;
use super::backward::Backward;
use super::statistics::Before;
use super::{Gradients, StatisticsReport, Trainer};
use crate::model::DropoutSource;
use crate::ops;
use crate::text::Batch;

/// The result of one step of training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Steps done, including this one.
    pub step: u64,
    /// The mean loss of the batch before the step, in nats per token: cross-entropy, with label smoothing and z-loss if
    /// these are on.
    pub loss: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// The global norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// The number of tokens in the batch.
    pub tokens: usize,
}

/// A step whose loss or gradient is not finite, or too large to be used. It has updated nothing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BadStep {
    /// The number of the step, counted from 1.
    pub step: u64,
    /// What is wrong, and at which tensor.
    #[serde(rename = "skipped")]
    pub reason: String,
    /// The positions in the ids at which the sequences of the batch start.
    #[serde(serialize_with = "as_text")]
    pub sequences: Vec<usize>,
    /// The starts of the sequences that are bad alone; there are none if only their sum is too large.
    #[serde(serialize_with = "as_text")]
    pub bad_sequences: Vec<usize>,
    /// Steps skipped so far, including this one.
    pub skipped_steps: u64,
}

/// As text: a plot of the metrics would take numbers for quantities.
fn as_text<S: Serializer>(starts: &[usize], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    let starts: Vec<String> = starts.iter().map(usize::to_string).collect();
    serializer.serialize_str(&starts.join(" "))
}

impl fmt::Display for BadStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, reason, sequences, bad_sequences, .. } = self;
        let shortened = |starts: &[usize]| {
            const MOST: usize = 16;
            let shown: Vec<String> = starts.iter().take(MOST).map(usize::to_string).collect();
            let rest = starts.len().saturating_sub(MOST);
            if rest > 0 { format!("{} and {rest} more", shown.join(", ")) } else { shown.join(", ") }
        };
        write!(f, "step {step}: {reason}; of the batch's {} sequences ", sequences.len())?;
        match bad_sequences.len() {
            0 => write!(f, "none is bad on its own (they start at tokens {})", shortened(sequences)),
            n if n == sequences.len() => write!(f, "all are bad (they start at tokens {})", shortened(sequences)),
            _ => write!(f, "those that start at tokens {} are bad", shortened(bad_sequences)),
        }
    }
}

/// Loss and gradients of a step.
struct Computed {
    loss: f64,
    gradients: Gradients,
    /// The norm of each gradient.
    norms: Vec<f64>,
}

/// The outcome of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum StepOutcome {
    /// It was made.
    Done(StepReport),
    /// It was bad and is skipped: the next step has another batch.
    Skipped(BadStep),
    /// It was bad and may not be skipped.
    Failed(BadStep),
}

impl Trainer {
    /// Makes one optimizer step: batch, loss, gradients, audit, clipping, update.
    ///
    /// # Errors
    /// If the step is bad, or the gradient audit fails; then nothing has been updated.
    pub fn train_step(&mut self) -> Result<StepReport> {
        let batch = self.next_batch()?;
        self.train_step_on(&batch)
    }

    /// Makes one optimizer step on the given batch.
    ///
    /// # Errors
    /// Those of [`Trainer::train_step`] and of [`Batch::check`].
    pub fn train_step_on(&mut self, batch: &Batch) -> Result<StepReport> {
        match self.attempt(batch)? {
            Ok(report) => Ok(report),
            Err(bad) => bail!("{bad}; {}", BadStep::ADVICE),
        }
    }

    /// As [`Trainer::train_step`], but a bad step is not an error: it is skipped, if the options allow another one in a
    /// row and the weights are sound.
    ///
    /// # Errors
    /// If the gradient audit fails; then nothing has been updated.
    pub fn next_step(&mut self) -> Result<StepOutcome> {
        let batch = self.next_batch()?;
        self.next_step_on(&batch)
    }

    /// As [`Trainer::next_step`], on the given batch.
    ///
    /// # Errors
    /// Those of [`Trainer::next_step`] and of [`Batch::check`].
    pub fn next_step_on(&mut self, batch: &Batch) -> Result<StepOutcome> {
        let mut bad = match self.attempt(batch)? {
            Ok(report) => return Ok(StepOutcome::Done(report)),
            Err(bad) => bad,
        };
        if !self.may_skip()? {
            return Ok(StepOutcome::Failed(bad));
        }
        self.counters.skipped += 1;
        self.counters.skipped_in_a_row += 1;
        bad.skipped_steps = self.counters.skipped;
        self.step += 1;
        Ok(StepOutcome::Skipped(bad))
    }

    /// Why nothing can be learned from this state on, if so: a weight is not finite, most sequences of the next batches
    /// are bad, or all their gradients are zero, as in a saturated model. Nothing is changed.
    pub(super) fn divergence(&self) -> Result<Option<String>> {
        /// A single bad sequence may be the fault of the data.
        const ENOUGH_SEQUENCES: usize = 4;
        let step = self.step;
        if let Some(name) = self.non_finite_weight()? {
            return Ok(Some(format!("step {step}: {name} is no longer finite")));
        }
        let (mut cause, mut sequences) = (None, 0);
        for ahead in 0..ENOUGH_SEQUENCES as u64 {
            // An error of another kind is for the step itself to report.
            let Ok(batch) = self.batch_of(step.saturating_add(ahead)) else { return Ok(None) };
            let its_cause = match self.compute(&batch) {
                Ok(Ok(computed)) if computed.norms.iter().all(|norm| *norm == 0.0) => {
                    format!("step {}: all gradients are zero", step + 1)
                }
                Ok(Err(bad)) if bad.is_mostly_bad() => bad.to_string(),
                _ => return Ok(None),
            };
            cause.get_or_insert(its_cause);
            sequences += batch.batch_size;
            if sequences >= ENOUGH_SEQUENCES {
                break;
            }
        }
        Ok(cause)
    }

    fn may_skip(&self) -> Result<bool> {
        Ok(self.counters.skipped_in_a_row < self.options.skip_bad_steps && self.non_finite_weight()?.is_none())
    }

    /// The norms of every tensor at the last step, if the options ask for them at that step.
    pub fn statistics(&self) -> Option<&StatisticsReport> {
        self.statistics.as_ref()
    }

    /// The first tensor whose weights, or their average, are not finite.
    pub(super) fn non_finite_weight(&self) -> Result<Option<&str>> {
        let averaged = self.average.iter().flat_map(WeightAverage::vars);
        for (name, var) in self.vars.iter().chain(averaged) {
            if !ops::euclidean_norm(var)?.is_finite() {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    pub(super) fn next_batch(&self) -> Result<Batch> {
        self.batch_of(self.step)
    }

    fn batch_of(&self, step: u64) -> Result<Batch> {
        let sampler = self.options.sampler_at(step, self.config().context_len);
        Ok(sampler.batch(&self.corpus.train, step)?.with_isolated_documents(self.separator()))
    }

    /// Makes the step, unless it is bad.
    fn attempt(&mut self, batch: &Batch) -> Result<std::result::Result<StepReport, BadStep>> {
        batch.check()?;
        self.statistics = None;
        if !self.is_recording_checked {
            self.backward().check_recording(batch)?;
        }
        let Computed { loss, mut gradients, norms } = match self.compute(batch)? {
            Ok(computed) => computed,
            Err(bad) => return Ok(Err(bad)),
        };
        self.is_recording_checked = true;
        self.audit.observe(self.vars.iter().map(|(name, _)| name).zip(norms.iter().copied()))?;
        let gradient_norm = norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt();
        if self.options.clip_norm > 0.0 {
            gradients.clip(gradient_norm, self.options.clip_norm);
        }
        let learning_rate = self.options.learning_rate_at(self.step);
        self.update(&gradients, &norms, learning_rate)?;
        Ok(Ok(StepReport { step: self.step, loss, learning_rate, gradient_norm, tokens: batch.targets.len() }))
    }

    /// Loss and gradients of the next step on `batch`, unless it is bad.
    fn compute(&self, batch: &Batch) -> Result<std::result::Result<Computed, BadStep>> {
        let backward = self.backward();
        let (loss, gradients) = backward.gradients(batch, self.options.shards, self.options.accumulate)?;
        let norms = gradients.norms()?;
        let Some(mut reason) = self.fault(loss, &norms) else { return Ok(Ok(Computed { loss, gradients, norms })) };
        if let Some(name) = self.non_finite_weight()? {
            reason = format!("{reason}, as {name} became non-finite in the previous update");
        }
        let bad = backward.bad_sequences(batch, |loss, norms| self.fault(loss, norms).is_some())?;
        let bad = bad.into_iter().filter_map(|i| batch.starts.get(i).copied()).collect();
        let (step, sequences, skipped_steps) = (self.step + 1, batch.starts.clone(), self.counters.skipped);
        Ok(Err(BadStep { step, reason, sequences, bad_sequences: bad, skipped_steps }))
    }

    /// Updates the weights, their average and the statistics.
    fn update(&mut self, gradients: &Gradients, norms: &[f64], learning_rate: f64) -> Result<()> {
        // A skipped step has not touched the moments, so their bias depends on the number of updates.
        let updates = self.step.saturating_sub(self.counters.skipped);
        let every = self.options.statistics_every;
        let is_watched = every > 0 && (self.step + 1).is_multiple_of(every);
        let before = is_watched.then(|| Before::new(&self.vars)).transpose()?;
        self.optimizer.step(gradients, updates, learning_rate)?;
        self.step += 1;
        self.counters.skipped_in_a_row = 0;
        if let Some(average) = &mut self.average {
            average.update(&self.vars, updates + 1)?;
        }
        self.statistics = before.map(|before| before.report(self.step, &self.vars, norms)).transpose()?;
        Ok(())
    }

    fn backward(&self) -> Backward<'_> {
        let dropout = DropoutSource { seed: self.options.seed, step: self.step, first_sequence: 0 };
        Backward {
            model: &self.trainable,
            vars: &self.vars,
            device: &self.device,
            dropout,
            label_smoothing: self.options.label_smoothing,
            z_loss: self.options.z_loss,
        }
    }

    /// What is wrong with this loss and the gradients of these norms, if anything.
    fn fault(&self, loss: f64, norms: &[f64]) -> Option<String> {
        if let Some(((name, _), norm)) = self.vars.iter().zip(norms).find(|(_, norm)| !norm.is_finite()) {
            return Some(format!("the norm of the gradient of {name} is {norm}, the loss is {loss}"));
        }
        // Gradients are squared in `f32`, after clipping.
        let most = f64::from(f32::MAX).sqrt();
        let is_clipped = self.options.clip_norm > 0.0 && self.options.clip_norm <= most;
        if !is_clipped && let Some(((name, _), norm)) = self.vars.iter().zip(norms).find(|(_, norm)| **norm > most) {
            return Some(format!("the norm of the gradient of {name} is {norm:.1e}, and its square beyond f32"));
        }
        (!loss.is_finite()).then(|| format!("the loss is {loss}"))
    }
}

impl BadStep {
    /// Whether most sequences are bad: then the weights are at fault, not the data.
    pub(super) fn is_mostly_bad(&self) -> bool {
        2 * self.bad_sequences.len() > self.sequences.len()
    }

    /// What often helps against bad steps.
    pub(super) const ADVICE: &str = "a lower learning rate may help";
}
