//! Checks of the training options.

use std::fmt;

use candle_core::{Result, bail};

use super::{Schedule, TrainOptions};
use crate::model::ModelConfig;
use crate::text::{Corpus, Separator};

/// The values that a number may have.
#[derive(Clone, Copy)]
enum Bounds {
    Positive,
    NotNegative,
    /// A rate of decay or a probability.
    BelowOne,
}

use Bounds::{BelowOne, NotNegative, Positive};

impl Bounds {
    fn contain(self, x: f64) -> bool {
        match self {
            Positive => x > 0.0 && x.is_finite(),
            NotNegative => x >= 0.0 && x.is_finite(),
            BelowOne => (0.0..1.0).contains(&x),
        }
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Positive => "above 0",
            NotNegative => "of at least 0",
            BelowOne => "from 0 to below 1",
        })
    }
}

impl TrainOptions {
    /// Checks that these values can train a model.
    ///
    /// # Errors
    /// The first option out of bounds, with what it expects and what it got.
    pub fn validate(&self) -> Result<()> {
        self.validate_counts()?;
        self.validate_numbers()?;
        self.validate_schedule()
    }

    /// Checks that these values can train this model on this corpus.
    ///
    /// # Errors
    /// The first option out of bounds, with what it expects and what it got.
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
            bail!("train options: head_learning_rate expects an untied head, got one tied to the token embedding");
        }
        if self.patience > 0 && corpus.validation.is_empty() {
            bail!("train options: patience expects a validation text, got none");
        }
        self.check_ramps(config.context_len)
    }

    fn validate_counts(&self) -> Result<()> {
        for (name, value, most) in [
            ("steps", self.steps, None),
            ("batch_size", self.batch_size as u64, Some(1 << 24)),
            ("shards", self.shards as u64, Some(1 << 24)),
            ("accumulate", self.accumulate as u64, Some(self.batch_size as u64)),
            ("eval_every", self.eval_every, None),
        ] {
            match most {
                None if value == 0 => bail!("train options: expected {name} of at least 1, got 0"),
                Some(most) if !(1..=most).contains(&value) => {
                    bail!("train options: expected {name} from 1 to {most}, got {value}")
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn validate_numbers(&self) -> Result<()> {
        let own_rate = |rate: Option<f64>| rate.unwrap_or(self.learning_rate);
        for (name, value, bounds) in [
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
            // Updates are computed in `f32`, where the value must be neither infinite nor zero nor rounded out of its
            // bounds.
            if (value as f32).is_infinite() || (value as f32 == 0.0) != (value == 0.0) {
                bail!("train options: expected {name} in the range of f32, 1.4e-45 to 3.4e38, got {value:?}");
            }
            if !bounds.contain(value) {
                bail!("train options: expected {name} {bounds}, got {value}");
            }
            if !bounds.contain(f64::from(value as f32)) {
                bail!("train options: expected {name} {bounds} in f32, got {value}, which rounds to {}", value as f32);
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
            bail!(
                "train options: expected warmup_steps below the {steps} steps, to leave some for the decay, got {warmup}"
            );
        }
        if self.schedule == Schedule::WarmupStableDecay && !(1..=most).contains(&self.decay_steps) {
            let got = self.decay_steps;
            bail!("train options: expected decay_steps from 1 to the {most} steps after the warm-up, got {got}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_bounds_is_named() {
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
            (
                TrainOptions { beta1: 0.99999999, ..Default::default() },
                "beta1 from 0 to below 1 in f32, got 0.99999999, which rounds to 1",
            ),
            (TrainOptions { momentum: 0.99999999, ..Default::default() }, "momentum from 0 to below 1 in f32"),
            (TrainOptions { ema: 0.99999999, ..Default::default() }, "ema from 0 to below 1 in f32"),
            (TrainOptions { batch_size: (1 << 24) + 1, ..Default::default() }, "batch_size from 1 to 16777216"),
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
                "decay_steps from 1 to the 1900 steps after the warm-up, got 1901",
            ),
            (
                TrainOptions { schedule: Schedule::WarmupStableDecay, warmup_steps: 2000, ..Default::default() },
                "warmup_steps below the 2000 steps, to leave some for the decay, got 2000",
            ),
        ] {
            let message = options.validate().unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
