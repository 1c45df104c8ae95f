//! The options of a training run.

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

use super::{OptimizerKind, Ramp, Schedule};

/// Length, rates and seed of a training run. The defaults are nanoGPT's CPU recipe, with one shard per core.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    /// Optimizer steps.
    pub steps: u64,
    /// Sequences per step (B).
    pub batch_size: usize,
    /// Parts of a batch that run in parallel, one thread each. Unlike the number of threads, the number of shards
    /// affects the result, in its last bits.
    pub shards: usize,
    /// Parts that a batch is split into to accumulate gradients, one after the other, each in at most `shards` shards.
    /// Takes the memory of a batch of `batch_size / accumulate` sequences, rounded up. The result is that of the whole
    /// batch up to rounding: to the last bit that of `shards * accumulate` shards where this divides the batch.
    pub accumulate: usize,
    /// The peak learning rate, reached after the warm-up.
    pub learning_rate: f64,
    /// The final learning rate, which the schedule would reach at the step after the last.
    pub min_learning_rate: f64,
    /// Steps of the linear warm-up of the learning rate.
    pub warmup_steps: u64,
    /// The learning-rate schedule after the warm-up.
    pub schedule: Schedule,
    /// Length of the decay of [`Schedule::WarmupStableDecay`]; the other schedules ignore it.
    pub decay_steps: u64,
    /// AdamW's decay rate of the first moment.
    pub beta1: f64,
    /// AdamW's decay rate of the second moment.
    pub beta2: f64,
    /// The constant that AdamW adds to the denominator.
    pub eps: f64,
    /// AdamW's weight decay, on matrices only.
    pub weight_decay: f64,
    /// The optimizer; see [`Optimizer`](super::Optimizer) for the groups of tensors.
    pub optimizer: OptimizerKind,
    /// The peak learning rate of the matrices under [`OptimizerKind::Muon`]. It follows the schedule as all rates do.
    pub matrix_learning_rate: f64,
    /// The weight decay of the matrices under [`OptimizerKind::Muon`].
    pub matrix_weight_decay: f64,
    /// Muon's momentum: the decay rate of its running mean of the gradient.
    pub momentum: f64,
    /// Steps over which the momentum rises from 0.85; 0 for none.
    pub momentum_warmup_steps: u64,
    /// The peak learning rate of the embeddings; `learning_rate` by default.
    pub embedding_learning_rate: Option<f64>,
    /// The peak learning rate of an untied head; `learning_rate` by default.
    pub head_learning_rate: Option<f64>,
    /// Whether to drop the elements of an update whose sign disagrees with the gradient
    /// ([`Cautious`](crate::ops::Cautious)).
    pub cautious_updates: bool,
    /// Whether weights whose magnitude the update increases are exempt from decay ([`Cautious`](crate::ops::Cautious)).
    pub cautious_decay: bool,
    /// The global gradient norm above which gradients are scaled down; 0 turns clipping off.
    pub clip_norm: f64,
    /// The share `s` of each target's probability that is spread evenly over the vocabulary: the training loss, but not
    /// the validation loss, is `(1 - s) (-log p[target]) + s mean over v of (-log p[v])` (Szegedy et al. 2015,
    /// arXiv:1512.00567).
    pub label_smoothing: f64,
    /// The coefficient of the z-loss, the squared log-sum-exp of the logits at each position, in the training loss
    /// ([`CrossEntropyOptions`](crate::ops::CrossEntropyOptions)); 0 for none.
    pub z_loss: f64,
    /// How the batch size grows in the first part of the run.
    pub batch_ramp: Option<Ramp>,
    /// How the window length grows in the first part of the run.
    pub context_ramp: Option<Ramp>,
    /// Decay rate of an exponential moving average of the weights, which is then the model that is validated and saved;
    /// 0 for none.
    pub ema: f64,
    /// Whether attention stays within a document where a window spans several. Positions are still counted from the
    /// start of the window.
    pub isolate_documents: bool,
    /// Steps between validations, each followed by a checkpoint.
    pub eval_every: u64,
    /// Consecutive validations without a lower loss after which training stops; 0 for never.
    pub patience: u64,
    /// Consecutive steps with a non-finite loss or gradient that are skipped; one more stops training.
    pub skip_bad_steps: u64,
    /// Steps between reports of the norms of every tensor; 0 for never.
    pub statistics_every: u64,
    /// The seed of all randomness: initial weights, batches and dropout.
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
    /// These options, with everything that a resumed run may change taken from `other`: length, rates and schedule, how
    /// often it validates and reports, when it stops, and how it treats bad steps.
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

    /// The options that differ in `other`: name, own value, value in `other`. Options that the schedule of `other`
    /// ignores are left out.
    ///
    /// # Errors
    /// If a value cannot be written as JSON.
    pub fn differences(&self, other: &Self) -> Result<Vec<(String, String, String)>> {
        let schedule = other.schedule;
        let map = |options: &Self| match serde_json::to_value(options) {
            Ok(serde_json::Value::Object(map)) => Ok(map),
            _ => bail!("train options: a value cannot be written as JSON"),
        };
        let (own, other) = (map(self)?, map(other)?);
        let is_used = |name: &str| match name {
            "decay_steps" => schedule == Schedule::WarmupStableDecay,
            "min_learning_rate" => schedule != Schedule::Constant,
            _ => true,
        };
        let differing = own.into_iter().filter(|(name, value)| other.get(name) != Some(value) && is_used(name));
        let with_other = |(name, value): (String, serde_json::Value)| {
            let other = other.get(&name).map(ToString::to_string);
            (name, value.to_string(), other.unwrap_or_default())
        };
        Ok(differing.map(with_other).collect())
    }
}
