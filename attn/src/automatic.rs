//! The recipe that `attn train` chooses for a text, a time and a machine.
//!
//! The time and the speed of the machine give the floating-point operations that can be made. From these, the length of
//! the text and the memory that is free follow the tokenizer, the sizes of the model and of its batches, the number of steps,
//! momentum and dropout; docs/recipe.md has the rules and the measurements behind them. All else is in `presets/automatic.toml`.

use anyhow::Result;
use candle_attention::Memory;
use candle_attention::model::ModelConfig;
use candle_attention::text::{Corpus, TokenizerChoice};
use candle_attention::train::{OptimizerKind, TrainOptions, memory_needed};
use toml::{Table, Value};

use super::model_sizes::{HEAD_DIM, SIZES};
use super::settings::Settings;
use super::{options, processes};

mod tokenizer;
pub use tokenizer::tokenizer;

/// The minutes of a run for which nothing else is said.
pub const MINUTES: f64 = 1.0;

/// The floating-point operations of a minute on two cores, for a run whose number of steps is given: there, no machine
/// has a say.
pub const USUAL_WORK: f64 = 3e13;

/// Tokens to train on for each weight.
const TOKENS_PER_WEIGHT: f64 = 2.0;

/// More weights for each token of the text only learn it by heart.
const MAX_WEIGHTS_PER_TOKEN: f64 = 10.0;

/// So often a text can be read without dropout by a model with a weight for each of its tokens.
const PASSES_WITHOUT_DROPOUT: f64 = 16.0;
const MAX_DROPOUT: f64 = 0.3;

/// Steps from which Muon does better with a longer memory.
const LONG_RUN: u64 = 2000;

/// The tokens of a window, and the channels or the tokens to train on from which those of the second length pay.
const WINDOWS: [usize; 2] = [128, 256];
const CHANNELS_FOR_LONG_WINDOWS: usize = 192;
const TOKENS_FOR_LONG_WINDOWS: f64 = 5e6;

/// What a recipe takes into account of a machine, beside its speed.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Bytes of memory that are free.
    pub memory: usize,
    /// Threads that train, if they are those of one process.
    threads: usize,
}

impl Machine {
    /// None in particular.
    pub const ANY: Self = Self { memory: usize::MAX, threads: 1 };

    /// This one, as it is now.
    pub fn this() -> Self {
        let threads = if processes::are_several() { 1 } else { rayon::current_num_threads() };
        Self { memory: Memory::now().available, threads }
    }
}

/// The length of a text in tokens.
#[derive(Clone, Copy, Debug)]
pub struct TextSize {
    /// Tokens to train on.
    train: f64,
    /// Tokens to validate on.
    validation: f64,
    vocab_size: usize,
}

impl TextSize {
    /// An estimate from the length in bytes, before the text is read.
    pub fn expected(bytes: u64, tokenizer: &TokenizerChoice) -> Self {
        // With some thousand tokens, one is three to five bytes long in most languages.
        let (bytes_per_token, vocab_size) = match tokenizer {
            // What no model can have is refused where it is learned.
            TokenizerChoice::Bpe(size) => {
                ((*size as f64).log2().max(8.0) / 3.0, (*size).clamp(2, ModelConfig::MAX_SIZE))
            }
            TokenizerChoice::File(_) => (4.0, 32_000),
            _ => (1.0, 256),
        };
        let tokens = bytes as f64 / bytes_per_token;
        Self { train: 0.9 * tokens, validation: 0.1 * tokens, vocab_size }
    }

    /// The size of a text that has been read.
    pub fn new(corpus: &Corpus, vocab_size: usize) -> Self {
        let [train, validation] = [&corpus.train, &corpus.validation].map(|ids| ids.len() as f64);
        Self { train, validation, vocab_size }
    }

    /// The recipe for this text, so many floating-point operations and so many bytes of memory. Its sizes are among
    /// those with which `merged` gives a model: the settings of a recipe with all that is set over it. `context` is the
    /// length of a window if that is set.
    pub fn recipe(
        &self,
        work: f64,
        memory: usize,
        context: Option<usize>,
        merged: &dyn Fn(&Table) -> Result<Settings>,
    ) -> Result<Table> {
        let base = base()?;
        let mut chosen = None;
        for sizes in SIZES {
            let recipe = self.sized(&base, sizes);
            let is_allowed = merged(&recipe)?.model_config(self.vocab_size, None).is_ok();
            if is_allowed && (chosen.is_none() || self.is_affordable(&recipe, work, memory)?) {
                chosen = Some(recipe);
            }
        }
        // Where none goes with what is set, the first is refused for it.
        let mut recipe = chosen.unwrap_or_else(|| self.sized(&base, SIZES[0]));
        let [short, long] = self.windows();
        let width = merged(&recipe)?.model_config(self.vocab_size, None)?.embed_dim;
        recipe.extend(batch(width, context.unwrap_or(short)));
        if context.is_none()
            && (width >= CHANNELS_FOR_LONG_WINDOWS
                || self.tokens_of_run(&merged(&recipe)?, work)? >= TOKENS_FOR_LONG_WINDOWS)
        {
            recipe.extend(batch(width, long));
        }
        Ok(recipe)
    }

