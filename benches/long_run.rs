//! Resident memory over 20,000 steps of training a tiny model in a run folder, with validations, checkpoints, metrics
//! and charts.
//!
//!     cargo bench -p candle-attention --features lm --bench long_run
//!
//! The resident size is `VmRSS`, which only Linux has.

use std::ops::ControlFlow;

use anyhow::Result;
use candle_attention::model::ModelConfig;
use candle_attention::text::{Document, IdsStore, TextOptions, Validation, prepare};
use candle_attention::train::{Event, RunDir, TrainOptions, Trainer, train};
use candle_core::Device;

#[path = "../attn/src/allocator.rs"]
mod allocator;

mod support {
    pub mod status;
}
use support::status::mebibytes;

const TEXT: &str = "The cat that the children saw yesterday ran down the old street.\n";

/// Steps of the run, steps between validations (with checkpoints), steps between samples, and steps to warm up.
const BENCH_STEPS: [u64; 4] = [20_000, 500, 500, 1000];
const TEST_STEPS: [u64; 4] = [20, 5, 5, 10];

/// The maximum number of rows of the table after the warm-up.
const MAX_ROWS: usize = 10;

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    // Without `--bench`, which `cargo bench` passes, this runs once as a test.
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let [steps, eval_every, sample_every, warm] = if is_bench { BENCH_STEPS } else { TEST_STEPS };

    let space = tempfile::tempdir()?;
    let documents = [Document::new("text", TEXT.repeat(200))];
    let mut run = RunDir::create(&space.path().join("run"))?;
    let (validation, ids) = (Validation::Fraction(0.1), run.ids_path());
    let (tokenizer, corpus) =
        prepare(&documents, &validation, &"char".parse()?, TextOptions::default(), IdsStore::File(&ids), &mut |_| {})?;
    let config = ModelConfig {
        context_len: 32,
        embed_dim: 32,
        num_heads: 2,
        num_layers: 2,
        hidden_dim: 128,
        ..ModelConfig::gpt2(tokenizer.vocab_size())
    };
    let options = TrainOptions { steps, batch: 4, shards: 2, eval_every: Some(eval_every), ..Default::default() };
    let mut trainer = Trainer::new(&config, &options, corpus, &Device::Cpu)?;
    run.begin(&tokenizer, &trainer, &Default::default())?;

    let mut samples = vec![];
    train(&mut trainer, Some(&mut run), &mut |event| {
        if let Event::Step(report) = event
            && report.step.is_multiple_of(sample_every)
        {
            samples.push((report.step, mebibytes("VmRSS") * 1024.0));
        }
        ControlFlow::Continue(())
    })?;
    print(&samples, warm, run.seconds());
    Ok(())
}

fn print(samples: &[(u64, f64)], warm: u64, seconds: f64) {
    println!("| step | resident, kB |\n|---|---|");
    let shown = samples.iter().filter(|sample| sample.0 <= warm);
    let later: Vec<_> = samples.iter().filter(|sample| sample.0 > warm).collect();
    let every = later.len().div_ceil(MAX_ROWS).max(1);
    for (step, kilobytes) in shown.chain(later.into_iter().rev().step_by(every).collect::<Vec<_>>().into_iter().rev()) {
        println!("| {step} | {kilobytes:.0} |");
    }
    let at = |step: u64| samples.iter().find(|sample| sample.0 == step).map_or(f64::NAN, |sample| sample.1);
    let (last, end) = samples.last().copied().unwrap_or_default();
    let grown = |step: u64| format!("from step {step} to {last}: {:+.0} kB", end - at(step));
    println!("\n{}; {}; {seconds:.0} s", grown(warm), grown(last / 2));
}
