//! Arguments, printing and exit codes.

mod automatic;
mod chart;
mod document;
mod eval;
mod example;
mod generate;
mod merge;
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

/// More than any machine has cores; each thread takes memory.
const MAX_THREADS: u64 = 1024;

/// Trains, samples and evaluates small causal language models
#[derive(Parser)]
#[command(name = "attn", version, max_term_width = 100)]
struct Cli {
    /// Number of threads [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_THREADS))]
    threads: Option<u64>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model on text files, or without any on the built-in corpus of Portuguese sentences
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

/// An error that is not the fault of the input: exit code 1 instead of 2.
#[derive(Debug)]
struct Failure(String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// Runs the command line. Exit codes: 0 if it is done, or stopped by a signal after saving the run; 1 if the run
/// failed; 2 for bad input and for files that cannot be read or written; 130 if a signal stopped it before anything was
/// saved.
pub fn main() -> ExitCode {
    let begun = Instant::now();
    candle_attention::text::hide_caught_panics();
    let cli = Cli::parse();
    // SAFETY: no other thread runs yet that could read the environment. candle and rayon read these variables later,
    // when they start their pools.
    unsafe {
        // Our operations run in parallel themselves; candle's own pool would only take cores from them.
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

/// Starts the worker threads now, so that a failure is reported here and not at their first use.
fn start_threads() -> anyhow::Result<()> {
    match rayon::ThreadPoolBuilder::new().build_global() {
        Ok(()) => Ok(()),
        Err(error) => {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Err(Failure(format!("cannot start worker threads: {cause}; try fewer with --threads N")).into())
        }
    }
}

/// Whether the reader of our output has closed it, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A count with its noun: 1 layer, 2 layers.
fn counted(count: usize, thing: &str) -> String {
    format!("{} {thing}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// A count with its digits in groups of three: 1 234 567.
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