    /// The parts of a batch, if a machine has more threads than there are by default: one for each, as parts scale better than
    /// operations do, but no more than make the longest part shorter. As by default where these leave more than half of the
    /// threads without work, or memory has no room for the gradients of so many.
    pub fn shards(&self, settings: &Settings, machine: Machine) -> Result<Table> {
        let (options, config) = (settings.train_options()?, settings.model_config(self.vocab_size, None)?);
        let sequences = options.batch.div_ceil(options.accumulate.max(1));
        let shards = sequences.div_ceil(sequences.div_ceil(machine.threads).max(1));
        let mut recipe = Table::new();
        let is_better = shards > TrainOptions::default().shards && 2 * shards >= machine.threads;
        if is_better && memory_needed(&config, &TrainOptions { shards, ..options }, None) <= machine.memory {
            set(&mut recipe, "shards", shards as i64);
        }
        Ok(recipe)
    }

    /// What follows from the number of steps: Muon's momentum, and dropout where a text is read often. A model with many
    /// weights for each token of the text knows it by heart the sooner.
    pub fn recipe_for_steps(&self, settings: &Settings, steps: u64) -> Result<Table> {
        let (options, config) = (settings.train_options()?, settings.model_config(self.vocab_size, None)?);
        let text = self.train.max(1.0);
        let passes = steps as f64 * tokens_of_step(&config, &options) / text;
        let doublings = (passes * (config.parameter_count() as f64 / text).sqrt() / PASSES_WITHOUT_DROPOUT).log2();
        let mut recipe = Table::new();
        set(&mut recipe, "momentum", if steps < LONG_RUN { 0.85 } else { 0.95 });
        // Rounding can give -0.0, which would be shown.
        set(&mut recipe, "dropout", ((5.0 * doublings).round() / 100.0).clamp(0.0, MAX_DROPOUT) + 0.0);
        Ok(recipe)
    }

    /// The recipe with a model of this many channels and layers, and short windows.
    fn sized(&self, base: &Table, [dim, layers]: [i64; 2]) -> Table {
        let mut recipe = base.clone();
        for (name, value) in [("layers", layers), ("heads", dim / HEAD_DIM), ("head-dim", HEAD_DIM)] {
            set(&mut recipe, name, value);
        }
        recipe.extend(batch(dim as usize, self.windows()[0]));
        recipe
    }

    /// The lengths of windows, as far as the text has such.
    fn windows(&self) -> [usize; 2] {
        WINDOWS.map(|len| len.min(self.max_context()))
    }

    /// Whether the text is too short for longer windows.
    pub fn limits(&self, window: usize) -> bool {
        window == self.max_context() && window < WINDOWS[1]
    }

    /// Whether there is enough work for a recipe to train on the tokens that its weights need, enough text, and
    /// `memory` bytes enough.
    fn is_affordable(&self, recipe: &Table, work: f64, memory: usize) -> Result<bool> {
        let settings = Settings::merged(&[recipe])?;
        let (config, options) = (settings.model_config(self.vocab_size, None)?, settings.train_options()?);
        let steps = work / step_cost(&config, &options);
        Ok(config.parameter_count() as f64 <= MAX_WEIGHTS_PER_TOKEN * self.train
            && memory_needed(&config, &options, None) <= memory
            && steps * tokens_of_step(&config, &options) >= TOKENS_PER_WEIGHT * weights(&config))
    }

    /// The steps of a run: those that are set or, where the time decides, those that so much work allows.
    pub fn steps(&self, settings: &Settings, work: f64) -> Result<u64> {
        let options = settings.train_options()?;
        match settings.minutes() {
            None => Ok(options.steps),
            Some(_) => {
                let config = settings.model_config(self.vocab_size, None)?;
                Ok(affordable_steps(&config, &options, self.validation as usize, work))
            }
        }
    }

