//! The options of `attn train`, from the command line and from a file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_attention::model::{Activation, DropoutRates, ModelConfig};
use candle_attention::text::TokenizerChoice;
use candle_attention::train::TrainOptions;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// Steps and learning rate of a run on the built-in corpus: about a minute on two cores.
const BUILT_IN_STEPS: u64 = 1500;
const BUILT_IN_LEARNING_RATE: f64 = 3e-3;

/// Everything that shapes a run and is saved with it. An option that is not given is `None`; see [`Options::resolved`].
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Options {
    /// Text files to train on, and folders of them, UTF-8 (or any files with --tokenizer byte)
    #[arg(value_name = "TEXT")]
    pub texts: Vec<PathBuf>,
    /// A text file to validate on, or a folder of them, instead of the last part of TEXT; may be given several times
    #[arg(long, value_name = "FILE")]
    pub validation: Vec<PathBuf>,
    /// The part of TEXT, at its end, that is held out to validate on [default: 0.1]
    #[arg(long, value_name = "FRACTION", conflicts_with = "validation")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_fraction: Option<f64>,
    /// char, byte, bpe:N (N tokens, learned from TEXT) or the path of a tokenizer.json [default: char]
    #[arg(long)]
    pub tokenizer: Option<String>,
    /// Start from the weights, sizes and tokenizer of this model folder
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// The model's form [default: gpt2]
    #[arg(long, value_enum, help_heading = "Model")]
    pub preset: Option<Preset>,
    /// Blocks [default: 4]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub layers: Option<usize>,
    /// Attention heads; they divide --dim [default: 4]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub heads: Option<usize>,
    /// Channels of the residual stream [default: 128]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub dim: Option<usize>,
    /// Channels inside the feed-forward networks [default: 4 times --dim]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub hidden: Option<usize>,
    /// Positions the model sees at once [default: 64]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub context: Option<usize>,
    /// Whether projections and norms have biases [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Model")]
    pub bias: Option<bool>,
    /// Whether the output projection is the token embedding [default: true]
    #[arg(long, value_name = "BOOL", help_heading = "Model")]
    pub tie: Option<bool>,
    /// Optimizer steps [default: 2000, or 1500 on the built-in corpus]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub steps: Option<u64>,
    /// Sequences a step [default: 12]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub batch: Option<usize>,
    /// Parts of a batch that run side by side, each on one thread [default: one a core]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub shards: Option<usize>,
    /// Keep documents that share a window apart: none sees another [default: false]
    #[arg(
        long, value_name = "BOOL", help_heading = "Training", num_args = 0..=1, default_missing_value = "true",
        require_equals = true
    )]
    pub isolate_documents: Option<bool>,
    /// The share of activations dropped in training, from 0 to below 1 [default: 0, or that of --init]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub dropout: Option<f64>,
    /// Highest learning rate [default: 0.001, or 0.003 on the built-in corpus]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub lr: Option<f64>,
    /// Learning rate at the end [default: a tenth of --lr]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub min_lr: Option<f64>,
    /// Steps over which the learning rate rises [default: 100, or a tenth of --steps if that is less]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub warmup: Option<u64>,
    /// AdamW's decay of the first moment [default: 0.9]
    #[arg(long, value_name = "BETA", help_heading = "Training")]
    pub beta1: Option<f64>,
    /// AdamW's decay of the second moment [default: 0.99]
    #[arg(long, value_name = "BETA", help_heading = "Training")]
    pub beta2: Option<f64>,
    /// AdamW's weight decay, on matrices only [default: 0.1]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub weight_decay: Option<f64>,
    /// Global gradient norm above which gradients are scaled down; 0 for never [default: 1]
    #[arg(long, value_name = "NORM", help_heading = "Training")]
    pub clip: Option<f64>,
    /// Steps between validations, each followed by a checkpoint [default: a fifth of --steps]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub eval_every: Option<u64>,
    /// Seed of the initial weights and the batches [default: 1]
    #[arg(long, help_heading = "Training")]
    pub seed: Option<u64>,
}

/// A form of model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// nanoGPT's: LayerNorm, learned positions, GELU
    #[default]
    Gpt2,
}

