//! Milliseconds of a training step, compared with the arithmetic alone, torch and candle-nn's operations in the same
//! run.
//!
//!     CANDLE_ATTENTION_PYTHON=venv/bin/python cargo bench -p candle-attention --features lm --bench training_step
//!
//! `-- A` measures that row alone. Without the variable there are no torch columns; torch.compile also needs a C++ compiler. If
//! `CANDLE_ATTENTION_OTHER_BUILD` is set to the program of this bench built with other flags, it adds a column.
//!
//! A turn is the median of some steps after an uncounted one, a figure the median of the turns. The arithmetic is that of
//! `support/flops.rs`, at the rate that `gemm` reaches on large matrices in the same round.

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
    pub mod flops;
    pub mod peer;
    pub mod rivals;
    pub mod timing;
}
use support::{args, arithmetic, composed::Composed, contest::Contest, flops::flops, peer, rivals, timing};

/// A model and a batch: L, H, C, T and B; steps per turn, and turns.
struct Row {
    name: &'static str,
    architecture: &'static str,
    sizes: [usize; 5],
    steps: usize,
    turns: usize,
}

const CPU: Row = Row { name: "A: ", architecture: "gpt2", sizes: [4, 4, 128, 64, 12], steps: 20, turns: 9 };
const BABY: Row = Row { name: "B: ", architecture: "gpt2", sizes: [6, 6, 384, 256, 8], steps: 3, turns: 7 };
/// A llama of SmolLM2-135M's shape, of one sequence.
const SMOL: Row = Row { name: "C: ", architecture: "llama", sizes: [30, 9, 576, 128, 1], steps: 1, turns: 7 };
const TINY: Row = Row { name: "", architecture: "gpt2", sizes: [2, 2, 8, 16, 3], steps: 1, turns: 1 };

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    if let Some(side) = peer::served_side() {
        return serve(&side);
    }
    let (is_bench, wanted) = args::read();
    let rows: &[Row] = if is_bench { &[CPU, BABY, SMOL] } else { &[TINY] };
    let is_wanted = |row: &&Row| wanted.is_empty() || wanted.iter().any(|name| row.name.starts_with(name.as_str()));
    for row in rows.iter().filter(is_wanted) {
        let mut contest = contest(row)?;
        contest.ask(&row.steps.to_string(), row.turns)?;
        // There is no composed llama: its table has a column less.
        contest.print_head("ms a step");
        let [layers, heads, channels, context, batch] = row.sizes;
        contest.print_row(&format!("{}{layers}L {heads}H {channels}C T{context} B{batch}", row.name), 0);
    }
    Ok(())
}

/// All sides, with a model of these sizes.
fn contest(row: &Row) -> Result<Contest> {
    let side = |name: &str| {
        row.sizes.iter().fold(format!("{name} {}", row.architecture), |side, size| format!("{side} {size}"))
    };
    let mut contest = Contest::default();
    contest.enter("candle-attention", peer::this_bench(&side("ours"))?)?;
    contest.enter("one thread", peer::on_one_thread(peer::this_bench(&side("ours"))?))?;
    contest.enter("bf16", peer::this_bench(&side("bf16"))?)?;
    contest.enter("arithmetic limit", peer::this_bench(&side("limit"))?)?;
    if let Some(command) = rivals::other_build(&side("ours")) {
        contest.enter("other build", command)?;
    }
    let script = if row.architecture == "gpt2" { "nanogpt_cpu.py" } else { "llama_step.py" };
    for (name, option) in [("torch eager", None), ("torch.compile", Some("--compile"))] {
        if let Some(mut command) = rivals::python(script) {
            let names = ["--layers", "--heads", "--dim", "--context", "--batch"];
            command.args(names.iter().zip(row.sizes).flat_map(|(name, size)| [name.to_string(), size.to_string()]));
            command.arg("--serve").args(option);
            contest.enter(name, command)?;
        }
    }
    if row.architecture == "gpt2" {
        let mut composed = peer::this_bench(&side("composed"))?;
        // candle's pool as users of candle-nn have it.
        composed.env("CANDLE_NUM_THREADS", peer::threads().to_string());
        contest.enter("candle-nn composed", composed)?;
    }
    Ok(contest)
}

/// The configuration of a row.
fn config(architecture: &str, sizes: &[usize]) -> Result<(ModelConfig, usize)> {
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

/// Answers as the side: to a number of steps with their median in milliseconds.
fn serve(side: &str) -> Result<()> {
    let (name, model) = side.split_once(' ').context("expected a side and its model")?;
    let (architecture, sizes) = model.split_once(' ').context("expected an architecture and its sizes")?;
    let sizes = sizes.split(' ').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    let (config, batch_size) = config(architecture, &sizes)?;
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

/// A trainer with one shard for each thread, on an arbitrary text of 65 characters.
fn trainer(config: &ModelConfig, batch: usize, precision: Precision) -> Result<Trainer> {
    let text: Vec<u8> = (0..100_000u64).map(|i| b'0' + (i * i % 9973 % 65) as u8).collect();
    let (documents, validation) = ([Document::new("text", text)], Validation::Fraction(0.0));
    let (_, corpus) =
        prepare(&documents, &validation, &"char".parse()?, TextOptions::default(), IdsStore::Temporary, &mut |_| {})?;
    let options = TrainOptions { batch, shards: peer::threads(), precision, ..Default::default() };
    Ok(Trainer::new(config, &options, corpus, &Device::Cpu)?)
}
