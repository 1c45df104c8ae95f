//! The command `attn`: train on a text file, generate, evaluate, and the worked example of causal self-attention.

mod allocator;
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    cli::main()
}
