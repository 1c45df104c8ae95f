//! Generation with the key-value cache, without it, and by torch in nanoGPT's way, which has none.
//!
//!     CANDLE_ATTENTION_PYTHON=venv/bin/python cargo bench --bench generation
//!
//! Without that variable torch's column is missing. `CANDLE_ATTENTION_OTHER_BUILD`, if set to the program of this bench
//! built with other flags, adds a column for it. The model has the sizes of nanoGPT's recipe for the CPU and weights at
//! random; the prompt is one token. 63 tokens stay within the context. 500, which nanoGPT's `sample.py` writes, go past it: there
//! nanoGPT reads the last 64 tokens again for each new one, and the cache the last 32 each time it is full. A turn writes the
//! text twice, and the second time counts.

use std::ops::ControlFlow;

use anyhow::Result;
use candle_attention::generate::{Sampler, SamplingOptions, generate};
use candle_attention::model::{CausalLm, ModelConfig};
use candle_attention::nn::Parameters;
use candle_core::{DType, Device, Result as CandleResult, Tensor};

#[path = "../src/allocator.rs"]
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
    // Without `--bench`, which `cargo bench` passes, it is run once as a test.
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let (lengths, turns): (&[usize], _) = if is_bench { (&[63, 500], 7) } else { (&[70], 1) };

    let mut contest = Contest::default();
    contest.enter("candle-attention", peer::this_bench("cached")?)?;
    contest.enter("without a cache", peer::this_bench("uncached")?)?;
    if let Some(command) = rivals::other_build("cached") {
        contest.enter("other build", command)?;
    }
    if let Some(command) = rivals::python("nanogpt_sample.py") {
        contest.enter("torch", command)?;
    }
    contest.print_head("microseconds a token");
    for tokens in lengths {
        contest.ask(&tokens.to_string(), turns)?;
        contest.print_row(&format!("{tokens} tokens"), 0);
    }
    Ok(())
}

/// Answers numbers of tokens with the microseconds that each of them took.
fn serve(write: fn(&CausalLm, usize) -> CandleResult<()>) -> Result<()> {
    let model = CausalLm::new(&ModelConfig::gpt2(65), Parameters::new(1).frozen(DType::F32, &Device::Cpu))?;
    peer::serve(|question| {
        let tokens: usize = question.parse()?;
        write(&model, tokens)?;
        Ok(vec![timing::ms(|| write(&model, tokens))? * 1e3 / tokens as f64])
    })
}

fn sampler() -> CandleResult<Sampler> {
    Sampler::new(SamplingOptions { top_k: Some(200), ..Default::default() }, 1, 0)
}

fn cached(model: &CausalLm, tokens: usize) -> CandleResult<()> {
    generate(model, &[1], tokens, &mut sampler()?, &mut |_| ControlFlow::Continue(())).map(drop)
}

/// Each new token reads the last `context_len` tokens again.
fn uncached(model: &CausalLm, tokens: usize) -> CandleResult<()> {
    let (mut ids, mut sampler) = (vec![1u32], sampler()?);
    for _ in 0..tokens {
        let visible = &ids[ids.len().saturating_sub(model.config().context_len)..];
        let logits = model.next_token_logits(&Tensor::new(visible, &Device::Cpu)?.unsqueeze(0)?)?;
        ids.push(sampler.sample(&logits.squeeze(0)?.to_vec1()?, &ids)?);
    }
    Ok(())
}
