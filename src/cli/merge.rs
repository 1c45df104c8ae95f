//! How options combine: those given, those of a recipe (a preset, a `--config` file or an automatic choice), and those
//! saved with a run.

use std::path::PathBuf;

use anyhow::Result;
use candle_attention::model::{ModelConfig, ResidualInit};
use candle_attention::text::TokenizerChoice;
use candle_attention::train::{FIRST_MOMENTUM, OptimizerKind, Ramp, Schedule, TrainOptions};

use super::automatic::TextSize;
use super::options::Options;

/// The options that `--init` takes from its folder.
pub const MODEL_OPTIONS: [&str; 13] = [
    "architecture",
    "layers",
    "heads",
    "dim",
    "kv-heads",
    "head-dim",
    "rope-theta",
    "hidden",
    "context",
    "bias",
    "tie",
    "zero-residual",
    "tokenizer",
];

/// Rates and decays that suit one optimizer only.
const OPTIMIZER_OPTIONS: [&str; 9] = [
    "lr",
    "min-lr",
    "weight-decay",
    "matrix-lr",
    "matrix-weight-decay",
    "momentum",
    "momentum-warmup",
    "embedding-lr",
    "head-lr",
];

impl Options {
    /// These options, with the unset ones taken from `fallback`.
    pub fn filled_from(&self, fallback: &Self) -> Result<Self> {
        let given = self.table()?;
        let mut merged = fallback.table()?;
        // The two ways to hold out a validation text exclude each other.
        for (name, other) in [("validation", "validation-fraction"), ("validation-fraction", "validation")] {
            if given.contains_key(name) {
                merged.remove(other);
            }
        }
        merged.extend(given);
        Ok(merged.try_into()?)
    }

    /// These options, with the unset ones taken from the preset or, without one, chosen for the text. The result gives
    /// the same run wherever it is read again.
    pub fn completed(&self, text: &TextSize) -> Result<Self> {
        let recipe = match self.preset {
            Some(preset) => preset.options()?,
            None => text.recipe(self)?,
        };
        let options = Self { preset: None, ..self.with_recipe(&recipe)? };
        // Explicit, so that no other recipe fills it in when these options are read again.
        let embedding_lr = options.embedding_lr.or(Some(options.train_options().learning_rate));
        Ok(Self { embedding_lr, ..options })
    }

    /// These options, with the unset ones taken from `recipe` as far as they suit those that are set: options that suit
    /// only the recipe's optimizer, schedule, sizes, batch or momentum are dropped, its rates scale with `--lr`, its
    /// schedule with `--steps`.
    pub fn with_recipe(&self, recipe: &Self) -> Result<Self> {
        let mut rest = recipe.clone();
        if self.init.is_some() && recipe.init.is_none() {
            rest = Self { preset: None, ..rest.without(&MODEL_OPTIONS)? };
        }
        if differs(self.optimizer, recipe.optimizer.unwrap_or_default()) {
            rest = rest.without(&OPTIMIZER_OPTIONS)?;
        }
        if self.tie == Some(true) {
            rest.head_lr = None;
        }
        if self.schedule == Some(Schedule::Constant) {
            rest.min_lr = None;
        }
        if self.momentum.is_some_and(|momentum| momentum <= FIRST_MOMENTUM) {
            rest.momentum_warmup = None;
        }
        self.filled_from(&rest.resized_for(self).batched_for(self).rescaled_to(self.lr).stretched_to(self))
    }

    fn without(&self, names: &[&str]) -> Result<Self> {
        let mut table = self.table()?;
        table.retain(|name, _| !names.contains(&name));
        Ok(table.try_into()?)
    }

