//! Which options train something.

use std::fmt;

use candle_core::{Result, bail};

use super::{Schedule, TrainOptions};
use crate::model::ModelConfig;
use crate::text::{Corpus, Separator};

/// What a number may be.
#[derive(Clone, Copy)]
enum Range {
    Positive,
    NotNegative,
    /// A share, a decay.
    BelowOne,
}

use Range::{BelowOne, NotNegative, Positive};

impl Range {
    fn has(self, x: f64) -> bool {
        match self {
            Positive => x > 0.0 && x.is_finite(),
            NotNegative => x >= 0.0 && x.is_finite(),
            BelowOne => (0.0..1.0).contains(&x),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Positive => "above 0",
            NotNegative => "of at least 0",
            BelowOne => "from 0 to below 1",
        })
    }
}

impl TrainOptions {
    /// Refuses values that train nothing.
    ///
    /// # Errors
    /// Naming the option, what it expects and what it got.
    pub fn validate(&self) -> Result<()> {
        self.validate_counts()?;
        self.validate_numbers()?;
        self.validate_schedule()
    }

    /// Refuses values that train nothing, or not this model on this corpus.
    ///
    /// # Errors
    /// Naming the option, what it expects and what it got.
    pub fn validate_for(&self, config: &ModelConfig, corpus: &Corpus) -> Result<()> {
        self.validate()?;
        match corpus.separator {
            Separator::Unneeded if self.isolate_documents => {
                bail!("train options: isolate_documents expects several documents, got one");
            }
            Separator::Missing if self.isolate_documents => bail!(
                "train options: isolate_documents expects an end-of-text token between documents, got a tokenizer without one"
            ),
            _ => {}
        }
        if self.head_learning_rate.is_some() && config.tie_embeddings {
            bail!("train options: head_learning_rate expects a head of its own, got one tied to the token embedding");
        }
        if self.patience > 0 && corpus.validation.is_empty() {
            bail!("train options: patience expects a text to validate on, got none");
        }
        self.check_ramps(config.context_len)
    }

    fn validate_counts(&self) -> Result<()> {
        for (name, value, most) in [
            ("steps", self.steps, u64::MAX),
            ("batch_size", self.batch_size as u64, 1 << 24),
            ("shards", self.shards as u64, 1 << 24),
            ("accumulate", self.accumulate as u64, self.batch_size as u64),
            ("eval_every", self.eval_every, u64::MAX),
        ] {
            if value == 0 && most == u64::MAX {
                bail!("train options: expected {name} of at least 1, got 0");
            }
            if value == 0 || value > most {
                bail!("train options: expected {name} from 1 to {most}, got {value}");
            }
        }
        Ok(())
    }

    fn validate_numbers(&self) -> Result<()> {
        let own_rate = |rate: Option<f64>| rate.unwrap_or(self.learning_rate);
        for (name, value, range) in [
            ("learning_rate", self.learning_rate, Positive),
            ("min_learning_rate", self.min_learning_rate, NotNegative),
            ("beta1", self.beta1, BelowOne),
            ("beta2", self.beta2, BelowOne),
            ("eps", self.eps, Positive),
            ("weight_decay", self.weight_decay, NotNegative),
            ("matrix_learning_rate", self.matrix_learning_rate, Positive),
            ("matrix_weight_decay", self.matrix_weight_decay, NotNegative),
            ("momentum", self.momentum, BelowOne),
            ("embedding_learning_rate", own_rate(self.embedding_learning_rate), Positive),
            ("head_learning_rate", own_rate(self.head_learning_rate), Positive),
            ("clip_norm", self.clip_norm, NotNegative),
            ("z_loss", self.z_loss, NotNegative),
            ("label_smoothing", self.label_smoothing, BelowOne),
            ("ema", self.ema, BelowOne),
        ] {
            // Steps are made in `f32`, where it would be infinite or nothing.
            if (value as f32).is_infinite() || (value as f32 == 0.0) != (value == 0.0) {
                bail!("train options: expected {name} in the range of f32, 1.4e-45 to 3.4e38, got {value:?}");
            }
            if !range.has(value) {
                bail!("train options: expected {name} {range}, got {value}");
            }
        }
        Ok(())
    }

