//! An hour of training a model of 17 million weights on a large text: speed, memory and loss, from its first tenth to its last.
//!
//!     python3 benches/texts.py TEXTS && cargo bench --bench hour -- TEXTS/large.txt [MINUTES]
//!
//! `attn train` with a BPE of 4,096 tokens, 8 layers of 384 channels, windows of 256 tokens, and the automatic choice for the
//! rest. A row is a tenth of the steps, each of which is in the metrics. Tokens a second count all that happens in it,
//! validations and checkpoints too; "steps alone" leaves out each step that follows a validation, with that. The arithmetic
//! limit is that of `benches/support/flops.rs`, at the rate that `gemm` reaches on large matrices in the mean. This is measured
//! every twenty seconds on as many threads, while the run stands still, as the speed of a machine may drift within an hour;
//! tokens a second are without the time of these measurements. A spike would be a mean of 10 losses, each that of one batch,
//! far above the mean of the 50 before them. Memory is the most that was resident, once a second.

use std::ops::Range;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use candle_attention::generate::Pipeline;
use serde_json::Value;
use sysinfo::{Pid, Process, ProcessesToUpdate, Signal, System};
use toml::Table;

#[path = "../src/allocator.rs"]
mod allocator;
#[path = "../../benches/support/args.rs"]
mod args;
#[path = "../../benches/support/arithmetic.rs"]
mod arithmetic;
#[path = "../../benches/support/flops.rs"]
mod flops;
#[path = "../../benches/support/timing.rs"]
#[allow(dead_code)]
mod timing;
#[path = "support/training.rs"]
#[allow(dead_code)]
mod training;

const MINUTES: &str = "60";
const MODEL: [&str; 10] =
    ["--tokenizer", "bpe:4096", "--layers", "8", "--heads", "6", "--head-dim", "64", "--context", "256"];
const ROWS: usize = 10;
/// Losses that are taken together, and those before them with which they are compared.
const TOGETHER: usize = 10;
const BEFORE: usize = 50;
/// One sample of so many, which are a second apart, has the arithmetic limit.
const SAMPLES_PER_LIMIT: usize = 20;

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    let (_, args) = args::read();
    let space = tempfile::tempdir()?;
    let run = space.path().join("run");
    let Some(text) = args.first() else {
        let text = training::rehearsal(space.path())?;
        return report(
            &text,
            &["--steps", "80", "--batch", "2", "--context", "16", "--dim", "32", "--layers", "1"],
            &run,
        );
    };
    let minutes = args.get(1).map_or(MINUTES, |minutes| minutes);
    rayon::ThreadPoolBuilder::new().num_threads(training::THREADS.parse()?).build_global()?;
    report(Path::new(text), &[&MODEL[..], &["--minutes", minutes]].concat(), &run)
}

/// Trains with these options, and prints the table.
fn report(text: &Path, options: &[&str], run: &Path) -> Result<()> {
    let samples = train(text, options, run)?;
    let settings: Table = std::fs::read_to_string(run.join("training/settings.toml"))?.parse()?;
    let batch = settings["batch"].as_integer().context("expected a batch")? as usize;
    let (config, _) = Pipeline::open_config(run)?;
    let metrics = std::fs::read_to_string(run.join("training/metrics.jsonl"))?;
    let metrics = metrics.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let steps = steps(&metrics, &samples);
    let of_step = OfStep { tokens: (batch * config.context_len) as f64, flops: flops::flops(&config, batch) };

    println!("{} parameters, {batch} sequences of {} tokens", config.parameter_count(), config.context_len);
    println!(
        "| minute | step | mean loss | {TOGETHER} above the {BEFORE} before, % | tokens/s | of the limit | steps alone | MiB |"
    );
    println!("|{}", "---|".repeat(8));
    for row in 0..ROWS {
        let [from, to] = [row, row + 1].map(|row| steps.len() * row / ROWS);
        print_row(&steps, from..to, &samples, &of_step);
    }
    let validations: Vec<String> =
        validations(&metrics).map(|line| format!("{:.4}", number(line, "validation_bits_per_byte"))).collect();
    println!("\nbits per byte of the validation part: {}", validations.join(", "));
    Ok(())
}

/// What all steps have in common.
struct OfStep {
    tokens: f64,
    flops: f64,
}

/// A step of a run.
struct Step {
    number: f64,
    loss: f64,
    /// When the step before ended, and this one, in seconds since the run began.
    begin: f64,
    end: f64,
    /// How long it took, without the time in which the run stood still.
    seconds: f64,
    /// Whether a validation, and what comes with it, is part of that.
    follows_validation: bool,
}

fn number(line: &Value, name: &str) -> f64 {
    line[name].as_f64().unwrap_or(f64::NAN)
}