impl Options {
    /// Reads a file of options in TOML.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::from_toml(&text).with_context(|| path.display().to_string())
    }

    /// Reads options in TOML.
    pub fn from_toml(text: &str) -> Result<Self> {
        // The error's own text shows the place over several lines; its message is the one line that we print.
        toml::from_str(text).map_err(|error: toml::de::Error| match error.span() {
            Some(span) => {
                let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
                anyhow::anyhow!("line {line}: {}", error.message().replace('\n', ", "))
            }
            None => anyhow::anyhow!("{}", error.message().replace('\n', ", ")),
        })
    }

    /// These options in TOML.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// These options, and those of `fallback` where one is not given.
    pub fn or(&self, fallback: &Self) -> Result<Self> {
        let mut merged = fallback.table()?;
        let given = self.table()?;
        // The two ways to hold a text out exclude each other, so one that is given drops the other.
        for (name, other) in [("validation", "validation-fraction"), ("validation-fraction", "validation")] {
            if given.contains_key(name) {
                merged.remove(other);
            }
        }
        merged.extend(given);
        Ok(merged.try_into()?)
    }

    /// The names of the options that are given.
    pub fn given(&self) -> Result<Vec<String>> {
        Ok(self.table()?.into_iter().map(|(name, _)| name).collect())
    }

    /// The options that are given.
    fn table(&self) -> Result<toml::Table> {
        let mut table = toml::Table::try_from(self)?;
        table.retain(|_, value| !value.as_array().is_some_and(Vec::is_empty));
        Ok(table)
    }

    /// The training options, with defaults for what is not given.
    pub fn train_options(&self) -> TrainOptions {
        let default = TrainOptions::default();
        let (steps, learning_rate) = match self.texts.is_empty() {
            true => (BUILT_IN_STEPS, BUILT_IN_LEARNING_RATE),
            false => (default.steps, default.learning_rate),
        };
        let (steps, learning_rate) = (self.steps.unwrap_or(steps), self.lr.unwrap_or(learning_rate));
        TrainOptions {
            steps,
            batch_size: self.batch.unwrap_or(default.batch_size),
            shards: self.shards.unwrap_or(default.shards),
            learning_rate,
            min_learning_rate: self.min_lr.unwrap_or(learning_rate / 10.0),
            warmup_steps: self.warmup.unwrap_or(default.warmup_steps.min(steps / 10)),
            beta1: self.beta1.unwrap_or(default.beta1),
            beta2: self.beta2.unwrap_or(default.beta2),
            eps: default.eps,
            weight_decay: self.weight_decay.unwrap_or(default.weight_decay),
            clip_norm: self.clip.unwrap_or(default.clip_norm),
            isolate_documents: self.isolate_documents.unwrap_or(default.isolate_documents),
            eval_every: self.eval_every.unwrap_or((steps / 5).max(1)),
            seed: self.seed.unwrap_or(default.seed),
        }
    }

    /// The model, with defaults for what is not given; the vocabulary is the tokenizer's.
    pub fn model_config(&self, vocab_size: usize, end_of_text_id: Option<u32>) -> ModelConfig {
        let default = match self.preset.unwrap_or_default() {
            Preset::Gpt2 => ModelConfig::gpt2(vocab_size),
        };
        let embed_dim = self.dim.unwrap_or(default.embed_dim);
        ModelConfig {
            context_len: self.context.unwrap_or(default.context_len),
            embed_dim,
            num_layers: self.layers.unwrap_or(default.num_layers),
            num_heads: self.heads.unwrap_or(default.num_heads),
            hidden_dim: self.hidden.unwrap_or(embed_dim.saturating_mul(4)),
            activation: Activation::GeluErf,
            bias: self.bias.unwrap_or(default.bias),
            tie_embeddings: self.tie.unwrap_or(default.tie_embeddings),
            end_of_text_id,
            dropout: DropoutRates::all(self.dropout.unwrap_or(0.0)),
            ..default
        }
    }

    /// The model in the folder `init`, with another dropout where one is given.
    pub fn init_config(&self, init: &Path) -> Result<ModelConfig> {
        let mut config = ModelConfig::open(init)?;
        if let Some(rate) = self.dropout {
            config.dropout = DropoutRates::all(rate);
        }
        config.validate()?;
        Ok(config)
    }

    /// With every option given that a later run needs to be the same, and paths that hold from anywhere: what is saved
    /// with a run.
    pub fn resolved(&self, tokenizer: &TokenizerChoice, config: &ModelConfig, options: &TrainOptions) -> Result<Self> {
        let absolute = |paths: &[PathBuf]| paths.iter().map(std::path::absolute).collect::<std::io::Result<_>>();
        let mut resolved = Self {
            texts: absolute(&self.texts)?,
            validation: absolute(&self.validation)?,
            validation_fraction: self.validation_fraction,
            init: self.init.as_ref().map(std::path::absolute).transpose()?,
            steps: Some(options.steps),
            batch: Some(options.batch_size),
            shards: Some(options.shards),
            lr: Some(options.learning_rate),
            min_lr: Some(options.min_learning_rate),
            warmup: Some(options.warmup_steps),
            beta1: Some(options.beta1),
            beta2: Some(options.beta2),
            weight_decay: Some(options.weight_decay),
            clip: Some(options.clip_norm),
            isolate_documents: Some(options.isolate_documents),
            eval_every: Some(options.eval_every),
            seed: Some(options.seed),
            dropout: self.dropout,
            ..Self::default()
        };
        // With `init` the sizes and the tokenizer are those of its folder.
        if self.init.is_none() {
            resolved.tokenizer = Some(match tokenizer {
                TokenizerChoice::File(path) => std::path::absolute(path)?.display().to_string(),
                choice => choice.to_string(),
            });
            resolved.preset = Some(self.preset.unwrap_or_default());
            resolved.layers = Some(config.num_layers);
            resolved.heads = Some(config.num_heads);
            resolved.dim = Some(config.embed_dim);
            resolved.hidden = Some(config.hidden_dim);
            resolved.context = Some(config.context_len);
            resolved.bias = Some(config.bias);
            resolved.tie = Some(config.tie_embeddings);
            resolved.dropout = Some(config.dropout.residual);
        }
        Ok(resolved)
    }

    /// Refuses sizes beside `--init`, whose model has its own.
    pub fn check_init(&self) -> Result<()> {
        let names = ["preset", "layers", "heads", "dim", "hidden", "context", "bias", "tie", "tokenizer"];
        let given = self.given()?;
        match names.iter().find(|name| given.iter().any(|given| given == *name)) {
            Some(name) => bail!("--{name} cannot be given with --init, whose model has its own"),
            None => Ok(()),
        }
    }
}
