//! Arguments, printing and exit codes.

mod automatic;
mod chart;
mod document;
mod eval;
mod example;
mod generate;
mod options;
mod overfit;
mod pace;
mod plan;
mod prepared;
mod presets;
mod progress;
mod resolve;
mod resume;
mod sample;
mod signals;
mod stopwatch;
mod terminal;
mod text_progress;
mod train;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

/// More threads than any machine that this is for has cores; each takes memory.
const MOST_THREADS: u64 = 1024;

/// Trains small causal language models on text files, samples from them and evaluates them.
#[derive(Parser)]
#[command(name = "attn", version, max_term_width = 100)]
struct Cli {
    /// Threads to compute with [default: one a core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_THREADS))]
    threads: Option<u64>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model on text files; without any, on the small corpus of Portuguese sentences that is built in
    #[command(allow_negative_numbers = true)]
    Train(Box<train::TrainArgs>),
    /// Write text with a trained model
    #[command(allow_negative_numbers = true)]
    Generate(generate::GenerateArgs),
    /// Loss, perplexity and bits per byte of a trained model on text files
    Eval(eval::EvalArgs),
    /// The worked example of causal self-attention, step by step
    Example,
}

/// Marks errors that are not the input's fault, which exit with 1 instead of 2.
#[derive(Debug)]
struct Failure(String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// Runs the command line. Exit codes: 0 done, 1 failed on the way, 2 bad input.
pub fn main() -> ExitCode {
    let begun = Instant::now();
    candle_attention::text::hide_caught_panics();
    let cli = Cli::parse();
    // SAFETY: this is the first thing the process does, and no other thread runs yet that could read the environment.
    // candle and rayon read the variables when they start their pools, later.
    unsafe {
        // Our operations divide the work; candle's own pool would only spin beside them.
        std::env::set_var("CANDLE_NUM_THREADS", "1");
        if let Some(threads) = cli.threads {
            std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
        }
    }
    let out: &mut dyn Write = match io::stdout().is_terminal() {
        true => &mut terminal::Output(terminal::Shown::new(io::stdout())),
        false => &mut terminal::Output(io::stdout()),
    };
    let result = start_threads().and_then(|()| match cli.command {
        Command::Train(args) => train::run(*args, begun, out),
        Command::Generate(args) => generate::run(&args, out),
        Command::Eval(args) => eval::run(&args, out),
        Command::Example => example::run(out),
    });
    match result.and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "attn: {}", terminal::one_line(&format!("{error:#}")));
            ExitCode::from(if error.is::<Failure>() { 1 } else { 2 })
        }
    }
}

/// Starts the threads to compute with, which otherwise would be started, or fail, at their first use.
fn start_threads() -> anyhow::Result<()> {
    match rayon::ThreadPoolBuilder::new().build_global() {
        Ok(()) => Ok(()),
        Err(error) => {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Err(Failure(format!("cannot start the threads to compute with: {cause}; --threads N takes fewer")).into())
        }
    }
}

/// Whether whoever reads our output has seen enough, as `head` has after some lines.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A count of things: 1 layer, 2 layers.
fn counted(count: usize, thing: &str) -> String {
    format!("{} {thing}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// A count with thin groups of three digits: 1 234 567.
fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).unwrap_or("")).collect();
    groups.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn counts_are_grouped_by_three_digits() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1 234 567");
        assert_eq!([counted(1, "head"), counted(2_000, "head")], ["1 head", "2 000 heads"]);
    }
}
