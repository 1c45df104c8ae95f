//! One step of training.

use super::super::gradients::{LossAndGradients, sum_of_shards};
use super::super::part::Summed;
use super::super::statistics::{self, TensorStatistics};
use super::{TrainOptions, Trainer};
use crate::host::{Error, Result};
use crate::model::DropoutSource;
use crate::optim::{Rates, clip_factor, global_norm, norm_of_all};
use crate::processes::share;
use crate::text::Batch;

/// The result of one step of training.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// Steps done, including this one.
    pub step: u64,
    /// The steps of the whole run; while the time is to decide on them, as many as are expected now.
    pub steps: u64,
    /// The mean loss of the batch before the step, in nats per token: cross-entropy, with label smoothing if that is on. 0
    /// if no token counts, as where all windows lie outside the assistant's turns: then only momentum and
    /// weight decay move the weights.
    pub loss: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// The global norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// The number of tokens in the batch.
    pub tokens: usize,
    /// The norms of every tensor, if the options ask for them at this step.
    pub statistics: Vec<TensorStatistics>,
}

impl Trainer {
    /// The batch of the next step: a function of the seed and the step's number.
    ///
    /// # Errors
    /// If the ids cannot be read.
    pub fn next_batch(&self) -> Result<Batch> {
        self.sampler().batch(&self.corpus.train, self.state.step, self.model.device())
    }

    /// Makes one optimizer step on a batch: loss, backward, check, clip, rate, update.
    ///
    /// # Errors
    /// If the loss or a gradient is not finite, or a gradient is missing; then nothing has been updated.
    pub fn step(&mut self, batch: &Batch) -> Result<StepReport> {
        let step = self.state.step + 1;
        let dropout = DropoutSource { seed: self.options.seed, step: self.state.step, first_sequence: 0 };
        let Summed { loss, norms, gradients } = self.gradients(batch, dropout)?;
        let gradient_norm = norm_of_all(&norms);
        self.check(loss, &norms)?;
        if batch.learned()? > 0 {
            self.state.audit.observe(self.vars.iter().map(|(name, _)| name).zip(norms.iter().copied()))?;
        }
        let scale = if self.options.clip > 0.0 { clip_factor(gradient_norm, self.options.clip) } else { 1.0 };
        let learning_rate = self.options.lr * self.options.lr_schedule().factor(self.state.step);
        let every = self.options.statistics_every;
        let before = (every > 0 && step.is_multiple_of(every)).then(|| statistics::copies(&self.vars)).transpose()?;
        self.optimizer.step(&gradients, &self.rates(learning_rate, scale))?;
        if let Some(part) = &self.part {
            part.publish()?;
        }
        self.state.step = step;
        if let Some(average) = &mut self.average {
            average.update(&self.vars, self.options.average_span(step))?;
        }
        let statistics = before.map(|before| statistics::statistics(&self.vars, &before, &norms)).transpose()?;
        let (tokens, statistics) = (batch.tokens(), statistics.unwrap_or_default());
        let steps = self.options.steps;
        Ok(StepReport { step, steps, loss, learning_rate, gradient_norm, tokens, statistics })
    }

    /// The loss of a batch and its gradients: of what this process updates.
    fn gradients(&self, batch: &Batch, dropout: DropoutSource) -> Result<Summed> {
        let shards = self.options.shards_of(batch.size()).len();
        let own = share(shards, self.processes());
        let tree = sum_of_shards(&self.trainable, &self.vars, batch, &self.options, dropout, own)?;
        if let Some(part) = &self.part {
            return part.sum(tree, shards);
        }
        let LossAndGradients { loss, gradients } = LossAndGradients::of(tree)?;
        Ok(Summed { loss, norms: global_norm(&gradients)?.0, gradients })
    }

    /// Stops at a loss or gradient that is not finite.
    fn check(&self, loss: f64, norms: &[f64]) -> Result<()> {
        let step = self.state.step + 1;
        if !loss.is_finite() {
            return Err(Error::Diverged { step, what: "the loss".into(), value: loss });
        }
        let named = || self.vars.iter().map(|(name, _)| name).zip(norms.iter().copied());
        if let Some((name, norm)) = named().find(|(_, norm)| !norm.is_finite()) {
            return Err(Error::Diverged { step, what: format!("the gradient of {name}"), value: norm });
        }
        Ok(())
    }

    fn rates(&self, lr: f64, gradient_scale: f64) -> Rates {
        /// The constant that AdamW adds to the denominator.
        const EPS: f64 = 1e-8;
        let &TrainOptions { beta1, beta2, momentum, .. } = &self.options;
        Rates { lr, gradient_scale, step: self.state.step + 1, betas: (beta1, beta2), eps: EPS, momentum }
    }
}
