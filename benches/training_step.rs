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

use anyhow::{Context, Result};
use candle_attention::train::Precision;

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
    pub mod steps;
    pub mod timing;
}
use support::steps::{BABY, CPU, Row, SMOL, TINY, config, median_ms, trainer};
use support::{args, arithmetic, composed::Composed, contest::Contest, flops::flops, peer, rivals};

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
            // A shard for each thread.
            let mut trainer = trainer(&config, batch_size, peer::threads(), precision)?;
            peer::serve(|steps| {
                median_ms(steps, || {
                    let batch = trainer.next_batch()?;
                    Ok(trainer.step(&batch)?)
                })
            })
        }
    }
}