    /// The tokens that a run of these settings trains on.
    fn tokens_of_run(&self, settings: &Settings, work: f64) -> Result<f64> {
        let config = settings.model_config(self.vocab_size, None)?;
        Ok(self.steps(settings, work)? as f64 * tokens_of_step(&config, &settings.train_options()?))
    }

    /// The longest window of which the shorter part of the text, training or validation, has two; at least 2, as a sequence of
    /// one token has nothing to attend to.
    pub fn max_context(&self) -> usize {
        let shorter = if self.validation > 0.0 { self.validation.min(self.train) } else { self.train };
        (shorter as usize / 2).max(2)
    }
}

fn set(recipe: &mut Table, name: &str, value: impl Into<Value>) {
    recipe.insert(name.into(), value.into());
}

/// Windows of this length, and as many in a step as go with this many channels.
fn batch(dim: usize, context: usize) -> Table {
    let mut recipe = Table::new();
    set(&mut recipe, "context", context as i64);
    set(&mut recipe, "batch", (16 * dim.max(64) / context.max(1)).max(1) as i64);
    recipe
}

fn tokens_of_step(config: &ModelConfig, options: &TrainOptions) -> f64 {
    options.batch as f64 * options.window_len(config) as f64
}

/// What is the same for all texts.
fn base() -> Result<Table> {
    let mut base = options::parse(include_str!("presets/automatic.toml"))?;
    set(&mut base, "minutes", MINUTES);
    Ok(base)
}

/// What lets the time decide on the number of steps.
pub fn timed_schedule() -> Result<Table> {
    Ok(base()?.into_iter().filter(|(name, _)| ["schedule", "warmup", "decay"].contains(&name.as_str())).collect())
}

/// The steps that so many floating-point operations allow, about, with the validations on so many tokens between them.
pub fn affordable_steps(config: &ModelConfig, options: &TrainOptions, validation: usize, work: f64) -> u64 {
    let validation = options.validation_steps(validation, options.window_len(config));
    // By default those before the last take a tenth of the steps at most.
    let others = options.eval_every.map_or(0.05, |every| validation / every as f64);
    ((work / step_cost(config, options) - validation) / (1.0 + others)).max(1.0) as u64
}

/// The floating-point operations of a step, as many more as the products of narrow matrices are slower.
fn step_cost(config: &ModelConfig, options: &TrainOptions) -> f64 {
    let count = |n: usize| n as f64;
    let (dim, layers, context) = (count(config.embed_dim), count(config.num_layers), count(options.window_len(config)));
    let model = count(options.batch) * context * (6.0 * weights(config) + 7.0 * layers * context * dim);
    // Five iterations of three products each for the four square matrices of a block and the three of its feed-forward
    // network.
    let muon = if options.optimizer == OptimizerKind::Muon { 310.0 * layers * dim.powi(3) } else { 0.0 };
    (model + muon) * (dim + 50.0) / dim
}

/// The weights that take part in products: all but those of embeddings, of which a token is looked up.
fn weights(config: &ModelConfig) -> f64 {
    let looked_up = if config.tie_embeddings { 0 } else { config.vocab_size * config.embed_dim };
    config.parameter_count().saturating_sub(looked_up) as f64
}

#[cfg(test)]
mod tests {
    use super::tokenizer::vocabulary;
    use super::*;

    /// The work of a second on two cores of a processor with AVX-512, about.
    pub const SECOND: f64 = 5e11;

    /// A recipe to which nothing is set.
    fn alone(recipe: &Table) -> Result<Settings> {
        Settings::merged(&[recipe])
    }

    fn number(recipe: &Table, name: &str) -> i64 {
        recipe[name].as_integer().unwrap()
    }

    /// The recipe for a text of so many bytes and a run of so many seconds, and its steps.
    fn recipe(bytes: u64, seconds: f64) -> (Table, u64) {
        let work = seconds * SECOND;
        let tokenizer = vocabulary(bytes, work).map_or(TokenizerChoice::Characters, TokenizerChoice::Bpe);
        let size = TextSize::expected(bytes, &tokenizer);
        let mut recipe = size.recipe(work, usize::MAX, None, &alone).unwrap();
        let settings = Settings::merged(&[&recipe]).unwrap();
        let steps = size.steps(&settings, work).unwrap();
        recipe.extend(size.recipe_for_steps(&settings, steps).unwrap());
        (recipe, steps)
    }

    #[test]
    fn every_text_has_a_valid_recipe() {
        for tokenizer in ["char", "byte", "bpe:512", "bpe:50000", "tokenizer.json"] {
            for bytes in (0..=45).step_by(3).map(|power| 1 << power) {
                for seconds in [1.0, 60.0, 60_000.0] {
                    let size = TextSize::expected(bytes, &tokenizer.parse().unwrap());
                    Settings::merged(&[&size.recipe(seconds * SECOND, usize::MAX, None, &alone).unwrap()])
                        .unwrap()
                        .check()
                        .unwrap();
                }
            }
        }
    }

