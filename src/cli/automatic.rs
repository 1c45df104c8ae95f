//! The recipe that `attn train` chooses, from the length of the text, the number of cores and the options
//! given.
//!
//! The more text, the more time is worth spending on it: a minute for a million tokens on two cores, otherwise in
//! proportion to the cube root of their number. The compute of that time is divided between a larger model and more
//! steps so that there are a few tokens for each weight, as docs/recipe.md explains; the rates are those of the preset
//! `quick`.

use anyhow::Result;
use candle_attention::model::Architecture;
use candle_attention::text::{Corpus, Tokenizer, TokenizerChoice};

use super::merge::heads_of_width;
use super::options::Options;
use super::presets::Preset;

/// Seconds for a million tokens, and the bounds for any number.
const SECONDS: f64 = 60.0;
const MIN_SECONDS: f64 = 10.0;
const MAX_SECONDS: f64 = 1200.0;

/// Floating-point operations of training per core and second; a multiplication and an addition count as two.
const FLOPS_PER_CORE: f64 = 50e9;

/// Tokens to train on for each weight.
const TOKENS_PER_WEIGHT: f64 = 2.5;

/// More passes over a text teach the text by heart.
const MAX_PASSES: f64 = 12.0;

/// Fewer tokens (100 steps of the smallest size) do not even teach short words, however short the text.
const MIN_TOKENS: f64 = 51_200.0;

/// Channels, layers, context length and tokens per step, from small to large.
const SIZES: [[usize; 4]; 8] = [
    [32, 2, 64, 512],
    [64, 3, 64, 768],
    [96, 3, 128, 1024],
    [128, 4, 128, 2048],
    [192, 5, 256, 4096],
    [256, 6, 256, 4096],
    [320, 8, 256, 8192],
    [384, 8, 512, 8192],
];

/// Channels of a head.
const HEAD_DIM: usize = 32;

/// The architecture of the preset `quick`.
const ARCHITECTURE: Architecture = Architecture::Qwen3;

/// Held out for validation, unless the text is large.
pub const VALIDATION_FRACTION: f64 = 0.1;

/// What a recipe needs to know of a text.
#[derive(Clone, Copy, Debug)]
pub struct TextSize {
    /// For training and validation together.
    tokens: f64,
    /// For validation, once that is settled.
    validation: Option<f64>,
    vocab_size: f64,
}

/// The sizes of a model and of its batches.
struct Sizes {
    layers: usize,
    dim: usize,
    heads: usize,
    context: usize,
    tokens_per_step: usize,
}

impl TextSize {
    /// An estimate from the length in bytes, before the text is read.
    pub fn expected(bytes: u64, tokenizer: &TokenizerChoice) -> Self {
        // With some thousand tokens, one is three to five bytes long in most languages.
        let (bytes_per_token, vocab_size) = match tokenizer {
            TokenizerChoice::Characters => (1.0, 100.0),
            TokenizerChoice::Bytes => (1.0, 256.0),
            TokenizerChoice::Bpe(size) => ((*size as f64).log2().max(8.0) / 3.0, *size as f64),
            TokenizerChoice::File(_) => (4.0, 32_000.0),
        };
        Self { tokens: bytes as f64 / bytes_per_token, validation: None, vocab_size }
    }

    /// The size of a text that has been read.
    pub fn of(corpus: &Corpus, tokenizer: &Tokenizer) -> Self {
        let [train, validation] = [&corpus.train, &corpus.validation].map(|ids| ids.len() as f64);
        let vocab_size = tokenizer.vocab_size() as f64;
        Self { tokens: train + validation, validation: Some(validation), vocab_size }
    }

