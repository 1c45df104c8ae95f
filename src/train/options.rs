//! What a training run is told.

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

/// Length, rates and seed of a training run. The defaults are nanoGPT's recipe for the CPU, with a
/// shard a core.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    /// Optimizer steps.
    pub steps: u64,
    /// Sequences a step (B).
    pub batch_size: usize,
    /// Parts of a batch that run side by side, each on one thread. Their number, unlike that of the threads, is part
    /// of the result: in its last bits.
    pub shards: usize,
    /// The highest learning rate, reached after the warm-up.
    pub learning_rate: f64,
    /// The learning rate that the cosine falls to: that of the step after the last.
    pub min_learning_rate: f64,
    /// Steps over which the learning rate rises linearly.
    pub warmup_steps: u64,
    /// AdamW's decay of the first moment.
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    pub beta2: f64,
    /// AdamW's term in the denominator.
    pub eps: f64,
    /// AdamW's weight decay, on matrices only.
    pub weight_decay: f64,
    /// The global gradient norm above which gradients are scaled down; 0 for never.
    pub clip_norm: f64,
    /// Whether a position sees only its own document where a window spans several. Positions are counted on from the start of
    /// the window all the same.
    pub isolate_documents: bool,
    /// Steps between two validations, each followed by a checkpoint.
    pub eval_every: u64,
    /// The seed of everything random: initial weights and batches.
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            steps: 2000,
            batch_size: 12,
            shards: std::thread::available_parallelism().map_or(1, |cores| cores.get().min(12)),
            learning_rate: 1e-3,
            min_learning_rate: 1e-4,
            warmup_steps: 100,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
            isolate_documents: false,
            eval_every: 250,
            seed: 1,
        }
    }
}

impl TrainOptions {
    /// Refuses values that train nothing.
    ///
    /// # Errors
    /// Naming the option, what it expects and what it got.
    pub fn validate(&self) -> Result<()> {
        for (name, value, most) in [
            ("steps", self.steps, u64::MAX),
            ("batch_size", self.batch_size as u64, 1 << 24),
            ("shards", self.shards as u64, 1 << 24),
            ("eval_every", self.eval_every, u64::MAX),
        ] {
            if value == 0 || value > most {
                bail!("train options: expected {name} from 1 to {most}, got {value}");
            }
        }
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let not_negative = |x: f64| x >= 0.0 && x.is_finite();
        let below_one = |x: f64| (0.0..1.0).contains(&x);
        for (name, value, expected, holds) in [
            ("learning_rate", self.learning_rate, "above 0", positive(self.learning_rate)),
            ("min_learning_rate", self.min_learning_rate, "of at least 0", not_negative(self.min_learning_rate)),
            ("beta1", self.beta1, "from 0 to below 1", below_one(self.beta1)),
            ("beta2", self.beta2, "from 0 to below 1", below_one(self.beta2)),
            ("eps", self.eps, "above 0", positive(self.eps)),
            ("weight_decay", self.weight_decay, "of at least 0", not_negative(self.weight_decay)),
            ("clip_norm", self.clip_norm, "of at least 0", not_negative(self.clip_norm)),
        ] {
            if !holds {
                bail!("train options: expected {name} {expected}, got {value}");
            }
        }
        Ok(())
    }

    /// The first option in which `other` differs, with both values.
    pub(super) fn difference(&self, other: &Self) -> Result<Option<(String, String, String)>> {
        let map = |options: &Self| match serde_json::to_value(options) {
            Ok(serde_json::Value::Object(map)) => Ok(map),
            _ => bail!("train options: a value has no form in JSON"),
        };
        let (own, other) = (map(self)?, map(other)?);
        let differing = own.into_iter().find(|(name, value)| other.get(name) != Some(value));
        Ok(differing.map(|(name, value)| {
            let other = other.get(&name).map(ToString::to_string);
            (name, value.to_string(), other.unwrap_or_default())
        }))
    }

    /// The learning rate of step `step`, counted from 0: a linear rise over the warm-up, then half a cosine from
    /// `learning_rate` down to `min_learning_rate` after the last step (Loshchilov and Hutter 2016, arXiv:1608.03983).
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        let (highest, lowest) = (self.learning_rate, self.min_learning_rate);
        if step < self.warmup_steps {
            return highest * (step as f64 + 1.0) / (self.warmup_steps as f64 + 1.0);
        }
        let decay_steps = self.steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / decay_steps as f64).min(1.0);
        lowest + 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()) * (highest - lowest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_over_the_warm_up_and_falls_along_a_cosine() {
        let options = TrainOptions { steps: 1000, warmup_steps: 100, ..Default::default() };
        assert!((options.learning_rate_at(0) - 1e-3 / 101.0).abs() < 1e-12);
        assert!((options.learning_rate_at(99) - 1e-3 * 100.0 / 101.0).abs() < 1e-12);
        assert!((options.learning_rate_at(100) - 1e-3).abs() < 1e-12);
        assert!((options.learning_rate_at(550) - 5.5e-4).abs() < 1e-12);
        assert!((options.learning_rate_at(1000) - 1e-4).abs() < 1e-12);
        assert!((options.learning_rate_at(5000) - 1e-4).abs() < 1e-12);
    }

    #[test]
    fn a_value_that_trains_nothing_is_named() {
        for (options, name) in [
            (TrainOptions { steps: 0, ..Default::default() }, "steps"),
            (TrainOptions { learning_rate: f64::NAN, ..Default::default() }, "learning_rate"),
            (TrainOptions { beta2: 1.0, ..Default::default() }, "beta2"),
            (TrainOptions { eps: 0.0, ..Default::default() }, "eps"),
        ] {
            let message = options.validate().unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