    /// This recipe, with its sizes fitted to those that are given.
    fn resized_for(mut self, given: &Self) -> Self {
        let architecture = self.architecture.unwrap_or_default();
        let default = ModelConfig::of(architecture, 2);
        let (heads, dim) = (self.heads.unwrap_or(default.num_heads), self.dim.unwrap_or(default.embed_dim));
        if differs(given.architecture, architecture) {
            self = Self { kv_heads: None, head_dim: None, rope_theta: None, hidden: None, ..self };
        }
        let mut heads_now = given.heads.unwrap_or(heads);
        if let Some(given_dim) = given.dim.filter(|given| *given != dim) {
            let is_rotary = given.architecture.unwrap_or(architecture).is_rotary();
            let unit = if is_rotary { 2 } else { 1 };
            // Heads with a width of their own need not divide the channels.
            let is_fitting = given.head_dim.is_some() || (heads > 0 && given_dim.is_multiple_of(unit * heads));
            if given.heads.is_none() && !is_fitting {
                heads_now = heads_of_width(given_dim, dim / heads.max(1), unit, given.kv_heads.unwrap_or(1));
            }
            self = Self { heads: Some(heads_now), head_dim: None, hidden: None, ..self };
        }
        if heads_now != heads {
            // The same number of query heads per key head, where that is possible.
            let kv_heads = self.kv_heads.and_then(|kv_heads| kv_heads.checked_mul(heads_now));
            self.kv_heads = kv_heads.filter(|n| heads > 0 && n.is_multiple_of(heads)).map(|n| n / heads);
            self.head_dim = None;
        }
        self
    }

    /// This recipe without ramps that start above the given batch or context, and in no more parts than the batch has
    /// sequences.
    fn batched_for(mut self, given: &Self) -> Self {
        let starts_within = |ramp: &Ramp, most: Option<usize>| most.is_none_or(|most| ramp.from <= most);
        self.batch_ramp = self.batch_ramp.filter(|ramp| starts_within(ramp, given.batch));
        self.context_ramp = self.context_ramp.filter(|ramp| starts_within(ramp, given.context));
        if let Some(batch) = given.batch {
            self.accumulate = self.accumulate.map(|parts| parts.min(batch.max(1)));
        }
        self
    }

    /// These options, with every other rate scaled by the ratio of the given rate, if any, to `--lr`.
    fn rescaled_to(self, given: Option<f64>) -> Self {
        let (Some(given), Some(lr)) = (given, self.lr) else { return self };
        let scaled = |rate: Option<f64>| rate.map(|rate| rate * (given / lr));
        Self {
            min_lr: scaled(self.min_lr),
            matrix_lr: scaled(self.matrix_lr),
            embedding_lr: scaled(self.embedding_lr),
            head_lr: scaled(self.head_lr),
            ..self
        }
    }

    /// This recipe, with the lengths of its schedule and ramps fitted to the given steps, warm-up and decay.
    fn stretched_to(mut self, given: &Self) -> Self {
        if let (Some(steps), Some(of_recipe)) = (given.steps, self.steps) {
            let scaled = |n: u64| {
                let n = u128::from(n) * u128::from(steps) / u128::from(of_recipe.max(1));
                u64::try_from(n).unwrap_or(u64::MAX)
            };
            let ramp = |ramp: Option<Ramp>| ramp.map(|ramp| Ramp { steps: scaled(ramp.steps), ..ramp });
            self.warmup = self.warmup.map(scaled);
            self.decay_steps = self.decay_steps.map(|n| scaled(n).max(1));
            self.eval_every = self.eval_every.map(|n| scaled(n).max(1));
            self.momentum_warmup = self.momentum_warmup.map(scaled);
            (self.batch_ramp, self.context_ramp) = (ramp(self.batch_ramp), ramp(self.context_ramp));
        }
        if differs(given.schedule, self.schedule.unwrap_or_default()) {
            self.decay_steps = None;
        }
        let Some(steps) = given.steps.or(self.steps) else { return self };
        match (given.warmup, given.decay_steps) {
            (Some(warmup), None) => {
                self.decay_steps = self.decay_steps.map(|n| n.min(steps.saturating_sub(warmup)).max(1));
            }
            (None, Some(decay)) => self.warmup = self.warmup.map(|n| n.min(steps.saturating_sub(decay))),
            _ => {}
        }
        self
    }

