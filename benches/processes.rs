//! Milliseconds of a training step on two processes of one thread each, compared with one process of one thread and of two;
//! bytes that a step moves; and what a model of the network makes of this on more machines.
//!
//!     cargo bench -p candle-attention --features lm,mpi --bench processes
//!     mpirun ... target/release/deps/processes-* step B 5 2
//!     cargo bench -p candle-attention --features lm,mpi --bench processes -- model
//!
//! Every side cuts the batch into two shards. In each round every side runs once, in processes of its own, that end before the next
//! begins; a figure is the median of the rounds, a ratio that of the ratios within a round. `step` is one side, for any number of
//! processes: it prints the median of so many steps of so many shards, and the megabytes that the process that sends most sends in one.
//! A table of these follows, for A with eight shards, beside 2 (N - 1) / N times the size of the weights.
//!
//! The model: with W weights, N processes, R operations per second and process, B bytes per second and L seconds of latency, a step of K
//! tokens takes
//!
//! ```text
//! 6 W K / (N R)  +  2 (N - 1) / N  4 W / B  +  (2 E + 3) (N - 1) L
//! ```
//!
//! for the arithmetic, for the slices of gradients and of weights, and for the latency of all messages, as if each other process were
//! told one after the other: E of slices of gradients and E of weights, and three short ones, of norms and of what to do next.
//! E is W / 2^20, or W / (2^16 N) if that is less: a message is 256 kB or more, unless a slice is smaller. Efficiency is the first
//! term's share.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use candle_attention::processes::{Mpi, Processes, gather};
use candle_attention::train::Precision;

#[path = "../attn/src/allocator.rs"]
mod allocator;

mod support {
    pub mod args;
    pub mod steps;
    pub mod timing;
}
use support::steps::{BABY, CPU, Row, SMOL, TINY, config, median_ms, trainer};
use support::{args, timing::median};

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    let (is_bench, args) = args::read();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["step", name, steps, shards] => step(&row(name)?, steps, shards.parse()?),
        ["model"] => {
            print_model();
            Ok(())
        }
        _ if is_bench => {
            [CPU, BABY, two_of(SMOL)].iter().try_for_each(compare)?;
            print_bytes()
        }
        _ => {
            print_model();
            compare(&TINY)
        }
    }
}

/// With a sequence for each process.
fn two_of(row: Row) -> Row {
    let [layers, heads, channels, context, _] = row.sizes;
    Row { sizes: [layers, heads, channels, context, 2], ..row }
}

fn row(name: &str) -> Result<Row> {
    let rows = [CPU, BABY, two_of(SMOL), Row { name: "tiny: ", ..TINY }];
    let found = rows.into_iter().find(|row| row.name.trim_end_matches(": ") == name);
    found.with_context(|| format!("expected A, B, C or tiny, got {name}"))
}

/// The processes of MPI, with a count of the bytes that go to others.
struct Counted {
    mpi: Mpi,
    sent: AtomicUsize,
}

impl Processes for Counted {
    fn rank(&self) -> usize {
        self.mpi.rank()
    }

    fn count(&self) -> usize {
        self.mpi.count()
    }

    fn abort(&self, code: u8) -> ! {
        self.mpi.abort(code)
    }

    fn all_to_all(
        &self,
        send: &[u8],
        sent: &[usize],
        receive: &mut [u8],
        received: &[usize],
    ) -> candle_core::Result<()> {
        self.sent.fetch_add(send.len(), Ordering::Relaxed);
        self.mpi.all_to_all(send, sent, receive, received)
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8], received: &[usize]) -> candle_core::Result<()> {
        self.sent.fetch_add(own.len() * (self.count() - 1), Ordering::Relaxed);
        self.mpi.all_gather(own, all, received)
    }
}

/// One side: prints the median of so many steps in milliseconds, and the megabytes that the process that sends most sends in one.
fn step(row: &Row, steps: &str, shards: usize) -> Result<()> {
    let processes = Arc::new(Counted { mpi: Mpi::start()?, sent: AtomicUsize::new(0) });
    let sizes = row.sizes;
    let (config, batch) = config(row.architecture, &sizes)?;
    let mut trainer = trainer(&config, batch, shards, Precision::F32)?;
    if processes.count() > 1 {
        trainer.divide(processes.clone())?;
    }
    let before = processes.sent.load(Ordering::Relaxed);
    let ms = median_ms(steps, || {
        let batch = trainer.next_batch()?;
        Ok(trainer.step(&batch)?)
    })?;
    let all_steps = 1 + steps.parse::<usize>()?;
    let sent = (processes.sent.load(Ordering::Relaxed) - before) as f64 / all_steps as f64;
    let all = gather(&processes.mpi, &sent.to_le_bytes())?;
    let sent = all.iter().flat_map(|sent| sent.as_chunks().0.iter().map(|&sent| f64::from_le_bytes(sent)));
    if processes.rank() == 0 {
        println!("{} {}", ms[0], sent.fold(0.0, f64::max) / 1e6);
    }
    Ok(())
}

