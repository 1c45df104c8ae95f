//! What `attn train` chooses by itself: a recipe from the length of the text and the cores of the machine.
//!
//! The more text, the more time is worth spending on it: a minute for a million tokens on two cores, and with the cube root of
//! their number more or less. What is computed in that time is shared between a larger model and more steps so that a
//! weight sees some tokens, as docs/recipe.md says; the rates are those of the preset `quick`.

use anyhow::Result;
use candle_attention::text::{Corpus, Tokenizer, TokenizerChoice};

use super::options::Options;
use super::presets::Preset;

/// Seconds for a million tokens, and the bounds for any number.
const SECONDS: f64 = 60.0;
const LEAST_SECONDS: f64 = 10.0;
const MOST_SECONDS: f64 = 1200.0;

/// Multiplications and additions that a core makes in a second of training.
const SPEED: f64 = 50e9;

/// Tokens for each weight.
const TOKENS_A_WEIGHT: f64 = 2.5;

/// Times that a text is worth reading before what is learned is the text by heart.
const MOST_EPOCHS: f64 = 12.0;

/// Channels, layers, positions and tokens of a step, from small to large.
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

/// Steps below which not even short words are learned, however short the text.
const LEAST_STEPS: u64 = 100;

/// What a recipe is chosen for.
#[derive(Clone, Copy, Debug)]
pub struct Text {
    /// To train and to validate on.
    tokens: f64,
    /// To validate on, where that is settled.
    validation: Option<f64>,
    vocab_size: f64,
}

impl Text {
    /// A text of so many bytes, as it may be expected before it is read.
    pub fn expected(bytes: u64, tokenizer: &TokenizerChoice) -> Self {
        // A token of some thousand is three to five bytes long in most languages.
        let (bytes_a_token, vocab_size) = match tokenizer {
            TokenizerChoice::Characters => (1.0, 100.0),
            TokenizerChoice::Bytes => (1.0, 256.0),
            TokenizerChoice::Bpe(size) => ((*size as f64).log2().max(8.0) / 3.0, *size as f64),
            TokenizerChoice::File(_) => (4.0, 32_000.0),
        };
        Self { tokens: bytes as f64 / bytes_a_token, validation: None, vocab_size }
    }

    /// A text that has been read.
    pub fn of(corpus: &Corpus, tokenizer: &Tokenizer) -> Self {
        let [train, validation] = [&corpus.train, &corpus.validation].map(|ids| ids.len() as f64);
        let vocab_size = tokenizer.vocab_size() as f64;
        Self { tokens: train + validation, validation: Some(validation).filter(|tokens| *tokens > 0.0), vocab_size }
    }

    /// Multiplications and additions of training on one token, and weights that take part in them.
    fn cost(&self, [dim, layers, context, _]: [usize; 4]) -> (f64, f64) {
        let (c, l, t) = (dim as f64, layers as f64, context as f64);
        let weights = 12.0 * l * c * c + self.vocab_size * c;
        (6.0 * weights + 7.0 * l * t * c, weights)
    }

    /// The sizes for a machine of so many cores, and the tokens to train on, many of them several times.
    fn sizes(&self, cores: usize) -> ([usize; 4], f64) {
        let seconds = (SECONDS * (self.tokens / 1e6).cbrt()).clamp(LEAST_SECONDS, MOST_SECONDS);
        let work = seconds * SPEED * cores as f64;
        let tokens = |sizes| (work / self.cost(sizes).0).min(MOST_EPOCHS * self.tokens);
        let is_worth = |sizes: &&[usize; 4]| tokens(**sizes) >= TOKENS_A_WEIGHT * self.cost(**sizes).1;
        let sizes = SIZES.iter().rev().find(is_worth).copied().unwrap_or(SIZES[0]);
        (sizes, tokens(sizes))
    }