    /// The recipe for this text with the options given, which it keeps: those of sizes, batch, steps and shards (one
    /// per core by default) decide about the others.
    pub fn recipe(&self, given: &Options) -> Result<Options> {
        let candidates = SIZES.map(|row| Sizes::of(row, given));
        let is_affordable =
            |sizes: &&Sizes| self.tokens_to_train(sizes, given) >= TOKENS_PER_WEIGHT * self.cost(sizes, given).1;
        let sizes = candidates.iter().rev().find(is_affordable).unwrap_or(&candidates[0]);
        let tokens = self.tokens_to_train(sizes, given);
        // So that all validations together take a small part of the time, but at least two windows.
        let validated = (tokens.max(MIN_TOKENS) / 15.0).max(2.0 * sizes.context as f64 + 1.0);
        let validation_fraction = (validated / self.tokens).min(VALIDATION_FRACTION);
        let fraction = given.validation_fraction.unwrap_or(validation_fraction);
        let validation = Some(self.validation.unwrap_or(self.tokens * fraction)).filter(|tokens| *tokens > 0.0);
        let longest = validation.unwrap_or(self.tokens * VALIDATION_FRACTION) / 2.0;
        let context = given.context.unwrap_or(sizes.context.min(longest as usize).max(8));
        let parts = given.accumulate.unwrap_or(1).min(1 << 16);
        let batch = given.batch.unwrap_or((sizes.tokens_per_step / context.max(1)).max(1).max(parts));
        let tokens_per_step = (batch as f64 * context as f64).max(1.0);
        let fewest_steps = (MIN_TOKENS / tokens_per_step).ceil() as u64;
        let steps = given.steps.unwrap_or(((tokens / tokens_per_step) as u64).max(fewest_steps));
        let recipe = Options {
            validation_fraction: (validation_fraction < VALIDATION_FRACTION).then_some(validation_fraction),
            layers: Some(sizes.layers),
            heads: Some(sizes.heads),
            dim: Some(sizes.dim),
            context: Some(context),
            batch: Some(batch),
            steps: Some(steps),
            momentum: (steps >= 500).then_some(0.95),
            eval_every: Some(steps.div_ceil(5)),
            ..Default::default()
        };
        recipe.with_recipe(&Preset::Quick.options()?)
    }

    /// The tokens to train on, many of them several times: what there is time for, within the limit of passes.
    fn tokens_to_train(&self, sizes: &Sizes, given: &Options) -> f64 {
        let seconds = (SECONDS * (self.tokens / 1e6).cbrt()).clamp(MIN_SECONDS, MAX_SECONDS);
        let flops = seconds * FLOPS_PER_CORE * given.train_options().shards as f64;
        let fraction = given.validation_fraction.unwrap_or(VALIDATION_FRACTION).clamp(0.0, 1.0);
        let train = self.tokens - self.validation.unwrap_or(self.tokens * fraction);
        (flops / self.cost(sizes, given).0).min(MAX_PASSES * train)
    }

    /// The floating-point operations of training on one token, and the weights that take part in them.
    fn cost(&self, sizes: &Sizes, given: &Options) -> (f64, f64) {
        let config = Options { dim: Some(sizes.dim), heads: Some(sizes.heads), ..given.clone() };
        let config =
            Options { architecture: given.architecture.or(Some(ARCHITECTURE)), ..config }.model_config(2, None);
        let [c, l, t, f] = [sizes.dim, sizes.layers, sizes.context, config.hidden_dim].map(|n| n as f64);
        let [h, g, d] = [config.num_heads, config.kv_heads(), config.head_channels()].map(|n| n as f64);
        let matrices = if config.architecture.is_gated() { 3.0 } else { 2.0 };
        let weights = l * (2.0 * c * d * (h + g) + matrices * c * f) + self.vocab_size * c;
        (6.0 * weights + 7.0 * l * t * h * d, weights)
    }
}

impl Sizes {
    /// A row of [`SIZES`], changed by the options given.
    fn of([dim, layers, context, tokens]: [usize; 4], given: &Options) -> Self {
        let is_rotary = given.architecture.unwrap_or(ARCHITECTURE).is_rotary();
        let (unit, groups) = (if is_rotary { 2 } else { 1 }, given.kv_heads.unwrap_or(1));
        let heads = match (given.heads, given.dim, given.head_dim) {
            (Some(heads), _, _) => heads,
            (None, Some(dim), None) => heads_of_width(dim, HEAD_DIM, unit, groups),
            (None, given_dim, head_dim) => {
                nearest_multiple(given_dim.unwrap_or(dim) / head_dim.unwrap_or(HEAD_DIM).max(1), groups)
            }
        };
        // Heads with a width of their own need not divide the channels.
        let fitting = if given.head_dim.is_some() { dim } else { nearest_multiple(dim, heads.saturating_mul(unit)) };
        let context = given.context.unwrap_or(context);
        let tokens_per_step = given.batch.map_or(tokens, |batch| batch.saturating_mul(context));
        Self {
            layers: given.layers.unwrap_or(layers),
            dim: given.dim.unwrap_or(fitting),
            heads,
            context,
            tokens_per_step,
        }
    }
}

