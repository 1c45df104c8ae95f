//! The options of `attn train`, from the command line and from a file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_attention::input;
use candle_attention::model::Architecture;
use candle_attention::train::{OptimizerKind, Ramp, Schedule};
use clap::{Arg, Args};
use serde::{Deserialize, Serialize};

use super::presets::Preset;

/// Everything that shapes a run and is saved with it; `None` is an option that is not set. [`merge`](super::merge) says
/// how options from several places combine.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[command(mut_args(as_switch))]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Options {
    /// Text files to train on, or folders of them: UTF-8, or any bytes with --tokenizer byte
    #[arg(value_name = "TEXT")]
    pub texts: Vec<PathBuf>,
    /// Text file or folder to validate on, instead of the end of TEXT; may be repeated
    #[arg(long, value_name = "FILE")]
    pub validation: Vec<PathBuf>,
    /// Fraction of TEXT, from its end, held out for validation [default: 0.1, less for large texts]
    #[arg(long, value_name = "FRACTION", conflicts_with = "validation")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_fraction: Option<f64>,
    /// char, byte, bpe:N (N tokens, learned from TEXT) or the path of a tokenizer.json [default: char]
    #[arg(long)]
    pub tokenizer: Option<String>,
    /// Start from the weights, sizes and tokenizer of this model folder; training options you don't set are those of
    /// nanoGPT's CPU recipe
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Built-in recipe for the options you don't set; without one they are chosen from the text's length and the number
    /// of cores. --dry-run prints it
    #[arg(long, value_enum)]
    pub preset: Option<Preset>,
    /// Model architecture
    #[arg(long, value_enum, help_heading = "Model")]
    pub architecture: Option<Architecture>,
    /// Number of blocks
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub layers: Option<usize>,
    /// Number of attention heads; must divide --dim, unless --head-dim is set
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub heads: Option<usize>,
    /// Width of the residual stream
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub dim: Option<usize>,
    /// Number of key and value heads, which must divide --heads; not for gpt2 [default: as many as --heads]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub kv_heads: Option<usize>,
    /// Width of a head; not for gpt2 [default: --dim divided by --heads]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub head_dim: Option<usize>,
    /// Base of the rotary position embedding; not for gpt2 [default: 10000]
    #[arg(long, value_name = "BASE", help_heading = "Model")]
    pub rope_theta: Option<f64>,
    /// Width of the feed-forward networks [default: 4 times --dim; about 8/3 times for llama and qwen3, which have a
    /// gate]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub hidden: Option<usize>,
    /// Context length: the most tokens the model sees at once
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub context: Option<usize>,
    /// Give projections a bias: in gpt2 the norms too, in qwen3 only those of attention [default: false]
    #[arg(long, value_name = SWITCH, help_heading = "Model")]
    pub bias: Option<bool>,
    /// Use the token embedding as output projection
    #[arg(long, value_name = SWITCH, help_heading = "Model")]
    pub tie: Option<bool>,
    /// Initialise the projections into the residual stream to zero
    #[arg(long, value_name = SWITCH, help_heading = "Model")]
    pub zero_residual: Option<bool>,
    /// Number of optimizer steps
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub steps: Option<u64>,
    /// Sequences per step
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub batch: Option<usize>,
    /// Parts of a batch that run in parallel, one thread each [default: one per core, at most 12]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub shards: Option<usize>,
    /// Keep attention within a document where a window spans several [default: false]
    #[arg(long, value_name = SWITCH, help_heading = "Training")]
    pub isolate_documents: Option<bool>,
    /// Dropout rate, from 0 to below 1 [default: 0, or that of --init]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub dropout: Option<f64>,
    /// Split each batch into N parts and accumulate gradients: the same result up to rounding, in the memory of --batch
    /// / N [default: 1]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub accumulate: Option<usize>,
    /// Peak learning rate (with --optimizer muon, of everything but the matrices inside the blocks). Recipe rates you
    /// don't set scale with it
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub lr: Option<f64>,
    /// Final learning rate
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub min_lr: Option<f64>,
    /// Warm-up steps of the learning rate
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub warmup: Option<u64>,
    /// Learning-rate schedule after the warm-up
    #[arg(long, value_enum, help_heading = "Training")]
    pub schedule: Option<Schedule>,
    /// Decay steps of --schedule warmup-stable-decay
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub decay_steps: Option<u64>,
    /// Optimizer
    #[arg(long, value_enum, help_heading = "Training")]
    pub optimizer: Option<OptimizerKind>,
    /// Peak learning rate of the matrices inside the blocks, with --optimizer muon
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub matrix_lr: Option<f64>,
    /// Weight decay of these matrices, with --optimizer muon
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub matrix_weight_decay: Option<f64>,
    /// Muon's momentum
    #[arg(long, value_name = "DECAY", help_heading = "Training")]
    pub momentum: Option<f64>,
    /// Steps over which the momentum rises from 0.85 [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub momentum_warmup: Option<u64>,
    /// Peak learning rate of the embeddings [default: that of --lr]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub embedding_lr: Option<f64>,
    /// Peak learning rate of an output projection that is not tied [default: that of --lr]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub head_lr: Option<f64>,
    /// Drop the elements of each update whose sign disagrees with the gradient [default: false]
    #[arg(long, value_name = SWITCH, help_heading = "Training")]
    pub cautious_updates: Option<bool>,
    /// Apply no weight decay to weights whose magnitude the update increases [default: false]
    #[arg(long, value_name = SWITCH, help_heading = "Training")]
    pub cautious_decay: Option<bool>,
    /// Start with batches of FROM sequences, growing to --batch at equal intervals over the first STEPS
    #[arg(long, value_name = "FROM:STEPS", help_heading = "Training")]
    pub batch_ramp: Option<Ramp>,
    /// Start with windows of FROM tokens, growing to --context at equal intervals over the first STEPS
    #[arg(long, value_name = "FROM:STEPS", help_heading = "Training")]
    pub context_ramp: Option<Ramp>,
    /// Coefficient of the z-loss, the squared log-sum-exp of the logits, such as 0.0001 [default: 0]
    #[arg(long, value_name = "FACTOR", help_heading = "Training")]
    pub z_loss: Option<f64>,
    /// AdamW's decay rate of the first moment [default: 0.9]
    #[arg(long, value_name = "BETA", help_heading = "Training")]
    pub beta1: Option<f64>,
    /// AdamW's decay rate of the second moment [default: 0.99]
    #[arg(long, value_name = "BETA", help_heading = "Training")]
    pub beta2: Option<f64>,
    /// AdamW's weight decay, applied to matrices only
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub weight_decay: Option<f64>,
    /// Global gradient norm above which gradients are scaled down; 0 turns clipping off [default: 1]
    #[arg(long, value_name = "NORM", help_heading = "Training")]
    pub clip: Option<f64>,
    /// Label smoothing: share of each target's probability spread over the vocabulary, in training only [default: 0]
    #[arg(long, value_name = "SHARE", help_heading = "Training")]
    pub label_smoothing: Option<f64>,
    /// Decay rate of a moving average of the weights, such as 0.999, which is then validated and saved as the model; 0
    /// turns it off [default: 0]
    #[arg(long, value_name = "DECAY", help_heading = "Training")]
    pub ema: Option<f64>,
    /// Steps between validations, each followed by a checkpoint [default: a fifth of --steps]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub eval_every: Option<u64>,
    /// Maximum minutes between checkpoints; 0 writes one after every step [default: 10]
    #[arg(long, value_name = "MINUTES", help_heading = "Training")]
    pub save_every: Option<f64>,
    /// Stop after N consecutive validations without a lower loss; 0 turns this off [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub patience: Option<u64>,
    /// Skip up to N consecutive steps with a non-finite loss or gradient, instead of stopping at the first [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub skip_bad_steps: Option<u64>,
    /// Every N steps, write the norms of each tensor, its gradient and its update to the metrics; 0 for never [default:
    /// 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub statistics_every: Option<u64>,
    /// Seed of all randomness: initial weights, batches and dropout [default: 1]
    #[arg(long, help_heading = "Training")]
    pub seed: Option<u64>,
}

