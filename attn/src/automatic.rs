//! The recipe that `attn train` chooses for a text: sizes, steps and batch, from its length and its vocabulary alone.
//!
//! The more text, the more time is worth spending on it: a minute for a million tokens on two cores, otherwise in
//! proportion to the cube root of their number. The compute of that time is divided between a larger model and more
//! steps so that there are a few tokens for each weight, as docs/recipe.md explains; all else is the preset `quick`.

use anyhow::Result;
use candle_attention::model::ModelConfig;
use candle_attention::text::{Corpus, TokenizerChoice};
use candle_attention::train::{OptimizerKind, TrainOptions};
use toml::Table;

use super::settings::preset;

/// The minutes of a run for which nothing else is said.
pub const MINUTES: f64 = 1.0;

/// Tokens to train on for each weight.
const TOKENS_PER_WEIGHT: f64 = 2.5;

/// Channels of a head.
const HEAD_DIM: usize = 32;

/// The sizes of a model and of its batches.
#[derive(Clone, Copy)]
struct Sizes {
    dim: usize,
    layers: usize,
    context: usize,
    tokens_per_step: usize,
}

const fn sizes(dim: usize, layers: usize, context: usize, tokens_per_step: usize) -> Sizes {
    Sizes { dim, layers, context, tokens_per_step }
}

/// From small to large.
const SIZES: [Sizes; 8] = [
    sizes(32, 2, 64, 512),
    sizes(64, 3, 64, 768),
    sizes(96, 3, 128, 1024),
    sizes(128, 4, 128, 2048),
    sizes(192, 5, 256, 4096),
    sizes(256, 6, 256, 4096),
    sizes(320, 8, 256, 8192),
    sizes(384, 8, 512, 8192),
];

/// What the choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct TextSize {
    /// Tokens to train on.
    train: f64,
    /// Tokens to validate on.
    validation: f64,
    vocab_size: f64,
}

impl TextSize {
    /// An estimate from the length in bytes, before the text is read.
    pub fn expected(bytes: u64, tokenizer: &TokenizerChoice) -> Self {
        // With some thousand tokens, one is three to five bytes long in most languages.
        let (bytes_per_token, vocab_size) = match tokenizer {
            TokenizerChoice::Bpe(size) => ((*size as f64).log2().max(8.0) / 3.0, *size as f64),
            TokenizerChoice::File(_) => (4.0, 32_000.0),
            _ => (1.0, 100.0),
        };
        let tokens = bytes as f64 / bytes_per_token;
        Self { train: 0.9 * tokens, validation: 0.1 * tokens, vocab_size }
    }

    /// The size of a text that has been read.
    pub fn new(corpus: &Corpus, vocab_size: usize) -> Self {
        let [train, validation] = [&corpus.train, &corpus.validation].map(|ids| ids.len() as f64);
        Self { train, validation, vocab_size: vocab_size as f64 }
    }

    /// The recipe for this text and so many floating-point operations.
    pub fn recipe(&self, work: f64) -> Result<Table> {
        let mut recipe = preset("quick")?;
        recipe.extend(open_schedule());
        let sizes = &SIZES[1];
        let context = sizes.context.min(self.max_context());
        let batch = (sizes.tokens_per_step / context).max(1);
        for (name, value) in [
            ("layers", sizes.layers),
            ("heads", sizes.dim / HEAD_DIM),
            ("head-dim", HEAD_DIM),
            ("context", context),
            ("batch", batch),
        ] {
            recipe.insert(name.into(), (value as i64).into());
        }
        Ok(recipe)
    }

    /// The longest window of a part of the text that has several: half as long as the one to validate on or, without one,
    /// as the text.
    pub fn max_context(&self) -> usize {
        let part = if self.validation > 0.0 { self.validation } else { self.train };
        (part as usize / 2).max(1)
    }
}

/// What lets the time decide on the number of steps.
pub fn open_schedule() -> Table {
    Table::from_iter([
        ("minutes".to_string(), MINUTES.into()),
        ("schedule".to_string(), "warmup-stable-decay".into()),
        ("decay".to_string(), 0.6.into()),
    ])
}

/// How the tokenizer is made for so many bytes of text and so many floating-point operations.
pub fn tokenizer(bytes: u64, work: f64) -> TokenizerChoice {
    TokenizerChoice::Bpe(512)
}

/// The steps that so many floating-point operations allow, about.
pub fn steps(config: &ModelConfig, options: &TrainOptions, work: f64) -> u64 {
    (work / step_cost(config, options)) as u64
}

