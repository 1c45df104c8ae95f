//! The models of the benches of training steps, and their trainers.

use anyhow::{Result, bail};
use candle_attention::model::ModelConfig;
use candle_attention::text::{Document, IdsStore, TextOptions, Validation, prepare};
use candle_attention::train::{Precision, TrainOptions, Trainer};
use candle_core::Device;

use super::timing;

/// A model and a batch: L, H, C, T and B; steps per turn, and turns.
pub struct Row {
    pub name: &'static str,
    pub architecture: &'static str,
    pub sizes: [usize; 5],
    pub steps: usize,
    pub turns: usize,
}

pub const CPU: Row = Row { name: "A: ", architecture: "gpt2", sizes: [4, 4, 128, 64, 12], steps: 20, turns: 9 };
pub const BABY: Row = Row { name: "B: ", architecture: "gpt2", sizes: [6, 6, 384, 256, 8], steps: 3, turns: 7 };
/// A llama of SmolLM2-135M's shape, of one sequence.
pub const SMOL: Row = Row { name: "C: ", architecture: "llama", sizes: [30, 9, 576, 128, 1], steps: 1, turns: 7 };
pub const TINY: Row = Row { name: "", architecture: "gpt2", sizes: [2, 2, 8, 16, 3], steps: 1, turns: 1 };

/// The configuration of a row, and its batch.
pub fn config(architecture: &str, sizes: &[usize]) -> Result<(ModelConfig, usize)> {
    let &[num_layers, num_heads, embed_dim, context_len, batch_size] = sizes else {
        bail!("expected five sizes, got {}", sizes.len());
    };
    let sized = |config: ModelConfig| ModelConfig { num_layers, num_heads, embed_dim, context_len, ..config };
    let config = match architecture {
        "gpt2" => ModelConfig { hidden_dim: 4 * embed_dim, ..sized(ModelConfig::gpt2(65)) },
        _ => ModelConfig {
            hidden_dim: 8 * embed_dim / 3,
            num_kv_heads: Some(num_heads / 3),
            tie_embeddings: true,
            ..sized(ModelConfig::llama(49152))
        },
    };
    Ok((config, batch_size))
}

/// The median of this many steps in milliseconds, after an uncounted one.
pub fn median_ms<T>(steps: &str, mut step: impl FnMut() -> Result<T>) -> Result<Vec<f64>> {
    step()?;
    let times = (0..steps.parse()?).map(|_: usize| timing::ms(&mut step)).collect::<Result<_>>()?;
    Ok(vec![timing::median(times)])
}

/// A trainer on an arbitrary text of 65 characters.
pub fn trainer(config: &ModelConfig, batch: usize, shards: usize, precision: Precision) -> Result<Trainer> {
    let text: Vec<u8> = (0..100_000u64).map(|i| b'0' + (i * i % 9973 % 65) as u8).collect();
    let (documents, validation) = ([Document::new("text", text)], Validation::Fraction(0.0));
    let (_, corpus) =
        prepare(&documents, &validation, &"char".parse()?, TextOptions::default(), IdsStore::Temporary, &mut |_| {})?;
    let options = TrainOptions { batch, shards, precision, ..Default::default() };
    Ok(Trainer::new(config, &options, corpus, &Device::Cpu)?)
}