    /// Beside what lets the time decide.
    #[test]
    fn a_recipe_is_the_base_and_what_is_chosen() {
        let base = base().unwrap();
        let chosen = ["layers", "heads", "head-dim", "context", "batch", "momentum", "dropout", "minutes"];
        for (bytes, seconds) in [(1_000, 1.0), (100_000, 60.0), (10_000_000, 600.0)] {
            let (recipe, _) = recipe(bytes, seconds);
            for name in recipe.keys().chain(base.keys()).filter(|name| !chosen.contains(&name.as_str())) {
                assert_eq!(recipe.get(name), base.get(name), "{name}");
            }
        }
    }

    #[test]
    fn more_time_is_worth_a_larger_model_and_more_tokens() {
        for bytes in [100_000, 4_000_000, 100_000_000] {
            let recipes = [1.0, 10.0, 60.0, 300.0, 3600.0].map(|seconds| recipe(bytes, seconds));
            let sizes = recipes.each_ref().map(|(recipe, _)| number(recipe, "layers") * number(recipe, "heads").pow(2));
            let trained = recipes
                .each_ref()
                .map(|(recipe, steps)| *steps as i64 * number(recipe, "batch") * number(recipe, "context"));
            assert!(sizes.is_sorted() && sizes[0] < sizes[3], "{bytes}: {sizes:?}");
            assert!(trained[0] < trained[2] && trained[2] < trained[4], "{bytes}: {trained:?}");
        }
    }

    /// With vocabularies such as are chosen for this text: with a larger one, that is set, windows can be shorter where
    /// the model grows.
    #[test]
    fn more_work_never_makes_a_smaller_model_or_shorter_windows() {
        for (train, vocab_size) in [(8e5, 1536), (8e5, 4096)] {
            let size = TextSize { train, validation: 6e4, vocab_size };
            let chosen = (0..400).map(|power| {
                let recipe = size.recipe(1e11 * 1.03f64.powi(power), usize::MAX, None, &alone).unwrap();
                let [layers, heads, context] = ["layers", "heads", "context"].map(|name| number(&recipe, name));
                (heads * heads * layers, context)
            });
            let (sizes, contexts): (Vec<_>, Vec<_>) = chosen.unzip();
            assert!(sizes.is_sorted() && contexts.is_sorted(), "{train} {vocab_size}: {sizes:?} {contexts:?}");
        }
    }

    #[test]
    fn a_batch_has_a_part_for_each_thread_where_that_pays() {
        let size = TextSize::expected(1_000_000, &"char".parse().unwrap());
        let shards = |batch: i64, machine: Machine| {
            let mut recipe = size.recipe(60.0 * SECOND, usize::MAX, None, &alone).unwrap();
            set(&mut recipe, "batch", batch);
            let shards = size.shards(&alone(&recipe).unwrap(), machine).unwrap();
            shards.get("shards").and_then(Value::as_integer)
        };
        for (batch, threads, expected) in [
            (16, 1, None),
            (16, 4, None),
            (16, 8, Some(8)),
            (16, 12, Some(8)),
            (16, 16, Some(16)),
            (12, 16, Some(12)),
            (8, 6, None),
            (8, 17, None),
            (1, 2, None),
        ] {
            assert_eq!(shards(batch, Machine { threads, ..Machine::ANY }), expected, "{batch} on {threads}");
        }
        assert_eq!(shards(16, Machine { threads: 16, memory: 1 << 20 }), None);
    }

    #[test]
    fn a_text_that_is_read_often_has_dropout() {
        let dropout = |bytes| recipe(bytes, 60.0).0["dropout"].as_float().unwrap();
        assert_eq!(dropout(100_000_000), 0.0);
        assert!(dropout(50_000) > 0.0);
    }

    #[test]
    fn windows_fit_into_the_validation_text() {
        let text = TextSize { train: 2940.0, validation: 60.0, vocab_size: 2000 };
        assert_eq!(number(&text.recipe(SECOND, usize::MAX, None, &alone).unwrap(), "context"), 30);
        let none = TextSize { train: 100.0, validation: 0.0, vocab_size: 20 };
        assert_eq!(number(&none.recipe(SECOND, usize::MAX, None, &alone).unwrap(), "context"), 50);
        let short = TextSize { train: 100.0, validation: 10_000.0, vocab_size: 20 };
        assert_eq!((short.max_context(), TextSize { validation: 3.0, ..short }.max_context()), (50, 2));
    }

