//! The command `attn`: trains on text files, generates, evaluates, and shows a worked example of causal self-attention.

mod allocator;
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    cli::main()
}
