//! The command `attn`: train on a text file, generate, evaluate, and the worked example of causal self-attention.

mod cli;

use std::process::ExitCode;

// Training allocates a tensor for every step of the computation; with the system's allocator each large one is fresh
// memory that the kernel zeroes first, which costs a third of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