    /// The options of a resumed run: these, with the unset ones taken from the `saved` ones as far as they still fit.
    pub fn resumed_from(&self, saved: &Self) -> Result<Self> {
        let mut options = self.filled_from(saved)?;
        let rescaled = saved.clone().rescaled_to(self.lr);
        options.min_lr = self.min_lr.or(rescaled.min_lr);
        options.matrix_lr = self.matrix_lr.or(rescaled.matrix_lr);
        options.embedding_lr = self.embedding_lr.or(rescaled.embedding_lr);
        options.head_lr = self.head_lr.or(rescaled.head_lr);
        // A run that becomes shorter may have no room for its warm-up and decay.
        if self.warmup.is_none() {
            options.warmup = options.warmup.map(|n| n.min(options.steps.map_or(n, |steps| steps.saturating_sub(1))));
        }
        if self.decay_steps.is_none() {
            let most = options.steps.map(|steps| steps.saturating_sub(options.warmup.unwrap_or(0)).max(1));
            let keeps_schedule = !differs(self.schedule, saved.schedule.unwrap_or_default());
            let saved_decay = options.decay_steps.filter(|_| keeps_schedule);
            options.decay_steps = saved_decay.map(|n| n.min(most.unwrap_or(n)));
        }
        if options.schedule == Some(Schedule::Constant) && self.min_lr.is_none() {
            options.min_lr = None;
        }
        Ok(options)
    }

    /// What is saved with a run: every option that it takes to make the same run again, with absolute paths.
    /// `tokenizer` is the choice of a run without `--init`.
    pub fn as_saved(
        &self,
        tokenizer: Option<&TokenizerChoice>,
        config: &ModelConfig,
        options: &TrainOptions,
    ) -> Result<Self> {
        let given = self.clone().with_absolute_paths()?;
        let mut saved = Self {
            texts: given.texts,
            validation: given.validation,
            validation_fraction: given.validation_fraction,
            init: given.init,
            dropout: given.dropout,
            save_every: given.save_every,
            ..Self::of_training(options)
        };
        // With `--init`, sizes and tokenizer are those of its folder.
        if let Some(tokenizer) = tokenizer {
            saved.tokenizer = Some(match tokenizer {
                TokenizerChoice::File(path) => std::path::absolute(path)?.display().to_string(),
                choice => choice.to_string(),
            });
            saved.architecture = Some(config.architecture);
            saved.layers = Some(config.num_layers);
            saved.heads = Some(config.num_heads);
            saved.dim = Some(config.embed_dim);
            if config.architecture.is_rotary() {
                saved.kv_heads = Some(config.kv_heads());
                saved.head_dim = Some(config.head_channels());
                saved.rope_theta = Some(config.rope_theta);
            }
            saved.hidden = Some(config.hidden_dim);
            saved.context = Some(config.context_len);
            saved.bias = Some(config.bias);
            saved.tie = Some(config.tie_embeddings);
            saved.zero_residual = Some(config.residual_init == ResidualInit::Zero);
            saved.dropout = Some(config.dropout.residual);
        }
        Ok(saved)
    }

    /// These options with absolute paths.
    pub fn with_absolute_paths(mut self) -> Result<Self> {
        let absolute = |paths: &[PathBuf]| paths.iter().map(std::path::absolute).collect::<std::io::Result<_>>();
        (self.texts, self.validation) = (absolute(&self.texts)?, absolute(&self.validation)?);
        self.init = self.init.as_ref().map(std::path::absolute).transpose()?;
        Ok(self)
    }

