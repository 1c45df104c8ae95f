//! The recipes of a search.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use toml::{Table, Value};

use crate::model_sizes::{HEAD_DIM, SIZES};

const TOKENIZERS: [&str; 9] =
    ["char", "byte", "bpe:512", "bpe:1024", "bpe:2048", "bpe:4096", "bpe:8192", "bpe:16384", "bpe:32768"];
const CONTEXTS: [i64; 4] = [64, 128, 256, 512];
const TOKENS_PER_STEP: [i64; 4] = [768, 1536, 3072, 6144];
const RATES: [f64; 3] = [0.005, 0.01, 0.02];
const MOMENTA: [f64; 2] = [0.85, 0.95];
const DROPOUTS: [f64; 3] = [0.0, 0.1, 0.2];

/// The options that a search chooses, with those that hang on them.
pub const CHOSEN: [&str; 20] = [
    "tokenizer",
    "layers",
    "heads",
    "head-dim",
    "context",
    "batch",
    "dropout",
    "lr",
    "matrix-lr",
    "embedding-lr",
    "min-lr",
    "momentum",
    "optimizer",
    "schedule",
    "warmup",
    "decay",
    "weight-decay",
    "matrix-weight-decay",
    "average",
    "zero-residual",
];

fn set(point: &mut Table, name: &str, value: impl Into<Value>) {
    point.insert(name.into(), value.into());
}

fn number(point: &Table, name: &str) -> i64 {
    point.get(name).and_then(Value::as_integer).unwrap_or_default()
}

fn set_size(point: &mut Table, [dim, layers]: [i64; 2]) {
    set(point, "heads", dim / HEAD_DIM);
    set(point, "layers", layers);
}

/// Sets the length of the windows, or the tokens of a batch.
fn set_batch(point: &mut Table, context: i64, tokens: i64) {
    set(point, "context", context);
    set(point, "batch", (tokens / context).max(1));
}

/// What all automatic choices have in common, and a small model.
pub fn small() -> Table {
    let preset: Table = include_str!("../../src/presets/automatic.toml").parse().unwrap_or_default();
    let mut recipe: Table = preset.into_iter().filter(|(name, _)| CHOSEN.contains(&name.as_str())).collect();
    set(&mut recipe, "head-dim", HEAD_DIM);
    set(&mut recipe, "tokenizer", "byte");
    set_size(&mut recipe, SIZES[0]);
    set_batch(&mut recipe, 64, 256);
    recipe
}

/// A recipe drawn at large.
pub fn drawn(rng: &mut ChaCha8Rng) -> Table {
    let mut point = small();
    (0..CHANGES).for_each(|what| change(&mut point, what, rng));
    point
}

/// Two changes of a recipe.
pub fn changed(recipe: &Table, rng: &mut ChaCha8Rng) -> Table {
    let mut point = recipe.clone();
    for what in rand::seq::index::sample(rng, CHANGES, 2) {
        change(&mut point, what, rng);
    }
    point
}

/// The number of things that can be changed.
const CHANGES: usize = 7;

fn change(point: &mut Table, what: usize, rng: &mut ChaCha8Rng) {
    fn one<T: Copy>(all: &[T], rng: &mut ChaCha8Rng) -> T {
        all[rng.random_range(0..all.len())]
    }
    let (context, tokens) = (number(point, "context"), number(point, "context") * number(point, "batch"));
    match what {
        0 => set_size(point, one(&SIZES[..6], rng)),
        1 => set(point, "tokenizer", one(&TOKENIZERS, rng)),
        2 => set_batch(point, one(&CONTEXTS, rng), tokens),
        3 => set_batch(point, context, one(&TOKENS_PER_STEP, rng)),
        4 => set(point, "lr", one(&RATES, rng)),
        5 => set(point, "momentum", one(&MOMENTA, rng)),
        _ => set(point, "dropout", one(&DROPOUTS, rng)),
    }
}

/// A recipe with a model so many sizes larger.
pub fn resized(recipe: &Table, by: isize) -> Table {
    let (dim, layers) = (number(recipe, "heads") * number(recipe, "head-dim"), number(recipe, "layers"));
    let at = SIZES.iter().position(|&[d, l]| d * d * l >= dim * dim * layers).unwrap_or(SIZES.len() - 1);
    let mut point = recipe.clone();
    set_size(&mut point, SIZES[at.saturating_add_signed(by).min(SIZES.len() - 1)]);
    point
}

/// A recipe with the model of another.
pub fn with_model_of(recipe: &Table, other: &Table) -> Table {
    let mut point = recipe.clone();
    ["layers", "heads"].into_iter().for_each(|name| set(&mut point, name, number(other, name)));
    point
}

/// A recipe with twice as many tokens, or half as many where there are no more.
pub fn with_next_tokenizer(recipe: &Table) -> Table {
    const MOST: i64 = 32_768;
    let tokens =
        recipe.get("tokenizer").and_then(Value::as_str).and_then(|name| name.strip_prefix("bpe:")?.parse().ok());
    let next = tokens.map_or(512, |tokens: i64| if 2 * tokens <= MOST { 2 * tokens } else { tokens / 2 });
    let mut point = recipe.clone();
    set(&mut point, "tokenizer", format!("bpe:{next}"));
    point
}

/// A recipe in short.
pub fn shown(recipe: &Table) -> String {
    let n = |name| number(recipe, name);
    let float = |name| recipe.get(name).and_then(Value::as_float).unwrap_or_default();
    format!(
        "{} {}x{} T {} B {} lr {} dropout {}",
        recipe.get("tokenizer").and_then(Value::as_str).unwrap_or_default(),
        n("layers"),
        n("heads") * n("head-dim"),
        n("context"),
        n("batch"),
        float("lr"),
        float("dropout")
    )
}