    /// The recipe for this text on a machine of so many cores, of as many steps as are given, if any.
    pub fn recipe(&self, cores: usize, steps: Option<u64>) -> Result<Options> {
        let ([dim, layers, context, tokens_a_step], tokens) = self.sizes(cores);
        let chosen_steps = ((tokens / tokens_a_step as f64) as u64).max(LEAST_STEPS);
        let steps = steps.unwrap_or(chosen_steps);
        // So much that all validations together take a small part of the time.
        let validation_fraction = (tokens / (15.0 * self.tokens)).min(0.1);
        let validation = self.validation.unwrap_or(self.tokens * validation_fraction);
        let context = context.min((validation / 2.0) as usize).max(8);
        let recipe = Options {
            validation_fraction: (validation_fraction < 0.1).then_some(validation_fraction),
            layers: Some(layers),
            heads: Some(dim / HEAD_DIM),
            dim: Some(dim),
            context: Some(context),
            batch: Some((tokens_a_step / context).max(1)),
            steps: Some(steps),
            momentum: (steps >= 500).then_some(0.95),
            eval_every: Some(steps.div_ceil(5)),
            ..Default::default()
        };
        recipe.by_recipe(&Preset::Quick.options()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens that a recipe sees, and its weights without the vocabulary's.
    fn work(recipe: &Options) -> (f64, usize) {
        let (steps, batch, context) = (recipe.steps.unwrap(), recipe.batch.unwrap(), recipe.context.unwrap());
        let (dim, layers) = (recipe.dim.unwrap(), recipe.layers.unwrap());
        (steps as f64 * batch as f64 * context as f64, 12 * layers * dim * dim)
    }

    #[test]
    fn every_text_gets_a_recipe_that_holds_together() {
        for tokenizer in ["char", "byte", "bpe:512", "bpe:50000", "tokenizer.json"] {
            let choice = tokenizer.parse().unwrap();
            for (bytes, cores) in (0..=40).map(|power| 1 << power).flat_map(|bytes| [1, 2, 64].map(|n| (bytes, n))) {
                let recipe = Text::expected(bytes, &choice).recipe(cores, None).unwrap();
                recipe.check().unwrap();
                recipe.model_config(65, None).validate().unwrap();
                assert!(recipe.validation_fraction.is_none_or(|fraction| fraction > 0.0 && fraction < 0.1));
            }
        }
    }

    #[test]
    fn more_text_and_more_cores_are_worth_a_larger_model() {
        let models = |texts: &[(u64, usize)]| -> Vec<usize> {
            let recipe =
                |&(bytes, cores)| Text::expected(bytes, &TokenizerChoice::Characters).recipe(cores, None).unwrap();
            texts.iter().map(|text| work(&recipe(text)).1).collect()
        };
        let by_text = models(&[(10_000, 2), (100_000, 2), (1_000_000, 2), (30_000_000, 2), (1_000_000_000, 2)]);
        assert!(by_text.is_sorted() && by_text[0] < by_text[2] && by_text[2] < by_text[4], "{by_text:?}");
        let by_cores = models(&[(1_000_000, 1), (1_000_000, 4), (1_000_000, 16), (1_000_000, 64)]);
        assert!(by_cores.is_sorted() && by_cores[0] < by_cores[3], "{by_cores:?}");
    }

    #[test]
    fn windows_fit_what_is_there_to_validate_on() {
        let text = Text { tokens: 3000.0, validation: Some(60.0), vocab_size: 2000.0 };
        let recipe = text.recipe(2, None).unwrap();
        assert!(recipe.context.is_some_and(|context| context <= 30), "{:?}", recipe.context);
        let tokens_a_step = recipe.batch.unwrap() * recipe.context.unwrap();
        assert!((480..=512).contains(&tokens_a_step), "{tokens_a_step}");
    }

    #[test]
    fn a_short_run_forgets_sooner() {
        let momentum = |steps| Text::expected(1 << 20, &TokenizerChoice::Characters).recipe(2, steps).unwrap().momentum;
        assert_eq!((momentum(Some(100)), momentum(Some(5000))), (Some(0.85), Some(0.95)));
    }

    #[test]
    fn a_short_text_is_not_read_too_often() {
        for bytes in [20_000, 100_000, 400_000] {
            let recipe = Text::expected(bytes, &TokenizerChoice::Characters).recipe(64, None).unwrap();
            let epochs = work(&recipe).0 / bytes as f64;
            assert!(epochs <= MOST_EPOCHS * 1.01, "{bytes} bytes are read {epochs} times");
        }
    }
}
