//! Generation with the key-value cache, without it, and by torch in nanoGPT's way, which has no cache.
//!
//!     CANDLE_ATTENTION_PYTHON=venv/bin/python cargo bench -p candle-attention --features lm --bench generation
//!
//! Without that variable, torch's column is missing. `CANDLE_ATTENTION_OTHER_BUILD`, if set to the executable of this
//! bench built with other flags, adds a column for it. The model has the sizes of nanoGPT's CPU recipe and random
//! weights; the prompt is one token. 63 tokens stay within the context; 500, as in nanoGPT's `sample.py`, exceed it:
//! then nanoGPT rereads the last 64 tokens for each new one, and the cache the last 32 each time it is full. A second
//! table has qwen3's architecture, whose cache slides, in the same sizes and in larger ones. Each turn writes the text
//! twice and times the second. "Tracked" is a model whose weights are trainable.
//!
//! The last table has SmolLM2-135M's shape, which is larger than the caches: the bytes read per second while writing
//! (each weight, and the keys and values so far, once a token), as a share of the memory's bandwidth in a copy, read and
//! written bytes counted; and the reading of a prompt as long as the context, as a share of the arithmetic limit.

use anyhow::{Context, Result, anyhow};
use candle_attention::generate::{Sampler, SamplingOptions, generate};
use candle_attention::model::{CausalLm, ModelConfig};
use candle_attention::nn::Parameters;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use std::ops::ControlFlow;

#[path = "../attn/src/allocator.rs"]
mod allocator;

mod support {
    pub mod arithmetic;
    pub mod bandwidth;
    pub mod contest;
    pub mod peer;
    pub mod rivals;
    pub mod timing;
}
use support::{arithmetic, bandwidth, contest::Contest, peer, rivals, timing};

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    match peer::served_side().as_deref() {
        Some("cached") => return serve(cached, Parameters::frozen),
        Some("tracked") => return serve(cached, Parameters::var_builder),
        Some("large") => return serve_large(),
        Some(_) => return serve(uncached, Parameters::frozen),
        None => {}
    }
    // Without `--bench`, which `cargo bench` passes, it runs once as a test.
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let (rows, turns): (&[&str], _) =
        if is_bench { (&["gpt2 63", "gpt2 500", "qwen3 63", "qwen3 500"], 7) } else { (&["gpt2 70", "qwen3 70"], 1) };
    let (gpt2, qwen3): (Vec<&str>, Vec<&str>) = rows.iter().partition(|row| row.starts_with("gpt2"));
    contest(&gpt2, turns, &["threads 1", "tracked", "without a cache", "other build", "torch"])?;
    contest(&qwen3, turns, &["threads 1", "tracked", "without a cache", "other build"])?;
    if !is_bench {
        return Ok(());
    }
    contest(&["larger 255", "larger 1000"], turns, &["threads 1", "tracked", "other build"])?;
    large(turns)
}

/// Prints a table of the available rivals, with a row for each model and number of tokens.
fn contest(rows: &[&str], turns: usize, rivals: &[&str]) -> Result<()> {
    let mut contest = Contest::default();
    contest.enter("candle-attention", peer::this_bench("cached")?)?;
    let commands = [
        ("threads 1", Some(peer::on_one_thread(peer::this_bench("cached")?))),
        ("tracked", Some(peer::this_bench("tracked")?)),
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
fn serve(write: fn(&CausalLm, usize) -> Result<()>, builder: Builder) -> Result<()> {
    let models = ["gpt2", "qwen3", "larger"].map(|name| (name, model(name, builder)));
    peer::serve(|question| {
        let (name, tokens) = question.split_once(' ').context("expected a model and a number of tokens")?;
        let (_, model) = models.iter().find(|(known, _)| *known == name).context("no such model")?;
        let (model, tokens) = (model.as_ref().map_err(|error| anyhow!("{error}"))?, tokens.parse()?);
        write(model, tokens)?;
        Ok(vec![timing::ms(|| write(model, tokens))? * 1e3 / tokens as f64])
    })
}

/// How a model is built: with frozen weights, or with tracked ones.
type Builder = fn(&Parameters, DType, &Device) -> VarBuilder<'static>;

/// A model with random weights: gpt2 or qwen3 in the sizes of nanoGPT's CPU recipe, a larger qwen3, or SmolLM2-135M's
/// shape.
fn model(name: &str, builder: Builder) -> Result<CausalLm> {
    let config = match name {
        "gpt2" => ModelConfig::gpt2(65),
        "qwen3" => ModelConfig::qwen3(65),
        "smollm2" => ModelConfig {
            context_len: 4096,
            embed_dim: 576,
            num_layers: 30,
            num_heads: 9,
            num_kv_heads: Some(3),
            hidden_dim: 1536,
            ..ModelConfig::llama(49_152)
        },
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
    Ok(CausalLm::new(&config, builder(&Parameters::new(1), DType::F32, &Device::Cpu))?)
}

/// Prints what a model larger than the caches reaches, on all threads and on one.
fn large(rounds: usize) -> Result<()> {
    let mut contest = Contest::default();
    contest.enter("all threads", peer::this_bench("large")?)?;
    contest.enter("one thread", peer::on_one_thread(peer::this_bench("large")?))?;
    contest.print_head("SmolLM2-135M's shape");
    let rows = [
        ("decode", ["tokens per second", "GB/s read", "GB/s of a copy", "share"]),
        ("prefill", ["ms for 4096 tokens", "tokens per second", "arithmetic limit, ms", "share"]),
    ];
    for (question, numbers) in rows {
        contest.ask(question, rounds)?;
        numbers.iter().enumerate().for_each(|(i, number)| contest.print_row(&format!("{question}: {number}"), i));
    }
    Ok(())
}

/// Answers `decode` and `prefill` with four numbers.
fn serve_large() -> Result<()> {
    const TOKENS: usize = 24;
    let model = model("smollm2", Parameters::frozen)?;
    let config = model.config();
    let (c, t) = (config.embed_dim, config.context_len);
    let blocks = (config.parameter_count() - config.vocab_size * c) as f64;
    let head = (config.vocab_size * c) as f64;
    let ids = Tensor::from_vec((0..t as u32).collect(), (1, t), &Device::Cpu)?;
    peer::serve(|question| match question {
        "decode" => {
            let mut decoder = model.decoder();
            decoder.next_token_logits(&ids.narrow(1, 0, 16)?)?;
            let write =
                || (16..16 + TOKENS).try_for_each(|i| decoder.next_token_logits(&ids.narrow(1, i, 1)?).map(drop));
            let seconds = timing::ms(write)? / 1e3;
            let kv = 2 * config.num_layers * config.kv_heads() * config.head_channels() * (16 + TOKENS / 2);
            let rate = TOKENS as f64 * size_of::<f32>() as f64 * (blocks + head + kv as f64) / seconds / 1e9;
            let copy = bandwidth::copy_gigabytes_per_second();
            Ok(vec![TOKENS as f64 / seconds, rate, copy, rate / copy])
        }
        _ => {
            let ms = timing::ms(|| model.decoder().next_token_logits(&ids))?;
            let pairs = (t * (t + 1) / 2 * config.num_layers * config.num_heads * config.head_channels()) as f64;
            let limit = arithmetic::limit_ms(2.0 * (blocks * t as f64 + head) + 4.0 * pairs);
            Ok(vec![ms, t as f64 / ms * 1e3, limit, limit / ms])
        }
    })
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