/// Prints a row of the comparison.
fn compare(row: &Row) -> Result<()> {
    let name = match row.name {
        "" => "tiny",
        name => name.trim_end_matches(": "),
    };
    let sides = [(1, 1), (1, 2), (2, 1)];
    let run = |&(processes, threads): &(usize, usize)| run(name, row.steps, 2, processes, threads);
    let rounds = (0..row.turns).map(|_| sides.iter().map(run).collect::<Result<Vec<_>>>());
    let rounds = rounds.collect::<Result<Vec<_>>>()?;
    let of = |number: &dyn Fn(&Vec<[f64; 2]>) -> f64| median(rounds.iter().map(number).collect());
    if name == "A" || name == "tiny" {
        println!("| ms a step | one thread | two threads | times as fast | two processes | times as fast | MB sent |");
        println!("|{}", "---|".repeat(7));
    }
    println!(
        "| {}{:?} | {:.1} | {:.1} | {:.2} | {:.1} | {:.2} | {:.2} |",
        row.name,
        row.sizes,
        of(&|round| round[0][0]),
        of(&|round| round[1][0]),
        of(&|round| round[0][0] / round[1][0]),
        of(&|round| round[2][0]),
        of(&|round| round[0][0] / round[2][0]),
        of(&|round| round[2][1])
    );
    Ok(())
}

/// What `step` prints, on so many processes of so many threads.
fn run(name: &str, steps: usize, shards: usize, processes: usize, threads: usize) -> Result<[f64; 2]> {
    let mut command = Command::new("mpirun");
    // Also for root, and with fewer cores than processes.
    for name in ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"] {
        command.env(name, "1");
    }
    command.args(["-np", &processes.to_string()]).arg(std::env::current_exe()?);
    command.args(["step", name, &steps.to_string(), &shards.to_string()]);
    command.env("RAYON_NUM_THREADS", threads.to_string()).env("CANDLE_NUM_THREADS", "1");
    // By default a process is bound to one core.
    command.env("OMPI_MCA_hwloc_base_binding_policy", if processes == 2 { "core" } else { "none" });
    let output = command.output().context("mpirun")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout)?;
    let numbers = printed.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    let &[ms, sent] = &numbers[..] else { bail!("expected two numbers, got {printed:?}") };
    Ok([ms, sent])
}

/// What a process sends in a step, for numbers of processes that divide the shards and others.
fn print_bytes() -> Result<()> {
    let (config, _) = config(CPU.architecture, &CPU.sizes)?;
    let weights = 4e-6 * config.parameter_count() as f64;
    println!("\n| processes, of 8 shards | MB sent | least | ratio |\n|{}", "---|".repeat(4));
    for processes in 2..=8 {
        let [_, sent] = run("A", 1, 8, processes, 1)?;
        let least = 2.0 * (processes - 1) as f64 / processes as f64 * weights;
        println!("| {processes} | {sent:.2} | {least:.2} | {:.2} |", sent / least);
    }
    Ok(())
}

/// Efficiency on machines of 16 cores, and the batch that has four fifths of it.
fn print_model() {
    /// Operations per second of a machine: those of a step of B on one core here, times 16 and what threads lose.
    const RATE: f64 = 16.0 * 0.8 * 230e9;
    /// Seconds from one process to another and back.
    const LATENCY: f64 = 30e-6;
    println!("| weights | tokens a step | Gbit/s | N = 2 | 4 | 16 | 64 | 256 | tokens for 0.8 of 256 |");
    println!("|{}", "---|".repeat(9));
    for (weights, tokens) in [(1e6, 4e3), (135e6, 5e5), (1e9, 1e6)] {
        for gigabits in [10.0, 100.0] {
            let arithmetic = |tokens: f64, n: f64| 6.0 * weights * tokens / (n * RATE);
            let messages = |n: f64| 2.0 * (weights / f64::powi(2.0, 20).max(n * f64::powi(2.0, 16))).ceil() + 3.0;
            let slices = |n: f64| 2.0 * (n - 1.0) / n * 4.0 * weights / (gigabits * 1e9 / 8.0);
            let exchange = |n: f64| slices(n) + messages(n) * (n - 1.0) * LATENCY;
            let efficiency = |n: f64| arithmetic(tokens, n) / (arithmetic(tokens, n) + exchange(n));
            let cells: String =
                [2.0, 4.0, 16.0, 64.0, 256.0].iter().map(|&n| format!(" {:.2} |", efficiency(n))).collect();
            // 0.8 where the arithmetic takes four times as long as the exchange.
            let enough = 4.0 * exchange(256.0) * 256.0 * RATE / (6.0 * weights);
            println!("| {weights:.0e} | {tokens:.0e} | {gigabits} |{cells} {enough:.1e} |");
        }
    }
}
