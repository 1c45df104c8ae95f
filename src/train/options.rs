//! What a training run is told.

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

use super::{OptimizerKind, Ramp, Schedule};
use crate::model::ModelConfig;
use crate::text::Corpus;

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
    /// Parts that a batch is run in, one after the other, each in at most `shards` shards: the memory of a batch of
    /// `batch_size / accumulate` sequences, rounded up. Where a batch is cut decides the last bits of the result: they are those
    /// of `shards` times `accumulate` shards where that divides the batch.
    pub accumulate: usize,
    /// The highest learning rate, reached after the warm-up.
    pub learning_rate: f64,
    /// The learning rate that the schedule falls to: that of the step after the last.
    pub min_learning_rate: f64,
    /// Steps over which the learning rate rises linearly.
    pub warmup_steps: u64,
    /// How the learning rate goes on after the warm-up.
    pub schedule: Schedule,
    /// Steps of the decay of [`Schedule::WarmupStableDecay`]; without meaning for the others.
    pub decay_steps: u64,
    /// AdamW's decay of the first moment.
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    pub beta2: f64,
    /// AdamW's term in the denominator.
    pub eps: f64,
    /// AdamW's weight decay, on matrices only.
    pub weight_decay: f64,
    /// What updates the weights; see [`Optimizer`](super::Optimizer) for the groups of tensors.
    pub optimizer: OptimizerKind,
    /// The highest learning rate of the matrices under [`OptimizerKind::Muon`]. It follows the schedule as all rates do.
    pub matrix_learning_rate: f64,
    /// The weight decay of the matrices under [`OptimizerKind::Muon`].
    pub matrix_weight_decay: f64,
    /// Muon's decay of the running mean of the gradient.
    pub momentum: f64,
    /// Steps over which that decay rises from 0.85; 0 for none.
    pub momentum_warmup_steps: u64,
    /// The highest learning rate of the embeddings; without it, `learning_rate`.
    pub embedding_learning_rate: Option<f64>,
    /// The highest learning rate of a head of its own; without it, `learning_rate`.
    pub head_learning_rate: Option<f64>,
    /// Whether the elements of an update that point against the gradient are left out ([`Cautious`](crate::ops::Cautious)).
    pub cautious_updates: bool,
    /// Whether weights that the update makes larger do not decay ([`Cautious`](crate::ops::Cautious)).
    pub cautious_decay: bool,
    /// The global gradient norm above which gradients are scaled down; 0 for never.
    pub clip_norm: f64,
    /// The part of each target's probability that is spread over the vocabulary: the training loss, though not that of
    /// validation, is `(1 - s) (-log p[target]) + s mean over v of (-log p[v])` (Szegedy et al. 2015, arXiv:1512.00567).
    pub label_smoothing: f64,
    /// The factor on the square of each position's log-sum-exp of the logits, added to the training loss
    /// ([`CrossEntropyOptions`](crate::ops::CrossEntropyOptions)); 0 for none.
    pub z_loss: f64,
    /// The batch's sizes in the first part of the run.
    pub batch_ramp: Option<Ramp>,
    /// The windows' lengths in the first part of the run.
    pub context_ramp: Option<Ramp>,
    /// Decay of the exponential moving average of the weights, which is then the model that is validated and saved;
    /// 0 for none.
    pub ema: f64,
    /// Whether a position sees only its own document where a window spans several. Positions are counted on from the start of
    /// the window all the same.
    pub isolate_documents: bool,
    /// Steps between two validations, each followed by a checkpoint.
    pub eval_every: u64,
    /// Validations in a row without a lower loss after which training stops; 0 for never.
    pub patience: u64,
    /// Bad steps in a row, of a loss or gradient that is not finite, that are skipped; the next one stops training.
    pub skip_bad_steps: u64,
    /// Steps between two reports of the norms of every tensor; 0 for never.
    pub statistics_every: u64,
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
            accumulate: 1,
            min_learning_rate: 1e-4,
            warmup_steps: 100,
            schedule: Schedule::Cosine,
            decay_steps: 400,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
            optimizer: OptimizerKind::AdamW,
            matrix_learning_rate: 0.02,
            matrix_weight_decay: 0.1,
            momentum: 0.95,
            momentum_warmup_steps: 0,
            embedding_learning_rate: None,
            head_learning_rate: None,
            cautious_updates: false,
            cautious_decay: false,
            clip_norm: 1.0,
            label_smoothing: 0.0,
            z_loss: 0.0,
            batch_ramp: None,
            context_ramp: None,
            ema: 0.0,
            isolate_documents: false,
            eval_every: 250,
            patience: 0,
            skip_bad_steps: 0,
            statistics_every: 0,
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
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let not_negative = |x: f64| x >= 0.0 && x.is_finite();
        let below_one = |x: f64| (0.0..1.0).contains(&x);
        let own_rate = |rate: Option<f64>| rate.unwrap_or(self.learning_rate);
        let (embedding_rate, head_rate) = (own_rate(self.embedding_learning_rate), own_rate(self.head_learning_rate));
        for (name, value, expected, holds) in [
            ("learning_rate", self.learning_rate, "above 0", positive(self.learning_rate)),
            ("min_learning_rate", self.min_learning_rate, "of at least 0", not_negative(self.min_learning_rate)),
            ("beta1", self.beta1, "from 0 to below 1", below_one(self.beta1)),
            ("beta2", self.beta2, "from 0 to below 1", below_one(self.beta2)),
            ("eps", self.eps, "above 0", positive(self.eps)),
            ("weight_decay", self.weight_decay, "of at least 0", not_negative(self.weight_decay)),
            ("matrix_learning_rate", self.matrix_learning_rate, "above 0", positive(self.matrix_learning_rate)),
            ("matrix_weight_decay", self.matrix_weight_decay, "of at least 0", not_negative(self.matrix_weight_decay)),
            ("momentum", self.momentum, "from 0 to below 1", below_one(self.momentum)),
            ("embedding_learning_rate", embedding_rate, "above 0", positive(embedding_rate)),
            ("head_learning_rate", head_rate, "above 0", positive(head_rate)),
            ("clip_norm", self.clip_norm, "of at least 0", not_negative(self.clip_norm)),
            ("z_loss", self.z_loss, "of at least 0", not_negative(self.z_loss)),
            ("label_smoothing", self.label_smoothing, "from 0 to below 1", below_one(self.label_smoothing)),
            ("ema", self.ema, "from 0 to below 1", below_one(self.ema)),
        ] {
            // Steps are made in `f32`, where it would be infinite or nothing.
            if (value as f32).is_infinite() || (value as f32 == 0.0) != (value == 0.0) {
                bail!("train options: expected {name} in the range of f32, 1.4e-45 to 3.4e38, got {value:?}");
            }
            if !holds {
                bail!("train options: expected {name} {expected}, got {value}");
            }
        }
        let (highest, lowest) = (self.learning_rate, self.min_learning_rate);
        if self.schedule != Schedule::Constant && lowest > highest {
            bail!("train options: expected min_learning_rate of at most the learning_rate {highest}, got {lowest}");
        }
        let most = self.steps.saturating_sub(self.warmup_steps);
        if self.schedule == Schedule::WarmupStableDecay && !(1..=most).contains(&self.decay_steps) {
            let (steps, got) = (self.steps, self.decay_steps);
            bail!(
                "train options: expected decay_steps from 1 to the {most} of {steps} steps after the warm-up, got {got}"
            );
        }
        Ok(())
    }

    /// Refuses values that train nothing, or not this model on this corpus.
    ///
    /// # Errors
    /// Naming the option, what it expects and what it got.
    pub fn validate_for(&self, config: &ModelConfig, corpus: &Corpus) -> Result<()> {
        self.validate()?;
        if self.isolate_documents && config.end_of_text_id.is_none() {
            bail!("train options: isolate_documents expects several documents, with an end-of-text token between them");
        }
        if self.head_learning_rate.is_some() && config.tie_embeddings {
            bail!("train options: head_learning_rate expects a head of its own, got one tied to the token embedding");
        }
        if self.patience > 0 && corpus.validation.is_empty() {
            bail!("train options: patience expects a text to validate on, got none");
        }
        self.check_ramps(config.context_len)
    }

    /// These options, with what a resumed run may change as in `other`: its length, rates and schedule, how often it validates
    /// and reports, when it stops, and what is done about bad steps.
    pub(super) fn changed_as(self, other: &Self) -> Self {
        Self {
            steps: other.steps,
            learning_rate: other.learning_rate,
            min_learning_rate: other.min_learning_rate,
            warmup_steps: other.warmup_steps,
            schedule: other.schedule,
            decay_steps: other.decay_steps,
            weight_decay: other.weight_decay,
            matrix_learning_rate: other.matrix_learning_rate,
            matrix_weight_decay: other.matrix_weight_decay,
            embedding_learning_rate: other.embedding_learning_rate,
            head_learning_rate: other.head_learning_rate,
            clip_norm: other.clip_norm,
            eval_every: other.eval_every,
            patience: other.patience,
            skip_bad_steps: other.skip_bad_steps,
            statistics_every: other.statistics_every,
            ..self
        }
    }

    /// The options in which `other` differs: name, own value, that of `other`.
    ///
    /// # Errors
    /// If a value has no form in JSON.
    pub fn differences(&self, other: &Self) -> Result<Vec<(String, String, String)>> {
        let map = |options: &Self| match serde_json::to_value(options) {
            Ok(serde_json::Value::Object(map)) => Ok(map),
            _ => bail!("train options: a value has no form in JSON"),
        };
        let (own, other) = (map(self)?, map(other)?);
        let differing = own.into_iter().filter(|(name, value)| other.get(name) != Some(value));
        let with_other = |(name, value): (String, serde_json::Value)| {
            let other = other.get(&name).map(ToString::to_string);
            (name, value.to_string(), other.unwrap_or_default())
        };
        Ok(differing.map(with_other).collect())
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
        ] {
            let message = options.validate().unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
