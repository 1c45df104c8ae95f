//! What training options cost: milliseconds per step and peak memory, compared with the same training without them.
//!
//!     cargo bench -p candle-attention --features lm --bench training_options
//!
//! Each side is a process of its own with the sizes of nanoGPT's CPU recipe. A turn is the median of some steps after
//! an uncounted one, a figure the median of the turns. The peak is Linux's `VmHWM`; on other systems it is missing.

use std::ops::ControlFlow;

use anyhow::{Context, Result};
use candle_attention::model::{DropoutRates, ModelConfig};
use candle_attention::text::{Document, IdsStore, TextOptions, Tokenizer, Validation, prepare};
use candle_attention::train::{Event, OptimizerKind, RunDir, TrainOptions, Trainer, train};
use candle_core::Device;

#[path = "../attn/src/allocator.rs"]
mod allocator;

mod support {
    pub mod args;
    pub mod contest;
    pub mod peer;
    pub mod status;
    pub mod timing;
}
use support::{args, contest::Contest, peer, status::mebibytes, timing};

const TEXT: &str = "The cat that the children saw yesterday ran down the old street.\n";

/// Layers, channels, context length and batch size; steps per turn, and turns.
const CPU: ([usize; 4], u64, usize) = ([4, 128, 64, 12], 20, 9);
const TINY: ([usize; 4], u64, usize) = ([2, 8, 16, 4], 2, 1);

/// An option and the function that sets it.
type Side = (&'static str, fn(&mut TrainOptions, &mut ModelConfig));

/// The others are compared with the first.
const SIDES: &[Side] = &[
    ("AdamW", |_, _| {}),
    ("in a run folder", |_, _| {}),
    ("statistics every 10 steps", |options, _| options.statistics_every = 10),
    ("statistics every step", |options, _| options.statistics_every = 1),
    ("moving average of the weights", |options, _| options.average = 0.15),
    ("dropout 0.1", |_, config| config.dropout = DropoutRates::all(0.1)),
    ("label smoothing 0.1", |options, _| options.label_smoothing = 0.1),
    ("no clipping", |options, _| options.clip = 0.0),
    ("8 times the batch", |options, _| options.batch *= 8),
    ("8 times the batch, accumulated", |options, _| (options.batch, options.accumulate) = (8 * options.batch, 8)),
    ("Muon", |options, _| options.optimizer = OptimizerKind::Muon),
];

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    let (is_bench, _) = args::read();
    if let Some(side) = peer::served_side() {
        return serve(&side);
    }
    let (sizes, steps, turns) = if is_bench { CPU } else { TINY };
    let sizes: String = sizes.iter().map(|size| format!(" {size}")).collect();
    let mut contest = Contest::default();
    for (i, (name, _)) in SIDES.iter().enumerate() {
        contest.enter(name, peer::this_bench(&format!("{i}{sizes}"))?)?;
    }
    contest.ask(&steps.to_string(), turns)?;
    contest.print_sides(&["ms a step", "peak, MiB"]);
    Ok(())
}

/// Answers as the side: to a number of steps with their median in milliseconds, and the peak so far.
fn serve(side: &str) -> Result<()> {
    let numbers = side.split(' ').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    let [side, layers, channels, context, batch] = numbers[..] else { anyhow::bail!("expected a side, got {side:?}") };
    let (name, set) = SIDES.get(side).context("expected one of the sides")?;
    let (mut trainer, tokenizer) = trainer(*set, [layers, channels, context, batch])?;
    if *name != "in a run folder" {
        let mut step = || {
            let batch = trainer.next_batch()?;
            trainer.step(&batch)
        };
        return peer::serve(|steps| {
            step()?;
            let times = (0..steps.parse()?).map(|_: u64| timing::ms(&mut step)).collect::<Result<_, _>>()?;
            Ok(vec![timing::median(times), mebibytes("VmHWM")])
        });
    }
    let space = tempfile::tempdir()?;
    let mut run = RunDir::create(&space.path().join("run"))?;
    run.begin(&tokenizer, &trainer, &Default::default())?;
    peer::serve(|steps| {
        // From one event to the next: a step and the writing of its metrics.
        let (mut left, mut times, mut begun) = (steps.parse::<u64>()? + 1, vec![], None);
        train(&mut trainer, Some(&mut run), &mut |event| {
            if let Event::Step(_) = event {
                let before = begun.replace(std::time::Instant::now());
                times.extend(before.map(|before| before.elapsed().as_secs_f64() * 1e3));
                left -= 1;
            }
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(vec![timing::median(times), mebibytes("VmHWM")])
    })
}

/// A trainer with one shard per thread, of a run longer than any turn.
fn trainer(
    set: fn(&mut TrainOptions, &mut ModelConfig),
    [num_layers, embed_dim, context_len, batch]: [usize; 4],
) -> Result<(Trainer, Tokenizer)> {
    let documents = [Document::new("text", TEXT.repeat(2000))];
    let validation = Validation::Fraction(0.1);
    let (tokenizer, corpus) =
        prepare(&documents, &validation, &"char".parse()?, TextOptions::default(), IdsStore::Temporary, &mut |_| {})?;
    let (num_heads, hidden_dim) = ((embed_dim / 32).max(1), 4 * embed_dim);
    let sizes = ModelConfig::gpt2(tokenizer.vocab_size());
    let mut config = ModelConfig { num_layers, num_heads, embed_dim, context_len, hidden_dim, ..sizes };
    let steps = 1_000_000;
    let mut options =
        TrainOptions { steps, eval_every: Some(steps), batch, shards: peer::threads(), ..Default::default() };
    set(&mut options, &mut config);
    Ok((Trainer::new(&config, &options, corpus, &Device::Cpu)?, tokenizer))
}
