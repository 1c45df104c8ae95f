//! An hour of training a model of 17 million weights on a large text: speed, memory and loss, from its first tenth to its last.
//!
//!     python3 benches/texts.py TEXTS && cargo bench --bench hour -- TEXTS/large.txt [MINUTES]
//!
//! `attn train` with a BPE of 4,096 tokens, 8 layers of 384 channels, and the automatic choice for the rest. A row is a tenth of
//! the steps, each of which is in the metrics. Tokens a second count all that happens in it, validations and checkpoints too; "steps
//! alone" leaves out each step that follows a validation, with that. The arithmetic limit is that of `benches/support/flops.rs`, at the
//! rate that `gemm` reaches on large matrices in the mean. This is measured every twenty seconds on as many threads, while the run
//! stands still, as the speed of a machine may drift within an hour; tokens a second are without the time of these measurements. A spike
//! would be a mean of 10 losses, each that of one batch, far above the mean of the 50 before them. Memory is the most that was resident,
//! once a second.

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
const MODEL: [&str; 8] = ["--tokenizer", "bpe:4096", "--layers", "8", "--heads", "6", "--head-dim", "64"];
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
    let tokens = (batch * config.context_len) as f64;
    let flops_per_token = flops::flops(&config, batch) / tokens;
    let metrics = std::fs::read_to_string(run.join("training/metrics.jsonl"))?;
    let all = metrics.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let steps: Vec<&Value> = all.iter().filter(|line| line["loss"].is_number()).collect();
    let number = |line: &Value, name| line[name].as_f64().unwrap_or(f64::NAN);
    let losses: Vec<f64> = steps.iter().map(|line| number(line, "loss")).collect();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;

    let validations: Vec<&Value> = all.iter().filter(|line| line["validation_bits_per_byte"].is_number()).collect();
    let paused = |first: f64, last: f64| -> f64 {
        samples.iter().filter(|sample| (first..last).contains(&sample.at)).map(|sample| sample.paused).sum()
    };
    // A step's time lies between the ends of the one before and of its own.
    let times: Vec<Time> = steps
        .windows(2)
        .map(|pair| {
            let [begin, end] = [0, 1].map(|i| number(pair[i], "seconds"));
            let follows_validation = validations.iter().any(|line| (begin..end).contains(&number(line, "seconds")));
            Time { seconds: end - begin - paused(begin, end), follows_validation }
        })
        .collect();

    println!("{} parameters, {batch} sequences of {} tokens", config.parameter_count(), config.context_len);
    println!(
        "| minute | step | mean loss | {TOGETHER} above the {BEFORE} before, % | tokens/s | of the limit | steps alone | MiB |"
    );
    println!("|{}", "---|".repeat(8));
    for row in 1..=ROWS {
        let at = |row: usize| (steps.len() - 1) * row / ROWS;
        let (from, to) = (at(row - 1), at(row));
        let [first, last] = [from, to].map(|i| number(steps[i], "seconds"));
        let excess = |i: usize| {
            mean(&losses[i + 1 - TOGETHER..=i]) / mean(&losses[i + 1 - TOGETHER - BEFORE..=i - TOGETHER]) - 1.0
        };
        let highest = (from + 1..=to).filter(|&i| i >= TOGETHER + BEFORE).map(excess).fold(f64::NAN, f64::max);
        let here = || samples.iter().filter(|sample| (first..=last).contains(&sample.at));
        let mut limits: Vec<f64> = here().filter_map(|sample| sample.flops).collect();
        if limits.is_empty() {
            limits = samples.iter().filter_map(|sample| sample.flops).collect();
        }
        let limit = mean(&limits) / flops_per_token;
        let rate = |alone: bool| {
            let counted = times[from..to].iter().filter(|time| !alone || !time.follows_validation);
            tokens / mean(&counted.map(|time| time.seconds).collect::<Vec<_>>())
        };
        println!(
            "| {:.1} | {} | {:.3} | {:.1} | {:.0} | {:.2} | {:.2} | {:.0} |",
            last / 60.0,
            number(steps[to], "step"),
            mean(&losses[from + 1..=to]),
            100.0 * highest,
            rate(false),
            rate(false) / limit,
            rate(true) / limit,
            here().map(|sample| sample.mib).fold(f64::NAN, f64::max)
        );
    }
    let validations: Vec<String> =
        validations.iter().map(|line| format!("{:.4}", number(line, "validation_bits_per_byte"))).collect();
    println!("\nbits per byte of the validation part: {}", validations.join(", "));
    Ok(())
}

/// How long a step took.
struct Time {
    seconds: f64,
    /// Whether a validation, and what comes with it, is part of that.
    follows_validation: bool,
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
