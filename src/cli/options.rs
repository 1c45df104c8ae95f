//! The options of `attn train`, from the command line and from a file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_attention::input;
use candle_attention::model::Architecture;
use candle_attention::train::{OptimizerKind, Ramp, Schedule};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::presets::Preset;

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
    /// The part of TEXT, at its end, that is held out to validate on [default: 0.1, of a large text less]
    #[arg(long, value_name = "FRACTION", conflicts_with = "validation")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_fraction: Option<f64>,
    /// char, byte, bpe:N (N tokens, learned from TEXT) or the path of a tokenizer.json [default: char]
    #[arg(long)]
    pub tokenizer: Option<String>,
    /// Start from the weights, sizes and tokenizer of this model folder; no recipe is chosen for it, and what is not given here
    /// is that of nanoGPT's for the CPU
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// A recipe that is built in, for all that has no default here; without one, the text's length and the machine's cores
    /// choose. With --dry-run it is shown
    #[arg(long, value_enum)]
    pub preset: Option<Preset>,
    /// The model's form
    #[arg(long, value_enum, help_heading = "Model")]
    pub architecture: Option<Architecture>,
    /// Blocks
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub layers: Option<usize>,
    /// Attention heads; they divide --dim
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub heads: Option<usize>,
    /// Channels of the residual stream
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub dim: Option<usize>,
    /// Heads of keys and values, which divide --heads; not in gpt2 [default: as many as --heads]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub kv_heads: Option<usize>,
    /// Channels of a head; not in gpt2 [default: --dim divided by --heads]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub head_dim: Option<usize>,
    /// The base of the angles that stand for positions; not in gpt2 [default: 10000]
    #[arg(long, value_name = "BASE", help_heading = "Model")]
    pub rope_theta: Option<f64>,
    /// Channels inside the feed-forward networks [default: 4 times --dim; with a gate, in llama and qwen3, about 8/3 times]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub hidden: Option<usize>,
    /// Positions the model sees at once
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub context: Option<usize>,
    /// Whether projections have biases, in gpt2 its norms too, in qwen3 those of attention alone [default: false]
    #[arg(long, value_name = "BOOL", help_heading = "Model")]
    pub bias: Option<bool>,
    /// Whether the output projection is the token embedding
    #[arg(long, value_name = "BOOL", help_heading = "Model")]
    pub tie: Option<bool>,
    /// Start the projections back into the residual stream at zero
    #[arg(long, value_name = "BOOL", help_heading = "Model")]
    pub zero_residual: Option<bool>,
    /// Optimizer steps
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub steps: Option<u64>,
    /// Sequences a step
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub batch: Option<usize>,
    /// Parts of a batch that run side by side, each on one thread [default: one a core, at most 12]
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
    /// Parts that a batch is run in, one after the other: the result of --batch, but for its last bits, in the memory of a batch
    /// of --batch / N [default: 1]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub accumulate: Option<usize>,
    /// Highest learning rate, under --optimizer muon that of all but the matrices inside the blocks; the other rates of a recipe
    /// keep their proportion to it unless they are given
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub lr: Option<f64>,
    /// Learning rate at the end
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub min_lr: Option<f64>,
    /// Steps over which the learning rate rises
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub warmup: Option<u64>,
    /// How the learning rate goes on after the warm-up
    #[arg(long, value_enum, help_heading = "Training")]
    pub schedule: Option<Schedule>,
    /// Steps of the decay of --schedule warmup-stable-decay
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub decay_steps: Option<u64>,
    /// What updates the weights
    #[arg(long, value_enum, help_heading = "Training")]
    pub optimizer: Option<OptimizerKind>,
    /// Highest learning rate of the matrices inside the blocks, under --optimizer muon
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub matrix_lr: Option<f64>,
    /// Weight decay of those matrices
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub matrix_weight_decay: Option<f64>,
    /// Muon's decay of the running mean of the gradient
    #[arg(long, value_name = "DECAY", help_heading = "Training")]
    pub momentum: Option<f64>,
    /// Steps over which that decay rises from 0.85 [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub momentum_warmup: Option<u64>,
    /// Highest learning rate of the embeddings [default: that of --lr]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub embedding_lr: Option<f64>,
    /// Highest learning rate of the output projection of a model with --tie false [default: that of --lr]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub head_lr: Option<f64>,
    /// Leave out the elements of each update that point against the gradient [default: false]
    #[arg(
        long, value_name = "BOOL", help_heading = "Training", num_args = 0..=1, default_missing_value = "true",
        require_equals = true
    )]
    pub cautious_updates: Option<bool>,
    /// No weight decay where the update makes a weight larger [default: false]
    #[arg(
        long, value_name = "BOOL", help_heading = "Training", num_args = 0..=1, default_missing_value = "true",
        require_equals = true
    )]
    pub cautious_decay: Option<bool>,
    /// Begin with batches of FROM sequences, which grow to --batch by equal steps over the first STEPS
    #[arg(long, value_name = "FROM:STEPS", help_heading = "Training")]
    pub batch_ramp: Option<Ramp>,
    /// Begin with windows of FROM tokens, which grow to --context by equal steps over the first STEPS
    #[arg(long, value_name = "FROM:STEPS", help_heading = "Training")]
    pub context_ramp: Option<Ramp>,
    /// Factor on the square of the logits' log-sum-exp, added to the training loss, such as 0.0001 [default: 0]
    #[arg(long, value_name = "FACTOR", help_heading = "Training")]
    pub z_loss: Option<f64>,
    /// AdamW's decay of the first moment [default: 0.9]
    #[arg(long, value_name = "BETA", help_heading = "Training")]
    pub beta1: Option<f64>,
    /// AdamW's decay of the second moment [default: 0.99]
    #[arg(long, value_name = "BETA", help_heading = "Training")]
    pub beta2: Option<f64>,
    /// AdamW's weight decay, on matrices only
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub weight_decay: Option<f64>,
    /// Global gradient norm above which gradients are scaled down; 0 for never [default: 1]
    #[arg(long, value_name = "NORM", help_heading = "Training")]
    pub clip: Option<f64>,
    /// The part of each target's probability that is spread over the vocabulary, in training only [default: 0]
    #[arg(long, value_name = "PART", help_heading = "Training")]
    pub label_smoothing: Option<f64>,
    /// Decay of a moving average of the weights, such as 0.999, which is then validated and saved as the model; 0 for none
    /// [default: 0]
    #[arg(long, value_name = "DECAY", help_heading = "Training")]
    pub ema: Option<f64>,
    /// Steps between validations, each followed by a checkpoint; unless a recipe says otherwise a fifth of --steps
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub eval_every: Option<u64>,
    /// Minutes after which a checkpoint is written where none came with a validation; 0 for one after every step [default: 10]
    #[arg(long, value_name = "MINUTES", help_heading = "Training")]
    pub save_every: Option<f64>,
    /// Stop after so many validations in a row without a lower loss; 0 for never [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub patience: Option<u64>,
    /// Skip up to so many steps in a row whose loss or gradient is not finite, instead of stopping at the first [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub skip_bad_steps: Option<u64>,
    /// Steps between reports of the norms of every tensor, its gradient and its update, in the metrics; 0 for never
    /// [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub statistics_every: Option<u64>,
    /// Seed of the initial weights and the batches [default: 1]
    #[arg(long, help_heading = "Training")]
    pub seed: Option<u64>,
}