/// The multiple of `of` nearest to `n`, but not 0.
fn nearest_multiple(n: usize, of: usize) -> usize {
    let of = of.max(1);
    (n.saturating_add(of / 2) / of).max(1).saturating_mul(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn characters(bytes: u64) -> TextSize {
        TextSize::expected(bytes, &TokenizerChoice::Characters)
    }

    fn on_cores(cores: usize) -> Options {
        Options { shards: Some(cores), ..Default::default() }
    }

    /// The tokens that a recipe trains on, and the weights of its blocks.
    fn work(recipe: &Options) -> (f64, usize) {
        let (steps, batch, context) = (recipe.steps.unwrap(), recipe.batch.unwrap(), recipe.context.unwrap());
        let (dim, layers) = (recipe.dim.unwrap(), recipe.layers.unwrap());
        (steps as f64 * batch as f64 * context as f64, 12usize.saturating_mul(layers * dim * dim))
    }

    #[test]
    fn every_text_gets_a_valid_recipe() {
        for tokenizer in ["char", "byte", "bpe:512", "bpe:50000", "tokenizer.json"] {
            let choice = tokenizer.parse().unwrap();
            for (bytes, cores) in (0..=40).map(|power| 1 << power).flat_map(|bytes| [1, 2, 64].map(|n| (bytes, n))) {
                let recipe = TextSize::expected(bytes, &choice).recipe(&on_cores(cores)).unwrap();
                recipe.check().unwrap();
                recipe.model_config(65, None).validate().unwrap();
                assert!(recipe.validation_fraction.is_none_or(|fraction| fraction > 0.0 && fraction < 0.1));
            }
        }
    }

    /// Options that decide about others, one or more at a time.
    fn given() -> Vec<Options> {
        let given = [
            "batch = 64",
            "batch = 1",
            "context = 512",
            "context = 512\nbatch = 3",
            "dim = 1024",
            "dim = 30",
            "dim = 100\nkv-heads = 5",
            "heads = 5",
            "heads = 7\narchitecture = 'gpt2'",
            "dim = 35\narchitecture = 'gpt2'",
            "kv-heads = 2",
            "head-dim = 6",
            "head-dim = 6\nheads = 5\nkv-heads = 5",
            "dim = 100000\nlayers = 4000\nheads = 1",
            "context = 5000",
            "layers = 12",
            "layers = 1\ndim = 16",
            "hidden = 4096",
            "accumulate = 48",
            "validation-fraction = 0.0",
            "validation-fraction = 0.5",
            "steps = 7",
        ];
        given.map(|toml| Options { shards: Some(2), ..Options::from_toml(toml).unwrap() }).to_vec()
    }

    #[test]
    fn the_choice_keeps_what_is_given_and_fits_it() {
        for given in given() {
            for bytes in [3_000, 100_000, 1_000_000, 100_000_000] {
                let size = characters(bytes);
                let recipe = given.completed(&size).unwrap();
                recipe.check().unwrap();
                recipe.model_config(65, None).validate().unwrap();
                let (recipe_table, given_table) = (recipe.table().unwrap(), given.table().unwrap());
                assert!(given_table.iter().all(|(name, value)| recipe_table[name] == *value), "{given:?}: {recipe:?}");

                let fraction = recipe.validation_fraction.unwrap_or(0.1);
                let is_held_out =
                    given.validation_fraction == Some(0.0) || fraction * bytes as f64 >= recipe.context.unwrap() as f64;
                assert!(is_held_out || fraction == 0.1, "{given:?}: {fraction} of {bytes} held out");

                let (tokens, _) = work(&recipe);
                let step = (recipe.batch.unwrap() * recipe.context.unwrap()) as f64;
                if given.steps.is_some() || tokens < MIN_TOKENS + step {
                    continue;
                }
                let train = bytes as f64 * (1.0 - given.validation_fraction.unwrap_or(0.1));
                assert!(tokens <= MAX_PASSES * train, "{given:?}: {} passes over {bytes}", tokens / train);
                // Never more than the time that a text of this length is worth.
                let sizes = Sizes {
                    layers: recipe.layers.unwrap(),
                    dim: recipe.dim.unwrap(),
                    heads: recipe.heads.unwrap(),
                    context: recipe.context.unwrap(),
                    tokens_per_step: 0,
                };
                let seconds = tokens * size.cost(&sizes, &given).0 / (2.0 * FLOPS_PER_CORE);
                let most = (SECONDS * (bytes as f64 / 1e6).cbrt()).clamp(MIN_SECONDS, MAX_SECONDS);
                assert!(seconds < 1.01 * most, "{given:?}: {seconds} s of at most {most}");
            }
        }
    }

    #[test]
    fn a_model_that_costs_more_gets_fewer_tokens() {
        let tokens = |toml: &str| work(&Options::from_toml(toml).unwrap().completed(&characters(1_000_000)).unwrap()).0;
        for (small, large) in [
            ("dim = 96", "dim = 1024"),
            ("dim = 96\nlayers = 3", "dim = 96\nlayers = 24"),
            ("dim = 96\nhidden = 64", "dim = 96\nhidden = 9000"),
        ] {
            assert!(tokens(small) > 1.5 * tokens(large), "{small}, {large}");
        }
        // A longer context leaves as many tokens in a step, not as many sequences.
        let sequences = |toml: &str| Options::from_toml(toml).unwrap().completed(&characters(1_000_000)).unwrap().batch;
        assert!(sequences("context = 64") > sequences("context = 512"));
    }

    #[test]
    fn more_text_and_more_cores_are_worth_a_larger_model() {
        let models = |texts: &[(u64, usize)]| -> Vec<usize> {
            texts.iter().map(|&(bytes, cores)| work(&characters(bytes).recipe(&on_cores(cores)).unwrap()).1).collect()
        };
        let by_text = models(&[(10_000, 2), (100_000, 2), (1_000_000, 2), (30_000_000, 2), (1_000_000_000, 2)]);
        assert!(by_text.is_sorted() && by_text[0] < by_text[2] && by_text[2] < by_text[4], "{by_text:?}");
        let by_cores = models(&[(1_000_000, 1), (1_000_000, 4), (1_000_000, 16), (1_000_000, 64)]);
        assert!(by_cores.is_sorted() && by_cores[0] < by_cores[3], "{by_cores:?}");
    }

    #[test]
    fn windows_fit_into_the_validation_text() {
        let text = TextSize { tokens: 3000.0, validation: Some(60.0), vocab_size: 2000.0 };
        let recipe = text.recipe(&on_cores(2)).unwrap();
        assert!(recipe.context.is_some_and(|context| context <= 30), "{:?}", recipe.context);
        let tokens_per_step = recipe.batch.unwrap() * recipe.context.unwrap();
        assert!((480..=512).contains(&tokens_per_step), "{tokens_per_step}");
    }

    #[test]
    fn a_short_run_has_a_low_momentum() {
        let momentum = |steps| {
            let given = Options { steps: Some(steps), ..on_cores(2) };
            characters(1 << 20).recipe(&given).unwrap().momentum
        };
        assert_eq!((momentum(100), momentum(5000)), (Some(0.85), Some(0.95)));
    }

    #[test]
    fn a_short_text_is_not_read_too_often() {
        for bytes in [20_000, 100_000, 400_000] {
            let recipe = characters(bytes).recipe(&on_cores(64)).unwrap();
            let passes = work(&recipe).0 / (0.9 * bytes as f64);
            assert!(passes <= MAX_PASSES, "{bytes} bytes are read {passes} times");
        }
    }
}