    /// Every training option that has an effect.
    fn of_training(options: &TrainOptions) -> Self {
        let is_muon = options.optimizer == OptimizerKind::Muon;
        Self {
            steps: Some(options.steps),
            batch: Some(options.batch_size),
            shards: Some(options.shards),
            lr: Some(options.learning_rate),
            min_lr: Some(options.min_learning_rate).filter(|_| options.schedule != Schedule::Constant),
            warmup: Some(options.warmup_steps),
            beta1: Some(options.beta1),
            beta2: Some(options.beta2),
            weight_decay: Some(options.weight_decay),
            optimizer: Some(options.optimizer),
            matrix_lr: Some(options.matrix_learning_rate).filter(|_| is_muon),
            matrix_weight_decay: Some(options.matrix_weight_decay).filter(|_| is_muon),
            momentum: Some(options.momentum).filter(|_| is_muon),
            momentum_warmup: Some(options.momentum_warmup_steps).filter(|_| is_muon),
            embedding_lr: options.embedding_learning_rate,
            head_lr: options.head_learning_rate,
            cautious_updates: Some(options.cautious_updates),
            cautious_decay: Some(options.cautious_decay),
            z_loss: Some(options.z_loss),
            batch_ramp: options.batch_ramp,
            context_ramp: options.context_ramp,
            clip: Some(options.clip_norm),
            isolate_documents: Some(options.isolate_documents),
            accumulate: Some(options.accumulate),
            schedule: Some(options.schedule),
            decay_steps: Some(options.decay_steps).filter(|_| options.schedule == Schedule::WarmupStableDecay),
            label_smoothing: Some(options.label_smoothing),
            ema: Some(options.ema),
            patience: Some(options.patience),
            skip_bad_steps: Some(options.skip_bad_steps),
            statistics_every: Some(options.statistics_every),
            eval_every: Some(options.eval_every),
            seed: Some(options.seed),
            ..Self::default()
        }
    }
}

/// The number of heads that divides `dim` into heads of about this width, a multiple of `unit`; a multiple of `groups`.
pub fn heads_of_width(dim: usize, width: usize, unit: usize, groups: usize) -> usize {
    let groups = groups.max(1);
    let fits = |width: &usize| {
        *width > 0 && width.is_multiple_of(unit) && dim.is_multiple_of(*width) && (dim / width).is_multiple_of(groups)
    };
    // Heads are never wider than the channels.
    let width = width.min(dim);
    let mut widths = (0..=width / 2).flat_map(|away| [width - away, width.saturating_add(away)]);
    widths.find(fits).map_or(groups, |width| dim / width)
}