/// The floating-point operations of a step, as many more as the products of narrow matrices are slower.
fn step_cost(config: &ModelConfig, options: &TrainOptions) -> f64 {
    let count = |n: usize| n as f64;
    let (dim, layers, context) = (count(config.embed_dim), count(config.num_layers), count(options.window_len(config)));
    let looked_up = if config.tie_embeddings { 0.0 } else { count(config.vocab_size) * dim };
    let weights = count(config.parameter_count()) - looked_up;
    let model = count(options.batch) * context * (6.0 * weights + 7.0 * layers * context * dim);
    // Five iterations for each matrix of a block: for square ones 30 dim^3 operations, for those of the feed-forward network twice that.
    let muon = if options.optimizer == OptimizerKind::Muon { 310.0 * layers * dim.powi(3) } else { 0.0 };
    (model + muon) * (dim + 50.0) / dim
}

#[cfg(test)]
mod tests {
    use super::super::settings::Settings;
    use super::*;

    fn characters(bytes: u64) -> TextSize {
        TextSize::expected(bytes, &TokenizerChoice::Characters)
    }

    fn number(recipe: &Table, name: &str) -> f64 {
        recipe[name].as_integer().unwrap() as f64
    }

    /// The tokens that a recipe trains on.
    fn tokens(recipe: &Table) -> f64 {
        ["steps", "batch", "context"].iter().map(|name| number(recipe, name)).product()
    }

    /// The weights of a recipe's blocks, about.
    fn weights(recipe: &Table) -> f64 {
        number(recipe, "layers") * (number(recipe, "heads") * number(recipe, "head-dim")).powi(2)
    }

    #[test]
    fn every_text_has_a_valid_recipe() {
        for tokenizer in ["char", "byte", "bpe:512", "bpe:50000", "tokenizer.json"] {
            for bytes in (0..=45).map(|power| 1 << power) {
                let recipe = TextSize::expected(bytes, &tokenizer.parse().unwrap()).recipe().unwrap();
                Settings::merged(&[&recipe]).unwrap().check().unwrap();
            }
        }
    }

    /// Sizes, steps, batch and the momentum that goes with the steps; nothing of data, and the rest is that of the preset.
    #[test]
    fn a_recipe_chooses_sizes_steps_and_batch() {
        let quick = preset("quick").unwrap();
        let chosen = ["layers", "heads", "head-dim", "context", "batch", "steps", "momentum"];
        for bytes in [1_000, 100_000, 10_000_000] {
            let recipe = characters(bytes).recipe().unwrap();
            assert!(recipe.keys().eq(quick.keys()), "{recipe}");
            assert!(
                quick.iter().all(|(name, value)| chosen.contains(&name.as_str()) || recipe[name] == *value),
                "{recipe}"
            );
        }
    }

    #[test]
    fn more_text_is_worth_a_larger_model_and_more_time() {
        let recipes =
            [10_000, 100_000, 1_000_000, 30_000_000, 1_000_000_000].map(|bytes| characters(bytes).recipe().unwrap());
        let models: Vec<f64> = recipes.iter().map(weights).collect();
        assert!(models.is_sorted() && models[0] < models[2] && models[2] < models[4], "{models:?}");
        let work: Vec<f64> = recipes.iter().map(|recipe| weights(recipe) * tokens(recipe)).collect();
        assert!(work.is_sorted_by(|a, b| a < b), "{work:?}");
    }

    #[test]
    fn there_are_a_few_tokens_for_each_weight_and_no_text_is_read_too_often() {
        for bytes in [20_000, 100_000, 400_000, 4_000_000, 100_000_000] {
            let size = characters(bytes);
            let recipe = size.recipe().unwrap();
            let step = number(&recipe, "batch") * number(&recipe, "context");
            if tokens(&recipe) >= MIN_TOKENS + step {
                assert!(tokens(&recipe) <= MAX_PASSES * size.train, "{bytes} bytes: {recipe}");
            }
            // All but the smallest model have theirs. A block has about 12 weights for each square of its width.
            let is_smallest = weights(&recipe) == (2 * 32 * 32) as f64;
            assert!(
                is_smallest || tokens(&recipe) > TOKENS_PER_WEIGHT * 11.0 * weights(&recipe),
                "{bytes} bytes: {recipe}"
            );
        }
    }

    #[test]
    fn windows_fit_into_the_validation_text() {
        let text = TextSize { train: 2940.0, validation: 60.0, vocab_size: 2000.0 };
        let recipe = text.recipe().unwrap();
        assert_eq!((number(&recipe, "context"), number(&recipe, "batch")), (30.0, 17.0));
        let none = TextSize { train: 100.0, validation: 0.0, vocab_size: 20.0 };
        assert_eq!(number(&none.recipe().unwrap(), "context"), 50.0);
    }

    #[test]
    fn a_short_run_has_a_low_momentum() {
        let momentum = |bytes| characters(bytes).recipe().unwrap()["momentum"].as_float().unwrap();
        let steps = |bytes| number(&characters(bytes).recipe().unwrap(), "steps");
        assert!(steps(2_000) < 500.0 && steps(10_000_000) > 500.0);
        assert_eq!((momentum(2_000), momentum(10_000_000)), (0.85, 0.95));
    }
}
