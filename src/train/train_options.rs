//! The options of a training run.

mod auto;
mod validate;

use serde::{Deserialize, Serialize};

use crate::model::ModelConfig;
use crate::optim::{Group, LrSchedule, Rule, Schedule};
use crate::text::{BatchSampler, Corpus};

/// What updates the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OptimizerKind {
    /// AdamW for everything.
    #[default]
    AdamW,
    /// Muon for the matrices inside the blocks, AdamW for embeddings, head and vectors.
    Muon,
}

/// How a training step multiplies matrices. Weights, gradients and all else are `f32`, and so is validation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Precision {
    /// In `f32`.
    #[default]
    F32,
    /// Linear layers in bf16, summed in `f32`: [`ops::bf16_products`](crate::ops::bf16_products).
    Bf16,
}

/// Length, rates and seed of a training run, relative to one another: the rates of groups are multiples of `lr`, the
/// lengths of a schedule fractions of `steps`. The defaults are nanoGPT's CPU recipe. 0 turns off what is off by default.
///
/// | group | tensors | updated by | peak learning rate | weight decay |
/// |---|---|---|---|---|
/// | matrices | two-dimensional, inside the blocks | Muon, if chosen | `lr * matrix_lr` | `matrix_weight_decay` |
/// | embeddings | of tokens and positions | AdamW | `lr * embedding_lr` | `weight_decay` |
/// | the rest | | AdamW | `lr` | `weight_decay`, on matrices only |
///
/// Under AdamW the matrices belong to the rest. In files the names have dashes: `min-lr = 0.1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct TrainOptions {
    /// Optimizer steps; while `minutes` is above 0, those that are expected.
    pub steps: u64,
    /// The time of the run, if that decides on its length; 0 once it has, and where `steps` does. The warm-up and the decay
    /// have the lengths that they have for the expected `steps`; the peak rate is kept until the time that is left is what
    /// the decay takes. Then `steps` becomes the number that this gives. Where the time that is left is far too short for the
    /// decay, this is shortened to what fits, but at least to 30 % of the minutes. [`train`](super::train) does so; a loop of
    /// one's own that only calls [`Trainer::step`](super::Trainer::step) stays at the peak rate.
    pub minutes: f64,
    /// Sequences per step (B).
    pub batch: usize,
    /// Tokens in a sequence (T), in training and in validation; by default, and at most, the model's context length.
    #[serde(with = "auto")]
    pub context: Option<usize>,
    /// Parts of a batch: each on a thread of its own or, if there are few, one after the other on all threads. Unlike the
    /// number of threads, the number of shards affects the result, in its last bits.
    pub shards: usize,
    /// Parts that a batch is split into to accumulate gradients, one after the other, each in at most `shards` shards.
    /// Takes the memory of a batch of `batch / accumulate` sequences, rounded up. The result is that of the whole batch
    /// up to rounding: to the last bit that of `shards * accumulate` shards where this divides the batch.
    pub accumulate: usize,
    /// How a step multiplies matrices.
    pub precision: Precision,
    /// The peak learning rate, reached after the warm-up.
    pub lr: f64,
    /// The final learning rate, which the schedule would reach at the step after the last; a multiple of `lr`.
    pub min_lr: f64,
    /// The linear warm-up of the learning rate; a fraction of `steps`.
    pub warmup: f64,
    /// The learning-rate schedule after the warm-up.
    pub schedule: Schedule,
    /// The decay of [`Schedule::WarmupStableDecay`]; a fraction of `steps`.
    pub decay: f64,
    /// The optimizer.
    pub optimizer: OptimizerKind,
    /// AdamW's decay rate of the first moment.
    pub beta1: f64,
    /// AdamW's decay rate of the second moment.
    pub beta2: f64,
    /// AdamW's weight decay, on matrices only.
    pub weight_decay: f64,
    /// The peak learning rate of the matrices under [`OptimizerKind::Muon`]; a multiple of `lr`.
    pub matrix_lr: f64,
    /// The weight decay of the matrices under [`OptimizerKind::Muon`].
    pub matrix_weight_decay: f64,
    /// Muon's momentum: the decay rate of its moving average of the gradient.
    pub momentum: f64,
    /// The peak learning rate of the embeddings; a multiple of `lr`.
    pub embedding_lr: f64,
    /// The global gradient norm above which gradients are scaled down; 0 for no clipping.
    pub clip: f64,
    /// The share `s` of each target's probability that is spread evenly over the vocabulary: the training loss, but not
    /// the validation loss, is `(1 - s) (-log p[target]) + s mean over v of (-log p[v])` (Szegedy et al. 2015,
    /// arXiv:1512.00567).
    pub label_smoothing: f64,
    /// The span of a moving average of the weights, which is then the model that is validated and saved; a fraction of
    /// `steps`, 0 for none. After a step the average moves by `1/n` of the way to the weights, where `n` is this span or,
    /// if fewer, the number of steps made.
    pub average: f64,
    /// Whether attention stays within a document where a window spans several. Positions are still counted from the
    /// start of the window.
    pub isolate_documents: bool,
    /// Steps between validations, each followed by a checkpoint. By default a fifth of the steps, or as many more as
    /// keep the validations before the last from costing more than a tenth of the steps.
    #[serde(with = "auto")]
    pub eval_every: Option<u64>,
    /// Consecutive validations without a lower loss after which training stops; 0 for never.
    pub patience: u64,
    /// Steps between reports of the norms of every tensor; 0 for never.
    pub statistics_every: u64,
    /// Minutes after which a checkpoint is written even where no validation is due; 0 for one after every step.
    pub save_every: f64,
    /// Checkpoints that are kept: the newest.
    pub keep: usize,
    /// A text whose attention maps are kept in `training/watch/`, at about forty steps of the run; empty for none.
    pub watch: String,
    /// The seed of all randomness: initial weights, batches and dropout.
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            steps: 2000,
            minutes: 0.0,
            batch: 12,
            context: None,
            // The same on every machine: enough for the threads of most, and hardly slower on two.
            shards: 4,
            accumulate: 1,
            precision: Precision::F32,
            lr: 1e-3,
            min_lr: 0.1,
            warmup: 0.05,
            schedule: Schedule::Cosine,
            decay: 0.2,
            optimizer: OptimizerKind::AdamW,
            beta1: 0.9,
            beta2: 0.99,
            weight_decay: 0.1,
            matrix_lr: 20.0,
            matrix_weight_decay: 0.1,
            momentum: 0.95,
            embedding_lr: 1.0,
            clip: 1.0,
            label_smoothing: 0.0,
            average: 0.0,
            isolate_documents: false,
            eval_every: None,
            patience: 0,
            statistics_every: 0,
            save_every: 10.0,
            keep: 2,
            watch: String::new(),
            seed: 1,
        }
    }
}