fn validations(metrics: &[Value]) -> impl Iterator<Item = &Value> {
    metrics.iter().filter(|line| line["validation_bits_per_byte"].is_number())
}

/// The steps of which a run's metrics say when they began: all but the first.
fn steps(metrics: &[Value], samples: &[Sample]) -> Vec<Step> {
    let lines: Vec<&Value> = metrics.iter().filter(|line| line["loss"].is_number()).collect();
    let validated: Vec<f64> = validations(metrics).map(|line| number(line, "seconds")).collect();
    let step = |pair: &[&Value]| {
        let [begin, end] = [0, 1].map(|i| number(pair[i], "seconds"));
        let paused: f64 = between(samples, begin, end).map(|sample| sample.paused).sum();
        Step {
            number: number(pair[1], "step"),
            loss: number(pair[1], "loss"),
            begin,
            end,
            seconds: end - begin - paused,
            follows_validation: validated.iter().any(|at| (begin..end).contains(at)),
        }
    };
    lines.windows(2).map(step).collect()
}

/// The samples of a time.
fn between(samples: &[Sample], first: f64, last: f64) -> impl Iterator<Item = &Sample> {
    samples.iter().filter(move |sample| (first..last).contains(&sample.at))
}

fn mean(all: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = all.fold((0.0, 0.0), |(sum, count), one| (sum + one, count + 1.0));
    sum / count
}

fn print_row(steps: &[Step], row: Range<usize>, samples: &[Sample], of_step: &OfStep) {
    let (here, last) = (&steps[row.clone()], &steps[row.end - 1]);
    let losses = |range: Range<usize>| mean(steps[range].iter().map(|step| step.loss));
    let excess = |end: usize| losses(end - TOGETHER..end) / losses(end - TOGETHER - BEFORE..end - TOGETHER) - 1.0;
    let ends = row.start + 1..=row.end;
    let highest = ends.filter(|&end| end >= TOGETHER + BEFORE).map(excess).fold(f64::NAN, f64::max);
    let samples_here = || between(samples, here[0].begin, last.end);
    let mut limit = mean(samples_here().filter_map(|sample| sample.flops));
    if limit.is_nan() {
        limit = mean(samples.iter().filter_map(|sample| sample.flops));
    }
    let seconds = mean(here.iter().map(|step| step.seconds));
    let seconds_alone = mean(here.iter().filter(|step| !step.follows_validation).map(|step| step.seconds));
    println!(
        "| {:.1} | {} | {:.3} | {:.1} | {:.0} | {:.2} | {:.2} | {:.0} |",
        last.end / 60.0,
        last.number,
        losses(row),
        100.0 * highest,
        of_step.tokens / seconds,
        of_step.flops / seconds / limit,
        of_step.flops / seconds_alone / limit,
        samples_here().map(|sample| sample.mib).fold(f64::NAN, f64::max)
    );
}

/// What is measured of a process from outside.
struct Sample {
    /// Seconds since it began.
    at: f64,
    /// Its resident memory.
    mib: f64,
    /// The floating-point operations a second that the machine can make now, if that was measured.
    flops: Option<f64>,
    /// Seconds that the process stood still for it.
    paused: f64,
}

/// Trains in a process of its own.
fn train(text: &Path, options: &[&str], run: &Path) -> Result<Vec<Sample>> {
    let mut command = training::command("auto");
    command.args(options).arg("--out").arg(run).arg(text).stdout(Stdio::null()).stderr(Stdio::null());
    // The run begins by timing the machine: nothing stops it then.
    let mut samples = vec![Sample { at: 0.0, mib: 0.0, flops: Some(limit()), paused: 0.0 }];
    let (begun, mut child) = (Instant::now(), command.spawn()?);
    let (mut system, id) = (System::new()?, Pid::from_u32(child.id()));
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "attn train: {status}");
            return Ok(samples);
        }
        system.refresh_processes(ProcessesToUpdate::Some(&[id]), true);
        let (at, process) = (begun.elapsed().as_secs_f64(), system.process(id));
        let is_due = samples.len() % SAMPLES_PER_LIMIT == 0;
        let flops = process.filter(|_| is_due).map(limit_beside).transpose()?;
        let mib = process.map_or(0, |process| process.memory()) as f64 / f64::from(1 << 20);
        let paused = flops.map_or(0.0, |_| begun.elapsed().as_secs_f64() - at);
        samples.push(Sample { at, mib, flops, paused });
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// The floating-point operations a second that the machine can make now.
fn limit() -> f64 {
    1e12 / arithmetic::mean_limit_ms(1e9)
}

/// The same while a process stands still.
fn limit_beside(process: &Process) -> Result<f64> {
    let send = |signal| process.kill_with(signal).context("expected a system on which processes can be stopped");
    send(Signal::Stop)?;
    let flops = limit();
    send(Signal::Continue)?;
    Ok(flops)
}