impl Options {
    /// Reads a file of options in TOML.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = input::read_text(path, input::MOST_CONFIG_BYTES)?;
        Self::from_toml(&text).with_context(|| path.display().to_string())
    }

    /// Reads options in TOML.
    pub fn from_toml(text: &str) -> Result<Self> {
        // The error's own text shows the place over several lines; its message is the one line that we print.
        toml::from_str(text).map_err(|error: toml::de::Error| match error.span() {
            Some(span) => {
                let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
                anyhow::anyhow!("line {line}: {}", in_words(error.message()))
            }
            None => anyhow::anyhow!("{}", in_words(error.message())),
        })
    }

    /// These options in TOML.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// These options, and those of `fallback` where one is not given.
    pub fn or(&self, fallback: &Self) -> Result<Self> {
        let given = self.table()?;
        let mut merged = fallback.table()?;
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
        let paths = self.texts.iter().chain(&self.validation).chain(&self.init);
        if let Some(path) = paths.into_iter().find(|path| path.to_str().is_none()) {
            bail!("{}: expected a path in UTF-8, as the settings of a run are", path.display());
        }
        // TOML has no larger whole numbers.
        let most = i64::MAX as u64;
        let fields = serde_json::to_value(self)?;
        let mut numbers =
            fields.as_object().into_iter().flatten().filter_map(|(name, value)| Some((name, value.as_u64()?)));
        if let Some((name, number)) = numbers.find(|(_, number)| *number > most) {
            bail!("--{name}: expected at most {most}, got {number}");
        }
        let mut table = toml::Table::try_from(self)?;
        table.retain(|_, value| !value.as_array().is_some_and(Vec::is_empty));
        Ok(table)
    }
}

/// An error of a TOML file on one line, with words in the place of Rust's types.
fn in_words(message: &str) -> String {
    let words = [
        ("\n", ", "),
        (" as i128", ""),
        ("expected usize", "expected a whole number from 0 on"),
        ("expected u64", "expected a whole number from 0 on"),
        ("expected f64", "expected a number"),
        ("expected a boolean", "expected true or false"),
        ("expected a sequence", "expected a list"),
    ];
    words.iter().fold(message.to_string(), |message, (rust, word)| message.replace(rust, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_file_speak_no_rust() {
        for (toml, expected) in [
            ("layers = \"2\"", "line 1: invalid type: string \"2\", expected a whole number from 0 on"),
            ("\nsteps = -1", "line 2: invalid value: integer `-1`, expected a whole number from 0 on"),
            ("lr = \"x\"", "line 1: invalid type: string \"x\", expected a number"),
            ("texts = 1", "line 1: invalid type: integer `1`, expected a list"),
            ("bias = 1", "line 1: invalid type: integer `1`, expected true or false"),
        ] {
            assert_eq!(Options::from_toml(toml).unwrap_err().to_string(), expected);
        }
    }
}