impl TrainOptions {
    /// The learning rate over the steps.
    pub fn lr_schedule(&self) -> LrSchedule {
        let &Self { schedule: shape, min_lr: min, .. } = self;
        let (steps, warmup_steps, decay_steps) = (self.last_step(), self.part(self.warmup), self.part(self.decay));
        LrSchedule { shape, steps, warmup_steps, decay_steps, min }
    }

    /// A fraction of the steps.
    fn part(&self, fraction: f64) -> u64 {
        (fraction * self.steps as f64).round() as u64
    }

    /// The number of steps that the average of the weights spans after `step` steps.
    pub(super) fn average_span(&self, step: u64) -> u64 {
        step.min(self.part(self.average))
    }

    /// Whether the time is still to decide on the number of steps.
    pub fn is_timed(&self) -> bool {
        self.minutes > 0.0
    }

    /// The last step, which has no number while the time is to decide on it.
    pub(super) fn last_step(&self) -> u64 {
        if self.is_timed() { u64::MAX } else { self.steps }
    }

    /// These options for a run that decays from step `step` on, for `decay_steps`, after which they no longer depend on the
    /// time. The warm-up has the steps that it had, and so has the average, which becomes shorter with the decay only as far as
    /// nothing of the past changes.
    pub(super) fn decaying_from(&self, step: u64, decay_steps: u64, eval_every: u64) -> Self {
        let steps = step + decay_steps;
        let fraction = |part: u64| (part as f64 / steps as f64).min(1.0);
        let (span, planned) = (self.part(self.average), self.part(self.decay).max(1));
        let shortened = (u128::from(span) * u128::from(decay_steps) / u128::from(planned)) as u64;
        Self {
            steps,
            minutes: 0.0,
            warmup: fraction(self.part(self.warmup)),
            decay: fraction(decay_steps),
            average: fraction(span.min(shortened.max(step))),
            eval_every: Some(eval_every),
            ..self.clone()
        }
    }

