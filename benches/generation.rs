//! Tokens a second of generation with the key-value cache and without, at the sizes of nanoGPT's recipe for the CPU.
//!
//!     cargo bench --bench generation
//!
//! The peer is `benches/peers/nanogpt_sample.py`, which samples as nanoGPT does: without a cache.

use std::ops::ControlFlow;
use std::time::Instant;

use candle_attention::generate::{Sampler, SamplingOptions, generate};
use candle_attention::model::{CausalLm, ModelConfig};
use candle_attention::nn::Parameters;
use candle_core::{DType, Device, Result, Tensor};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    // SAFETY: nothing else runs yet. candle's own pool would spin beside rayon's.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    // Without `--bench`, which `cargo bench` passes, it is run once as a test.
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let config = ModelConfig::gpt2(65);
    let model = CausalLm::new(&config, Parameters::new(1).frozen(DType::F32, &Device::Cpu))?;
    println!("{} threads, {} parameters", rayon::current_num_threads(), config.parameter_count());
    println!("prompt 1                tokens/s   us a token");
    let rounds = if is_bench { 5 } else { 1 };
    for tokens in if is_bench { [63, 500] } else { [5, 70] } {
        report(&format!("cached,   {tokens:3} tokens"), tokens, rounds, || cached(&model, tokens))?;
        report(&format!("uncached, {tokens:3} tokens"), tokens, rounds, || uncached(&model, tokens))?;
    }
    Ok(())
}

/// The median rate of some rounds, after one that warms up.
fn report(name: &str, tokens: usize, rounds: usize, generate: impl Fn() -> Result<()>) -> Result<()> {
    generate()?;
    let mut seconds = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        generate()?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let each = seconds[rounds / 2] / tokens as f64;
    println!("{name:22} {:9.0} {:12.1}", 1.0 / each, each * 1e6);
    Ok(())
}

fn sampler() -> Result<Sampler> {
    Sampler::new(SamplingOptions { top_k: Some(200), ..Default::default() }, 1, 0)
}

fn cached(model: &CausalLm, tokens: usize) -> Result<()> {
    let ids = generate(model, &[1], tokens, &mut sampler()?, &mut |_| ControlFlow::Continue(()))?;
    assert_eq!(ids.len(), tokens);
    Ok(())
}

/// nanoGPT's way: each new token reads the last `context_len` tokens again.
fn uncached(model: &CausalLm, tokens: usize) -> Result<()> {
    let (mut ids, mut sampler) = (vec![1u32], sampler()?);
    for _ in 0..tokens {
        let visible = &ids[ids.len().saturating_sub(model.config().context_len)..];
        let logits = model.next_token_logits(&Tensor::new(visible, &Device::Cpu)?.unsqueeze(0)?)?;
        ids.push(sampler.sample(&logits.squeeze(0)?.to_vec1()?)?);
    }
    Ok(())
}
