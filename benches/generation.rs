//! Generation with the key-value cache, without it, and by torch in nanoGPT's way, which has no cache.
//!
//!     CANDLE_ATTENTION_PYTHON=venv/bin/python cargo bench -p candle-attention --features lm --bench generation
//!
//! Without that variable, torch's column is missing. `CANDLE_ATTENTION_OTHER_BUILD`, if set to the executable of this
//! bench built with other flags, adds a column for it. The model has the sizes of nanoGPT's CPU recipe and random
//! weights; the prompt is one token. 63 tokens stay within the context; 500, as in nanoGPT's `sample.py`, exceed it:
//! then nanoGPT rereads the last 64 tokens for each new one, and the cache the last 32 each time it is full. A second
//! table has qwen3's architecture, whose cache slides, in the same sizes and in larger ones. Each turn writes the text
//! twice and times the second.

use std::ops::ControlFlow;

use anyhow::{Context, Result, anyhow};
use candle_attention::generate::{Sampler, SamplingOptions, generate};
use candle_attention::model::{CausalLm, ModelConfig};
use candle_attention::nn::Parameters;
use candle_core::{DType, Device, Tensor};

#[path = "../attn/src/allocator.rs"]
mod allocator;

mod support {
    pub mod contest;
    pub mod peer;
    pub mod rivals;
    pub mod timing;
}
use support::{contest::Contest, peer, rivals, timing};

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    match peer::served_side().as_deref() {
        Some("cached") => return serve(cached),
        Some(_) => return serve(uncached),
        None => {}
    }
    // Without `--bench`, which `cargo bench` passes, it runs once as a test.
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let (rows, turns): (&[&str], _) =
        if is_bench { (&["gpt2 63", "gpt2 500", "qwen3 63", "qwen3 500"], 7) } else { (&["gpt2 70", "qwen3 70"], 1) };
    let (gpt2, qwen3): (Vec<&str>, Vec<&str>) = rows.iter().partition(|row| row.starts_with("gpt2"));
    contest(&gpt2, turns, &["without a cache", "other build", "torch"])?;
    contest(&qwen3, turns, &["without a cache", "other build"])?;
    contest(if is_bench { &["larger 255", "larger 1000"] } else { &[] }, turns, &["other build"])
}

/// Prints a table of the available rivals, with a row for each model and number of tokens.
fn contest(rows: &[&str], turns: usize, rivals: &[&str]) -> Result<()> {
    let mut contest = Contest::default();
    contest.enter("candle-attention", peer::this_bench("cached")?)?;
    let commands = [
        ("without a cache", Some(peer::this_bench("uncached")?)),
        ("other build", rivals::other_build("cached")),
        ("torch", rivals::python("nanogpt_sample.py")),
    ];
    for (name, command) in commands {
        if let Some(command) = command.filter(|_| rivals.contains(&name)) {
            contest.enter(name, command)?;
        }
    }
    contest.print_head("microseconds per token");
    for row in rows {
        contest.ask(row, turns)?;
        contest.print_row(&format!("{row} tokens"), 0);
    }
    Ok(())
}

/// Answers a model and a number of tokens with the microseconds per token.
fn serve(write: fn(&CausalLm, usize) -> Result<()>) -> Result<()> {
    let models = ["gpt2", "qwen3", "larger"].map(|name| (name, model(name)));
    peer::serve(|question| {
        let (name, tokens) = question.split_once(' ').context("expected a model and a number of tokens")?;
        let (_, model) = models.iter().find(|(known, _)| *known == name).context("no such model")?;
        let (model, tokens) = (model.as_ref().map_err(|error| anyhow!("{error}"))?, tokens.parse()?);
        write(model, tokens)?;
        Ok(vec![timing::ms(|| write(model, tokens))? * 1e3 / tokens as f64])
    })
}

/// A model with random weights: gpt2 or qwen3 in the sizes of nanoGPT's CPU recipe, or a larger qwen3.
fn model(name: &str) -> Result<CausalLm> {
    let config = match name {
        "gpt2" => ModelConfig::gpt2(65),
        "qwen3" => ModelConfig::qwen3(65),
        _ => ModelConfig {
            context_len: 256,
            embed_dim: 384,
            num_layers: 6,
            num_heads: 6,
            num_kv_heads: Some(2),
            hidden_dim: 1024,
            ..ModelConfig::qwen3(65)
        },
    };
    Ok(CausalLm::new(&config, Parameters::new(1).frozen(DType::F32, &Device::Cpu))?)
}

fn sampler() -> Result<Sampler> {
    Ok(Sampler::new(SamplingOptions { top_k: Some(200), ..Default::default() }, 1, 0)?)
}

fn cached(model: &CausalLm, tokens: usize) -> Result<()> {
    generate(model, &[1], tokens, &mut sampler()?, &mut |_| ControlFlow::Continue(()))?;
    Ok(())
}

/// Rereads the last `context_len` tokens for each new one.
fn uncached(model: &CausalLm, tokens: usize) -> Result<()> {
    let (mut ids, mut sampler) = (vec![1u32], sampler()?);
    for _ in 0..tokens {
        let visible = &ids[ids.len().saturating_sub(model.config().context_len)..];
        let logits = model.next_token_logits(&Tensor::new(visible, &Device::Cpu)?.unsqueeze(0)?)?;
        ids.push(sampler.sample(&logits.squeeze(0)?.to_vec1()?, &ids)?);
    }
    Ok(())
}
