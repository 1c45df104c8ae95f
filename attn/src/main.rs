//! The command `attn`: trains on text files, generates, evaluates, and shows a worked example of causal self-attention.
//!
//! Everything that prints is in this package. `attn train` goes from the command line ([`options`]) to [`settings`], with a
//! recipe of [`automatic`], and from there to the library's training loop ([`train`]).

mod allocator;
mod automatic;
mod chart;
mod chat;
mod completions;
mod convert;
mod eval;
mod example;
mod generate;
mod held_out;
mod inspect;
mod model_sizes;
mod option_layers;
mod options;
mod out_file;
mod overfit;
mod pages;
mod plan;
mod processes;
mod processor;
mod progress;
mod remarks;
mod sample;
mod sampling;
mod settings;
mod signals;
mod speed;
mod terminal;
mod texts;
mod train;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Arg, Command};

/// A run that has failed: exit code 1 instead of the 2 of bad input.
#[derive(Debug)]
struct RunFailed(String);

impl std::fmt::Display for RunFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RunFailed {}

fn command() -> Command {
    /// More than any machine has cores; each thread takes memory.
    const MAX_THREADS: u64 = 1024;
    let threads =
        Arg::new("threads").long("threads").global(true).value_name("N").value_parser(options::count(MAX_THREADS));
    Command::new("attn")
        .about("Trains, samples, evaluates and looks into small causal language models")
        .version(env!("CARGO_PKG_VERSION"))
        .max_term_width(100)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(threads.help("Number of threads [default: one per core]"))
        .subcommands([
            train::command(),
            generate::command(),
            eval::command(),
            inspect::command(),
            convert::command(),
            example::command(),
            completions::command(),
        ])
}

/// Exit codes: 0 if it is done; 1 if a run failed; 2 for bad input and for files that cannot be read or written; 129, 130 or
/// 143 if SIGHUP, SIGINT or SIGTERM ended it.
fn main() -> ExitCode {
    let started = Instant::now();
    allocator::keep_freed_memory();
    candle_attention::text::hide_caught_panics();
    let matches = command().args_override_self(true).try_get_matches().unwrap_or_else(|error| {
        processes::wait_for_turn();
        error.exit()
    });
    // SAFETY: no other thread runs yet that could read the environment. candle and rayon read these variables later,
    // when they start their pools.
    unsafe {
        // Our operations run in parallel themselves; candle's own pool would only take cores from them.
        std::env::set_var("CANDLE_NUM_THREADS", "1");
        if let Some(threads) = matches.get_one::<u64>("threads") {
            std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
        }
    }
    let out: &mut dyn Write = &mut terminal::Output { out: io::stdout(), is_terminal: io::stdout().is_terminal() };
    let result = start_threads().and_then(|()| match matches.subcommand() {
        Some(("train", matches)) => train::run(matches, started, out),
        Some(("generate", matches)) => generate::run(matches, out).map(|()| ExitCode::SUCCESS),
        Some(("eval", matches)) => eval::run(matches, out).map(|()| ExitCode::SUCCESS),
        Some(("inspect", matches)) => inspect::run(matches, out).map(|()| ExitCode::SUCCESS),
        Some(("completions", matches)) => completions::run(matches, command(), out).map(|()| ExitCode::SUCCESS),
        Some(("convert", matches)) => convert::run(matches).map(|()| ExitCode::SUCCESS),
        Some(("example", matches)) => example::run(matches, out).map(|()| ExitCode::SUCCESS),
        // clap asks for a subcommand.
        _ => Ok(ExitCode::SUCCESS),
    });
    let flushed = result.and_then(|code| match out.flush() {
        // Of a run that was interrupted, the terminal may be gone.
        Err(error) if code == ExitCode::SUCCESS => Err(error.into()),
        _ => Ok(code),
    });
    match flushed {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            signals::wait_for_end();
            terminal::note(&format!("attn: {}", terminal::one_line(&message(&error))));
            exit_code(&error).into()
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<RunFailed>() { 1 } else { 2 }
}

/// The causes of an error, with options as they are typed.
fn message(error: &anyhow::Error) -> String {
    let causes = error.chain().map(|cause| match cause.downcast_ref() {
        Some(candle_attention::Error::Option { name, what }) => format!("--{name}: {what}"),
        _ => cause.to_string(),
    });
    causes.collect::<Vec<_>>().join(": ")
}

/// Starts rayon's threads now, whose number is that of the threads of all operations, so that a failure is reported here
/// and not at their first use.
fn start_threads() -> anyhow::Result<()> {
    match rayon::ThreadPoolBuilder::new().build_global() {
        Ok(()) => Ok(()),
        Err(error) => {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Err(RunFailed(format!("cannot start worker threads: {cause}; try fewer with --threads N")).into())
        }
    }
}

/// Whether the reader of our output has closed it, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}