/// Whether an option is given and differs from the recipe's.
fn differs<T: PartialEq>(given: Option<T>, recipe: T) -> bool {
    given.is_some_and(|given| given != recipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_attention::model::Architecture;

    use crate::cli::presets::Preset;

    /// Options that hold together.
    fn checked(options: Options) -> Options {
        options.check().unwrap();
        options.model_config(65, None).validate().unwrap();
        options
    }

    #[test]
    fn given_options_take_precedence_and_a_recipe_adapts_to_them() {
        let quick = Preset::Quick.options().unwrap();
        let filled = |given: Options| checked(given.with_recipe(&quick).unwrap());
        assert_eq!(filled(Options::default()), quick);

        let adamw = filled(Options { optimizer: Some(OptimizerKind::AdamW), ..Default::default() });
        assert_eq!((adamw.momentum, adamw.lr, adamw.dim), (None, None, quick.dim));

        let slow = filled(Options { lr: quick.lr.map(|lr| lr / 4.0), matrix_lr: Some(0.5), ..Default::default() });
        assert_eq!((slow.embedding_lr, slow.matrix_lr), (quick.embedding_lr.map(|lr| lr / 4.0), Some(0.5)));

        let wide = filled(Options { dim: Some(80), ..Default::default() });
        assert_eq!((wide.hidden, wide.layers), (None, quick.layers));

        for (dim, heads) in [(30, 1), (80, 2), (96, 2), (90, 3), (202, 1)] {
            assert_eq!(filled(Options { dim: Some(dim), ..Default::default() }).heads, Some(heads), "{dim} channels");
        }

        let warm = filled(Options { warmup: Some(100), ..Default::default() });
        assert_eq!((warm.steps, warm.decay_steps), (Some(300), Some(200)));

        let decaying = filled(Options { decay_steps: Some(295), ..Default::default() });
        assert_eq!((decaying.steps, decaying.warmup), (Some(300), Some(5)));

        // An option given with the recipe's own value, even a default one, changes nothing.
        let gpt2 = Options { lr: Some(3e-3), ..Preset::Gpt2.options().unwrap() };
        let given = Options {
            optimizer: Some(OptimizerKind::AdamW),
            schedule: Some(Schedule::Cosine),
            dim: Some(128),
            ..Default::default()
        };
        let options = given.with_recipe(&gpt2).unwrap();
        assert_eq!((options.lr, options.train_options()), (gpt2.lr, gpt2.train_options()));

        let longer = filled(Options { steps: quick.steps.map(|steps| 2 * steps), ..Default::default() });
        assert_eq!(longer.decay_steps, quick.decay_steps.map(|steps| 2 * steps));
        filled(Options { steps: Some(1), ..Default::default() });

        let cosine = filled(Options { schedule: Some(Schedule::Cosine), ..Default::default() });
        assert_eq!(cosine.decay_steps, None);
        filled(Options { schedule: Some(Schedule::Constant), ..Default::default() });
        filled(Options { architecture: Some(Architecture::Gpt2), ..Default::default() });
        filled(Options { tie: Some(true), ..Default::default() });
    }

    #[test]
    fn ramps_and_groups_of_heads_follow_what_is_given() {
        let ramp = |steps| Some(Ramp { from: 4, steps });
        let recipe = Options { batch_ramp: ramp(40), momentum_warmup: Some(30), ..Preset::Quick.options().unwrap() };
        let filled = Options { steps: Some(600), ..Default::default() }.with_recipe(&recipe).unwrap();
        assert_eq!((filled.batch_ramp, filled.momentum_warmup), (ramp(80), Some(60)));

        let llama = Preset::Llama.options().unwrap();
        for (heads, kv_heads) in [(4, Some(2)), (8, Some(4)), (2, Some(1)), (1, None)] {
            let given = Options { heads: Some(heads), ..Default::default() };
            assert_eq!(checked(given.with_recipe(&llama).unwrap()).kv_heads, kv_heads, "{heads} heads");
        }
        // Only rotary positions need heads of an even width.
        let odd = Options { dim: Some(36), ..Default::default() };
        let gpt2 = Options { heads: Some(4), dim: Some(64), ..Preset::Gpt2.options().unwrap() };
        assert_eq!(checked(odd.with_recipe(&gpt2).unwrap()).heads, Some(4));
        assert_eq!(
            checked(odd.with_recipe(&Options { architecture: Some(Architecture::Llama), ..gpt2 }).unwrap()).heads,
            Some(2)
        );
    }

    #[test]
    fn a_saved_run_is_a_recipe() {
        let quick = Preset::Quick.options().unwrap();
        let choice = TokenizerChoice::Characters;
        let saved = quick.as_saved(Some(&choice), &quick.model_config(65, None), &quick.train_options()).unwrap();
        assert_eq!(Options::default().with_recipe(&saved).unwrap(), saved);
        let filled = |given: Options| checked(given.with_recipe(&saved).unwrap());
        let shorter = filled(Options { steps: Some(200), ..Default::default() });
        assert_eq!((shorter.warmup, shorter.decay_steps, shorter.eval_every), (Some(6), Some(160), Some(200)));
        let wide = filled(Options { dim: Some(128), ..Default::default() });
        assert_eq!((wide.heads, wide.kv_heads, wide.head_dim, wide.hidden), (Some(2), Some(2), None, None));
        let adamw = filled(Options { optimizer: Some(OptimizerKind::AdamW), ..Default::default() });
        assert_eq!((adamw.lr, adamw.matrix_lr, adamw.weight_decay, adamw.momentum), (None, None, None, None));
        let slow = filled(Options { lr: Some(0.005), ..Default::default() });
        assert_eq!((slow.matrix_lr, slow.embedding_lr), (Some(0.01), Some(0.01)));
        let init = Options { init: Some("run".into()), ..Default::default() }.with_recipe(&saved).unwrap();
        init.check_init().unwrap();
        assert_eq!(init.steps, saved.steps);
    }

    /// Options that are read from a run's settings but not written there, each for a reason.
    const NOT_SAVED: [&str; 4] = [
        "init",                // of runs that start from a folder, which are saved without sizes
        "preset",              // its options are
        "save-every",          // only where it is given
        "validation-fraction", // unless there are validation texts
    ];

    #[test]
    fn every_option_is_saved() {
        let command = <Options as clap::Args>::augment_args(clap::Command::new("train"));
        let names = command.get_arguments().filter_map(|arg| arg.get_long()).filter(|name| *name != "help");
        let (config, options) = every_option();
        let given = Options { validation: vec!["other.txt".into()], ..Options::default() };
        let saved = given.as_saved(Some(&TokenizerChoice::Characters), &config, &options).unwrap();
        let table = saved.table().unwrap();
        let missing: Vec<&str> = names.filter(|name| !table.contains_key(*name)).collect();
        let mut expected = NOT_SAVED.to_vec();
        expected.sort_by_key(|name| missing.iter().position(|missing| missing == name));
        assert_eq!(missing, expected);
    }

    #[test]
    fn every_training_option_comes_back_from_what_is_saved() {
        let (config, options) = every_option();
        let saved = Options::default().as_saved(Some(&TokenizerChoice::Characters), &config, &options).unwrap();
        let read = Options::from_toml(&saved.to_toml().unwrap()).unwrap();
        assert_eq!(read.train_options(), options);
        assert_eq!(read.model_config(65, None), config);
    }

    /// A model and training options none of which has its default. Without `..`, so that a new option is missed here.
    fn every_option() -> (ModelConfig, TrainOptions) {
        let config = ModelConfig {
            num_layers: 3,
            num_heads: 6,
            embed_dim: 60,
            num_kv_heads: Some(2),
            head_dim: Some(12),
            rope_theta: 500.0,
            hidden_dim: 77,
            context_len: 33,
            bias: true,
            mlp_bias: true,
            tie_embeddings: false,
            residual_init: ResidualInit::Zero,
            dropout: candle_attention::model::DropoutRates::all(0.1),
            ..ModelConfig::llama(65)
        };
        let options = TrainOptions {
            steps: 77,
            batch_size: 7,
            shards: 3,
            accumulate: 2,
            learning_rate: 0.011,
            min_learning_rate: 0.002,
            warmup_steps: 5,
            schedule: Schedule::WarmupStableDecay,
            decay_steps: 33,
            beta1: 0.8,
            beta2: 0.98,
            eps: TrainOptions::default().eps, // not an option of the command
            weight_decay: 0.3,
            optimizer: OptimizerKind::Muon,
            matrix_learning_rate: 0.04,
            matrix_weight_decay: 0.2,
            momentum: 0.9,
            momentum_warmup_steps: 4,
            embedding_learning_rate: Some(0.05),
            head_learning_rate: Some(0.06),
            cautious_updates: true,
            cautious_decay: true,
            clip_norm: 0.7,
            label_smoothing: 0.05,
            z_loss: 0.001,
            batch_ramp: Some(Ramp { from: 2, steps: 9 }),
            context_ramp: Some(Ramp { from: 4, steps: 8 }),
            ema: 0.99,
            isolate_documents: true,
            eval_every: 11,
            patience: 6,
            skip_bad_steps: 2,
            statistics_every: 10,
            seed: 42,
        };
        (config, options)
    }
}