/// The name of the value of options that are true or false.
const SWITCH: &str = "BOOL";

/// `--flag`, `--flag=true` or `--flag=false`.
fn as_switch(arg: Arg) -> Arg {
    match arg.get_value_names() {
        Some([name]) if name == SWITCH => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => arg,
    }
}

impl Options {
    /// Reads a TOML file of options.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = input::read_text(path, input::MOST_CONFIG_BYTES)?;
        Self::from_toml(&text).with_context(|| path.display().to_string())
    }

    /// Reads options from TOML.
    pub fn from_toml(text: &str) -> Result<Self> {
        // The full error shows the place over several lines; its message is the one line that we print.
        let options: Self = toml::from_str(text).map_err(|error: toml::de::Error| match error.span() {
            Some(span) => {
                let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
                anyhow::anyhow!("line {line}: {}", in_words(error.message()))
            }
            None => anyhow::anyhow!("{}", in_words(error.message())),
        })?;
        if !options.validation.is_empty() && options.validation_fraction.is_some() {
            bail!("validation cannot be given with validation-fraction");
        }
        Ok(options)
    }

    /// These options as TOML.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// The names of the options that are set.
    pub fn given(&self) -> Result<Vec<String>> {
        Ok(self.table()?.into_iter().map(|(name, _)| name).collect())
    }

    /// The options that are set, by name.
    pub fn table(&self) -> Result<toml::Table> {
        let paths = self.texts.iter().chain(&self.validation).chain(&self.init);
        if let Some(path) = paths.into_iter().find(|path| path.to_str().is_none()) {
            bail!("{}: expected a path in UTF-8, the encoding of a run's settings", path.display());
        }
        // The largest integer in TOML.
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

/// An error in a TOML file on one line, with Rust's type names replaced by words.
fn in_words(message: &str) -> String {
    let words = [
        ("\n", ", "),
        (" as i128", ""),
        ("expected usize", "expected a whole number of at least 0"),
        ("expected u64", "expected a whole number of at least 0"),
        ("expected f64", "expected a number"),
        ("expected a boolean", "expected true or false"),
        ("expected a sequence", "expected a list"),
    ];
    words.iter().fold(message.to_string(), |message, (rust, word)| message.replace(rust, word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;

    #[test]
    fn errors_in_a_file_name_no_rust_types() {
        for (toml, expected) in [
            ("layers = \"2\"", "line 1: invalid type: string \"2\", expected a whole number of at least 0"),
            ("\nsteps = -1", "line 2: invalid value: integer `-1`, expected a whole number of at least 0"),
            ("lr = \"x\"", "line 1: invalid type: string \"x\", expected a number"),
            ("texts = 1", "line 1: invalid type: integer `1`, expected a list"),
            ("bias = 1", "line 1: invalid type: integer `1`, expected true or false"),
        ] {
            assert_eq!(Options::from_toml(toml).unwrap_err().to_string(), expected);
        }
    }
    #[test]
    fn every_switch_is_bare_or_takes_a_value_after_an_equals_sign() {
        let parse = |args: &[&str]| {
            let matches =
                Options::augment_args(clap::Command::new("train")).try_get_matches_from([&["train"], args].concat());
            matches.map(|matches| Options::from_arg_matches(&matches).unwrap())
        };
        for name in ["bias", "tie", "zero-residual", "isolate-documents", "cautious-updates", "cautious-decay"] {
            for (value, expected) in [("", true), ("=true", true), ("=false", false)] {
                let options = parse(&[&format!("--{name}{value}"), "text.txt"]).unwrap();
                assert_eq!(options.table().unwrap()[name].as_bool(), Some(expected), "--{name}{value}");
                assert_eq!(options.texts, [PathBuf::from("text.txt")]);
            }
            assert!(parse(&[&format!("--{name}=yes")]).is_err(), "{name}");
        }
    }
}
