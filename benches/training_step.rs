//! Milliseconds of a training step, compared with the arithmetic alone, torch and candle-nn's operations in the same
//! run.
//!
//!     CANDLE_ATTENTION_PYTHON=venv/bin/python cargo bench -p candle-attention --features lm --bench training_step
//!
//! Without the variable there are no torch columns; torch.compile also needs a C++ compiler. If
//! `CANDLE_ATTENTION_OTHER_BUILD` is set to the program of this bench built with other flags, it adds a column.
//!
//! A turn is the median of some steps after an uncounted one, a figure the median of the turns. The arithmetic is 6 *
//! (weights of the matrix products, a tied head counted once) * B * T floating-point operations, and 7 * L * B * T^2 *
//! C for causal attention, at the rate that `gemm` reaches on large matrices in the same round.

use anyhow::{Context, Result, bail};
use candle_attention::model::ModelConfig;
use candle_attention::text::{Document, IdsStore, TextOptions, Validation, prepare};
use candle_attention::train::{Precision, TrainOptions, Trainer};
use candle_core::Device;

#[path = "../attn/src/allocator.rs"]
mod allocator;

mod support {
    pub mod args;
    pub mod arithmetic;
    pub mod composed;
    pub mod composed_attention;
    pub mod contest;
    pub mod peer;
    pub mod rivals;
    pub mod timing;
}
use support::{args, arithmetic, composed::Composed, contest::Contest, peer, rivals, timing};

/// L, H, C, T and B; steps per turn, and turns.
const CPU: ([usize; 5], usize, usize) = ([4, 4, 128, 64, 12], 20, 9);
const BABY: ([usize; 5], usize, usize) = ([6, 6, 384, 256, 8], 3, 5);
const TINY: ([usize; 5], usize, usize) = ([2, 2, 8, 16, 3], 1, 1);

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    if let Some(side) = peer::served_side() {
        return serve(&side);
    }
    let (is_bench, _) = args::read();
    let sizes: &[_] = if is_bench { &[("A: ", CPU), ("B: ", BABY)] } else { &[("", TINY)] };
    for (i, &(name, (sizes, steps, turns))) in sizes.iter().enumerate() {
        let mut contest = contest(sizes)?;
        contest.ask(&steps.to_string(), turns)?;
        if i == 0 {
            contest.print_head("ms a step");
        }
        let [layers, heads, channels, context, batch] = sizes;
        contest.print_row(&format!("{name}{layers}L {heads}H {channels}C T{context} B{batch}"), 0);
    }
    Ok(())
}

/// All sides, with a model of these sizes.
fn contest(sizes: [usize; 5]) -> Result<Contest> {
    let side = |name: &str| sizes.iter().fold(name.to_string(), |side, size| format!("{side} {size}"));
    let mut contest = Contest::default();
    contest.enter("candle-attention", peer::this_bench(&side("ours"))?)?;
    contest.enter("bf16", peer::this_bench(&side("bf16"))?)?;
    contest.enter("arithmetic limit", peer::this_bench(&side("limit"))?)?;
    if let Some(command) = rivals::other_build(&side("ours")) {
        contest.enter("other build", command)?;
    }
    for (name, option) in [("torch eager", None), ("torch.compile", Some("--compile"))] {
        if let Some(mut command) = rivals::python("nanogpt_cpu.py") {
            let names = ["--layers", "--heads", "--dim", "--context", "--batch"];
            command.args(names.iter().zip(sizes).flat_map(|(name, size)| [name.to_string(), size.to_string()]));
            command.arg("--serve").args(option);
            contest.enter(name, command)?;
        }
    }
    let mut composed = peer::this_bench(&side("composed"))?;
    // candle's pool as users of candle-nn have it.
    composed.env("CANDLE_NUM_THREADS", peer::THREADS.to_string());
    contest.enter("candle-nn composed", composed)?;
    Ok(contest)
}

/// Answers as the side: to a number of steps with their median in milliseconds.
fn serve(side: &str) -> Result<()> {
    let (name, sizes) = side.split_once(' ').context("expected a side and its sizes")?;
    let sizes = sizes.split(' ').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    let [num_layers, num_heads, embed_dim, context_len, batch_size] = sizes[..] else {
        bail!("expected five sizes, got {}", sizes.len());
    };
    let hidden_dim = 4 * embed_dim;
    let config = ModelConfig { num_layers, num_heads, embed_dim, context_len, hidden_dim, ..ModelConfig::gpt2(65) };
    match name {
        "limit" => peer::serve(|_| Ok(vec![arithmetic::limit_ms(flops(&config, batch_size))])),
        "composed" => {
            let mut composed = Composed::new(&config, batch_size)?;
            peer::serve(|steps| median_ms(steps, || Ok(composed.train_step()?)))
        }
        _ => {
            let precision = if name == "bf16" { Precision::Bf16 } else { Precision::F32 };
            let mut trainer = trainer(&config, batch_size, precision)?;
            peer::serve(|steps| {
                median_ms(steps, || {
                    let batch = trainer.next_batch()?;
                    Ok(trainer.step(&batch)?)
                })
            })
        }
    }
}

/// The median of this many steps, after an uncounted one.
fn median_ms<T>(steps: &str, mut step: impl FnMut() -> Result<T>) -> Result<Vec<f64>> {
    step()?;
    let times = (0..steps.parse()?).map(|_: usize| timing::ms(&mut step)).collect::<Result<_>>()?;
    Ok(vec![timing::median(times)])
}

/// A trainer with one shard per thread, on an arbitrary text of 65 characters.
fn trainer(config: &ModelConfig, batch: usize, precision: Precision) -> Result<Trainer> {
    let text: Vec<u8> = (0..100_000u64).map(|i| b'0' + (i * i % 9973 % 65) as u8).collect();
    let (documents, validation) = ([Document::new("text", text)], Validation::Fraction(0.0));
    let (_, corpus) =
        prepare(&documents, &validation, &"char".parse()?, TextOptions::default(), IdsStore::Temporary, &mut |_| {})?;
    let options = TrainOptions { batch, shards: peer::THREADS, precision, ..Default::default() };
    Ok(Trainer::new(config, &options, corpus, &Device::Cpu)?)
}

/// Floating-point operations of a step.
fn flops(config: &ModelConfig, batch_size: usize) -> f64 {
    let matrices =
        config.parameters().into_iter().filter(|(name, shape)| shape.len() == 2 && !name.starts_with("position"));
    let weights: usize = matrices.map(|(_, shape)| shape[0] * shape[1]).sum();
    let (b, t, c, l) =
        (batch_size as f64, config.context_len as f64, config.embed_dim as f64, config.num_layers as f64);
    6.0 * weights as f64 * b * t + 7.0 * l * b * t * t * c
}