    /// The group of a tensor of the model, by its name and rank.
    pub(super) fn group(&self, name: &str, rank: usize) -> Group {
        let decayed = if rank >= 2 { self.weight_decay } else { 0.0 };
        let adamw = |lr| Group { rule: Rule::AdamW, lr, weight_decay: decayed };
        match name {
            _ if self.optimizer == OptimizerKind::Muon && name.starts_with("blocks.") && rank == 2 => {
                Group { rule: Rule::Muon, lr: self.matrix_lr, weight_decay: self.matrix_weight_decay }
            }
            "token_embedding.weight" | "position_embedding.weight" => adamw(self.embedding_lr),
            _ => adamw(1.0),
        }
    }

    /// Tokens in a sequence, for this model.
    pub fn window_len(&self, config: &ModelConfig) -> usize {
        self.context.unwrap_or(config.context_len)
    }

    /// What draws the batches of a run.
    pub(super) fn sampler(&self, config: &ModelConfig, corpus: &Corpus) -> BatchSampler {
        let separator = corpus.separator.filter(|_| self.isolate_documents);
        BatchSampler { separator, ..BatchSampler::new(self.seed, self.batch, self.window_len(config)) }
    }

    /// The steps that take as long as a validation of `tokens` tokens, about; `context_len` tokens are a sequence.
    pub fn validation_steps(&self, tokens: usize, context_len: usize) -> f64 {
        /// The part of the time of a step that a forward pass takes.
        const FORWARD: f64 = 1.0 / 3.0;
        /// A step of fewer tokens is hardly faster.
        const FEWEST: usize = 256;
        FORWARD * tokens as f64 / (self.batch * context_len).max(FEWEST) as f64
    }

