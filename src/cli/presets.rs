//! Recipes with a name: files of options that are built in.

use anyhow::{Context, Result};
use candle_attention::model::ModelConfig;
use candle_attention::train::Schedule;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::automatic::Text;
use super::options::Options;

/// A recipe that is built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// nanoGPT's recipe for the CPU: LayerNorm, learned positions, GELU; AdamW
    Gpt2,
    /// The same sizes and rates with RMSNorm, rotary positions and a gated feed-forward network
    Llama,
    /// As llama, with normalised queries and keys
    Qwen3,
    /// To validation loss 1.88 on Tiny Shakespeare in some seconds: a small qwen3, Muon
    Quick,
    /// The lowest loss on Tiny Shakespeare that 20 minutes on two cores give: a larger qwen3, Muon, dropout
    Best,
}

impl Preset {
    /// Its options.
    pub fn options(self) -> Result<Options> {
        let (name, toml) = match self {
            Self::Gpt2 => ("gpt2", include_str!("presets/gpt2.toml")),
            Self::Llama => ("llama", include_str!("presets/llama.toml")),
            Self::Qwen3 => ("qwen3", include_str!("presets/qwen3.toml")),
            Self::Quick => ("quick", include_str!("presets/quick.toml")),
            Self::Best => ("best", include_str!("presets/best.toml")),
        };
        Options::from_toml(toml).with_context(|| format!("preset {name}"))
    }
}

impl Options {
    /// With what is not given by the recipe that is asked for; without one, by that of the `text`. They
    /// are those of the same run again wherever they are read.
    pub fn completed(&self, text: &Text) -> Result<Self> {
        let recipe = match self.preset {
            Some(preset) => preset.options()?,
            None => text.recipe(self.train_options().shards, self.steps)?,
        };
        let options = Self { preset: None, ..self.by_recipe(&recipe)? };
        // Said outright, lest another recipe's stands in its place where these options are read again.
        let embedding_lr = options.embedding_lr.or(Some(options.train_options().learning_rate));
        Ok(Self { embedding_lr, ..options })
    }

    /// These options, and those of a `recipe` where one is not given and nothing given stands against it: what only fits
    /// the recipe's optimizer, schedule, sizes or length is left out or follows these, and its rates keep their proportion.
    pub fn by_recipe(&self, recipe: &Self) -> Result<Self> {
        let mut rest = recipe.clone();
        let architecture = recipe.architecture.unwrap_or_default();
        let default = ModelConfig::of(architecture, 2);
        let (heads, dim) = (recipe.heads.unwrap_or(default.num_heads), recipe.dim.unwrap_or(default.embed_dim));
        if differs(self.optimizer, recipe.optimizer.unwrap_or_default()) {
            rest = Self {
                optimizer: None,
                lr: None,
                min_lr: None,
                weight_decay: None,
                matrix_lr: None,
                matrix_weight_decay: None,
                momentum: None,
                momentum_warmup: None,
                embedding_lr: None,
                head_lr: None,
                ..rest
            };
        }
        if differs(self.architecture, architecture) {
            rest = Self { kv_heads: None, head_dim: None, rope_theta: None, hidden: None, ..rest };
        }
        if differs(self.dim, dim) || differs(self.heads, heads) {
            rest = Self { kv_heads: None, head_dim: None, ..rest };
        }
        if differs(self.dim, dim) {
            let fitting = self.dim.map(|given| fitting_heads(given, heads, dim));
            rest = Self { heads: fitting, hidden: None, ..rest };
        }
        if self.tie == Some(true) {
            rest.head_lr = None;
        }
        rest = rest.at_rate(self.lr);
        if let (Some(steps), Some(of_recipe)) = (self.steps, recipe.steps) {
            let scaled = |n: Option<u64>| n.map(|n| (n as u128 * steps as u128 / of_recipe.max(1) as u128) as u64);
            rest.warmup = scaled(rest.warmup);
            rest.decay_steps = scaled(rest.decay_steps).map(|n| n.max(1));
            rest.eval_every = scaled(rest.eval_every).map(|n| n.max(1));
        }
        if differs(self.schedule, recipe.schedule.unwrap_or_default()) {
            rest.decay_steps = None;
        }
        if let (Some(steps), Some(warmup)) = (self.steps.or(rest.steps), self.warmup) {
            rest.decay_steps = rest.decay_steps.map(|n| n.min(steps.saturating_sub(warmup)).max(1));
        }
        if self.schedule == Some(Schedule::Constant) {
            rest.min_lr = None;
        }
        self.or(&rest)
    }
}

impl Options {
    /// With all rates in the proportion that this one, if it is given, is to that of `--lr`.
    pub fn at_rate(self, given: Option<f64>) -> Self {
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
}

/// Heads for `dim` channels: as many as the recipe's if they fit, else of about as many channels as the recipe's, else one.
fn fitting_heads(dim: usize, of_recipe: usize, dim_of_recipe: usize) -> usize {
    // Rotary positions turn pairs of channels.
    if of_recipe > 0 && dim.is_multiple_of(2 * of_recipe) {
        return of_recipe;
    }
    let width = dim_of_recipe / of_recipe.max(1);
    let mut widths = (0..=width / 2).flat_map(|away| [width - away, width + away]);
    widths
        .find(|&width| width > 0 && width.is_multiple_of(2) && dim.is_multiple_of(width))
        .map_or(1, |width| dim / width)
}

/// Whether an option is given, and not as the recipe has it.
fn differs<T: PartialEq>(given: Option<T>, recipe: T) -> bool {
    given.is_some_and(|given| given != recipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_attention::model::Architecture;
    use candle_attention::train::OptimizerKind;

    #[test]
    fn every_preset_holds_together() {
        for preset in Preset::value_variants() {
            let options = preset.options().unwrap();
            options.check_meaning().unwrap();
            options.train_options().validate().unwrap();
            options.model_config(65, None).validate().unwrap();
        }
    }

    #[test]
    fn what_is_given_goes_first_and_what_cannot_stand_beside_it_goes() {
        let quick = Preset::Quick.options().unwrap();
        let filled = |given: Options| {
            let options = given.by_recipe(&quick).unwrap();
            options.check_meaning().unwrap();
            options.train_options().validate().unwrap();
            options.model_config(65, None).validate().unwrap();
            options
        };
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

        // What is as the recipe has it, if only by default, changes nothing.
        let gpt2 = Options { lr: Some(3e-3), ..Preset::Gpt2.options().unwrap() };
        let given = Options {
            optimizer: Some(OptimizerKind::AdamW),
            schedule: Some(Schedule::Cosine),
            dim: Some(128),
            ..Default::default()
        };
        let options = given.by_recipe(&gpt2).unwrap();
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
}