    #[test]
    fn sizes_go_with_what_is_set() {
        let size = TextSize::expected(10_000_000, &TokenizerChoice::Bpe(4096));
        for seconds in [1.0, 30.0, 3000.0] {
            for kv_heads in [1, 2, 3, 5, 8] {
                let set = Table::from_iter([("kv-heads".to_string(), Value::from(kv_heads))]);
                let merged = |recipe: &Table| Settings::merged(&[recipe, &set]);
                let recipe = size.recipe(seconds * SECOND, usize::MAX, None, &merged).unwrap();
                assert_eq!(number(&recipe, "heads") % kv_heads, 0, "{recipe}");
            }
        }
    }

    /// What is set counts.
    #[test]
    fn windows_are_long_in_a_wide_model_and_in_a_run_of_many_tokens() {
        let chosen = |work: f64, size: TextSize, given: &str| {
            let given = options::parse(given).unwrap();
            let merged = |recipe: &Table| Settings::merged(&[recipe, &given]);
            let recipe = size.recipe(work, usize::MAX, None, &merged).unwrap();
            ["context", "batch"].map(|name| number(&recipe, name))
        };
        let text = TextSize { train: 1e9, validation: 0.0, vocab_size: 512 };
        for [dim, layers] in [[32, 2], [96, 3], [128, 4]] {
            let given = format!("dim = {dim}\nheads = {}\nlayers = {layers}", dim / HEAD_DIM);
            let settings = Settings::merged(&[&text.sized(&base().unwrap(), [dim, layers])]).unwrap();
            let (config, options) = (settings.model_config(512, None).unwrap(), settings.train_options().unwrap());
            let enough = 5e6 / tokens_of_step(&config, &options) * step_cost(&config, &options);
            let tokens = 16 * dim.max(64);
            assert_eq!(chosen(enough, text, &given), [128, tokens / 128], "{dim}");
            // Validations take a twentieth.
            assert_eq!(chosen(1.1 * enough, text, &given), [256, tokens / 256], "{dim}");
        }
        assert_eq!(chosen(0.0, text, "dim = 160\nheads = 5"), [128, 20]);
        assert_eq!(chosen(0.0, text, "dim = 192\nheads = 6"), [256, 12]);
        let steps = |batch: usize, steps: usize| format!("batch = {batch}\nminutes = 0.0\nsteps = {steps}");
        assert_eq!(chosen(0.0, text, &steps(10, 3907))[0], 256);
        assert_eq!(chosen(0.0, text, &steps(10, 3906))[0], 128);
        let short = TextSize { validation: 400.0, ..text };
        assert_eq!((chosen(1e15, short, "")[0], short.limits(200), short.limits(128)), (200, true, false));
        assert!(!TextSize { validation: 512.0, ..text }.limits(256));
    }

    /// By the estimate that refuses a run.
    #[test]
    fn a_model_fits_into_memory() {
        let size = TextSize::expected(100_000_000, &TokenizerChoice::Bpe(4096));
        let models = [usize::MAX, 300_000_000, 150_000_000].map(|memory| {
            let settings = Settings::merged(&[&size.recipe(600.0 * SECOND, memory, None, &alone).unwrap()]).unwrap();
            let config = settings.model_config(4096, None).unwrap();
            assert!(memory_needed(&config, &settings.train_options().unwrap(), None) <= memory);
            config.parameter_count()
        });
        assert!(models[0] > models[1] && models[1] > models[2], "{models:?}");
    }

    /// Twice the work is twice the steps, and a step of twice the sequences is half the steps, but for Muon's share.
    #[test]
    fn steps_are_work_over_the_cost_of_one() {
        let (config, options) = (ModelConfig::gpt2(65), TrainOptions::default());
        let steps = |validation: usize, work: f64| affordable_steps(&config, &options, validation, work);
        assert!(steps(0, 2e12).abs_diff(2 * steps(0, 1e12)) <= 1);
        assert!(steps(100_000, 1e12) < steps(0, 1e12), "a validation takes its part");
        let twice = TrainOptions { batch: 2 * options.batch, ..options.clone() };
        assert_eq!(step_cost(&config, &twice), 2.0 * step_cost(&config, &options));
        let muon = TrainOptions { optimizer: OptimizerKind::Muon, ..options.clone() };
        assert!(step_cost(&config, &muon) > step_cost(&config, &options));
        assert_eq!(steps(0, 0.0), 1);
    }
}