    fn validate_schedule(&self) -> Result<()> {
        let (highest, lowest) = (self.learning_rate, self.min_learning_rate);
        if self.schedule != Schedule::Constant && lowest > highest {
            bail!("train options: expected min_learning_rate of at most the learning_rate {highest}, got {lowest}");
        }
        let most = self.steps.saturating_sub(self.warmup_steps);
        if self.schedule == Schedule::WarmupStableDecay && most == 0 {
            let (warmup, steps) = (self.warmup_steps, self.steps);
            bail!("train options: expected warmup_steps that leave some of {steps} steps for the decay, got {warmup}");
        }
        if self.schedule == Schedule::WarmupStableDecay && !(1..=most).contains(&self.decay_steps) {
            let (steps, got) = (self.steps, self.decay_steps);
            bail!(
                "train options: expected decay_steps from 1 to the {most} of {steps} steps after the warm-up, got {got}"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_trains_nothing_is_named() {
        for (options, name) in [
            (TrainOptions { steps: 0, ..Default::default() }, "steps"),
            (TrainOptions { learning_rate: f64::NAN, ..Default::default() }, "learning_rate"),
            (
                TrainOptions { learning_rate: 1e300, ..Default::default() },
                "learning_rate in the range of f32, 1.4e-45 to 3.4e38, got 1e300",
            ),
            (TrainOptions { weight_decay: 1e300, ..Default::default() }, "weight_decay"),
            (TrainOptions { clip_norm: 1e-300, ..Default::default() }, "clip_norm"),
            (
                TrainOptions { learning_rate: 1e-5, ..Default::default() },
                "min_learning_rate of at most the learning_rate",
            ),
            (TrainOptions { beta2: 1.0, ..Default::default() }, "beta2"),
            (TrainOptions { eps: 0.0, ..Default::default() }, "eps"),
            (TrainOptions { accumulate: 0, ..Default::default() }, "accumulate from 1 to 12, got 0"),
            (TrainOptions { accumulate: 13, ..Default::default() }, "accumulate from 1 to 12, got 13"),
            (TrainOptions { label_smoothing: 1.0, ..Default::default() }, "label_smoothing"),
            (TrainOptions { momentum: 1.0, ..Default::default() }, "momentum from 0 to below 1, got 1"),
            (TrainOptions { matrix_learning_rate: 0.0, ..Default::default() }, "matrix_learning_rate above 0, got 0"),
            (TrainOptions { matrix_weight_decay: -1.0, ..Default::default() }, "matrix_weight_decay of at least 0"),
            (
                TrainOptions { embedding_learning_rate: Some(0.0), ..Default::default() },
                "embedding_learning_rate above 0, got 0",
            ),
            (
                TrainOptions { head_learning_rate: Some(f64::INFINITY), ..Default::default() },
                "head_learning_rate in the range of f32, 1.4e-45 to 3.4e38, got inf",
            ),
            (TrainOptions { z_loss: -1.0, ..Default::default() }, "z_loss of at least 0, got -1"),
            (TrainOptions { ema: 1.0, ..Default::default() }, "ema from 0 to below 1, got 1"),
            (
                TrainOptions { schedule: Schedule::WarmupStableDecay, decay_steps: 1901, ..Default::default() },
                "decay_steps from 1 to the 1900 of 2000 steps after the warm-up, got 1901",
            ),
            (
                TrainOptions { schedule: Schedule::WarmupStableDecay, warmup_steps: 2000, ..Default::default() },
                "warmup_steps that leave some of 2000 steps for the decay, got 2000",
            ),
        ] {
            let message = options.validate().unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