    /// Steps between validations of `tokens` tokens each, with sequences of `context_len` tokens.
    pub fn eval_interval(&self, tokens: usize, context_len: usize) -> u64 {
        let affordable = 0.1 * self.steps as f64 / self.validation_steps(tokens, context_len);
        let before_the_last = affordable.min(4.0) as u64;
        self.eval_every.unwrap_or_else(|| self.steps.div_ceil(before_the_last + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_back_from_toml_with_the_names_that_errors_have() {
        let options = TrainOptions { eval_every: Some(7), isolate_documents: true, average: 0.3, ..Default::default() };
        for options in [options, TrainOptions::default()] {
            let table = toml::Table::try_from(&options).unwrap();
            assert_eq!(table.clone().try_into::<TrainOptions>().unwrap(), options);
            let wrong = TrainOptions { matrix_lr: -1.0, ..options };
            let error = wrong.validate().unwrap_err().to_string();
            let name = error.split(':').next().unwrap();
            assert!(table.contains_key(name), "{error}");
        }
    }

    #[test]
    fn lengths_are_fractions_and_validations_cost_a_tenth() {
        let options = TrainOptions { steps: 300, warmup: 10.0 / 300.0, decay: 0.8, batch: 12, ..Default::default() };
        let schedule = options.lr_schedule();
        assert_eq!((schedule.warmup_steps, schedule.decay_steps), (10, 240));
        // 230,400 tokens of training pay for 69,120 tokens of validation, whatever is given.
        for (tokens, expected) in [(1, 60), (17_000, 60), (20_000, 75), (60_000, 150), (111_540, 300), (1 << 40, 300)] {
            assert_eq!(options.eval_interval(tokens, 64), expected, "{tokens}");
        }
        assert_eq!(TrainOptions { eval_every: Some(5), ..options }.eval_interval(111_540, 64), 5);
    }

    /// What is settled gives the rates from the first step on that the run has had, and then a decay of the length that was
    /// planned, or shorter.
    #[test]
    fn a_run_that_begins_its_decay_has_had_the_rates_of_its_final_options() {
        for (steps, warmup, decay) in [(1000, 0.0333, 0.6), (7, 0.2, 0.5), (1_234_567, 0.01, 0.37), (20, 0.0, 1.0)] {
            let schedule = Schedule::WarmupStableDecay;
            let open =
                TrainOptions { steps, minutes: 3.0, warmup, decay, schedule, average: 0.15, ..Default::default() };
            let planned = open.lr_schedule();
            let begins = [planned.warmup_steps, planned.warmup_steps + 1, steps, 3 * steps + 11];
            let decays = [planned.decay_steps, planned.decay_steps / 3, 1];
            for (begin, decay) in begins.into_iter().flat_map(|begin| decays.map(|decay| (begin, decay))) {
                let settled = open.decaying_from(begin, decay, 9);
                settled.validate().unwrap();
                assert_eq!((settled.steps, settled.minutes), (begin + decay, 0.0));
                assert_eq!(settled.average_span(begin), open.average_span(begin));
                let [span, planned_span] = [&settled, &open].map(|options| options.average_span(u64::MAX));
                match decay == planned.decay_steps {
                    true => assert_eq!(span, planned_span),
                    false => assert!(span <= begin.max(planned_span.div_ceil(3)), "{steps}, {begin}: {span}"),
                }
                let settled = settled.lr_schedule();
                let lengths = (settled.warmup_steps, settled.decay_steps);
                assert_eq!(lengths, (planned.warmup_steps, decay), "{steps}, {begin}");
                for step in (0..begin).step_by(1 + begin as usize / 1000) {
                    assert_eq!(settled.factor(step), planned.factor(step), "{steps}, {begin}: {step}");
                }
                let next = 1.0 - (1.0 - open.min_lr) / decay as f64;
                assert!((settled.factor(begin + 1) - next).abs() < 1e-12);
            }
            open.decaying_from(planned.warmup_steps.max(1), 0, 9).validate().unwrap();
        }
    }

    #[test]
    fn values_out_of_bounds_are_named() {
        let default = TrainOptions::default;
        for (options, expected) in [
            (TrainOptions { batch: 0, ..default() }, "batch: expected a number from 1"),
            (TrainOptions { accumulate: 13, ..default() }, "accumulate: expected a number from 1 to 12, got 13"),
            (TrainOptions { lr: 0.0, ..default() }, "lr: expected a number above 0, got 0.0"),
            (TrainOptions { lr: f64::NAN, ..default() }, "lr: expected"),
            (TrainOptions { lr: 1e-50, ..default() }, "lr: expected a number above 0, got 1e-50"),
            (TrainOptions { average: 1.1, ..default() }, "average: expected a number from 0 to 1"),
            (
                TrainOptions { minutes: -1.0, ..default() },
                "minutes: expected a number from 0.1 to 1000, or 0, got -1.0",
            ),
            (TrainOptions { minutes: 1.0, ..default() }, "minutes: expected schedule warmup-stable-decay"),
            (TrainOptions { save_every: f64::INFINITY, ..default() }, "save-every: expected"),
            (TrainOptions { seed: u64::MAX, ..default() }, "seed: expected at most"),
            (
                TrainOptions { schedule: Schedule::WarmupStableDecay, warmup: 0.3, decay: 0.8, ..default() },
                "warmup: expected at most 1 together with decay, got 0.3 and 0.8",
            ),
        ] {
            let error = options.validate().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn muon_has_the_matrices_of_the_blocks_and_embeddings_have_a_rate_of_their_own() {
        let muon = TrainOptions { optimizer: OptimizerKind::Muon, embedding_lr: 2.0, ..Default::default() };
        let adamw = TrainOptions { optimizer: OptimizerKind::AdamW, ..muon.clone() };
        for (name, rank, rule, lr, weight_decay) in [
            ("blocks.0.attention.q_proj.weight", 2, Rule::Muon, 20.0, 0.1),
            ("blocks.0.attention.q_proj.bias", 1, Rule::AdamW, 1.0, 0.0),
            ("blocks.10.mlp_norm.weight", 1, Rule::AdamW, 1.0, 0.0),
            ("norm.weight", 1, Rule::AdamW, 1.0, 0.0),
            ("token_embedding.weight", 2, Rule::AdamW, 2.0, 0.1),
            ("position_embedding.weight", 2, Rule::AdamW, 2.0, 0.1),
            ("head.weight", 2, Rule::AdamW, 1.0, 0.1),
        ] {
            assert_eq!(muon.group(name, rank), Group { rule, lr, weight_decay }, "{name}");
            let lr = if rule == Rule::Muon { 1.0 } else { lr };
            assert_eq!(adamw.group(name, rank), Group { rule: Rule::AdamW, lr, weight_decay }, "{name}");
        }
    }
}
