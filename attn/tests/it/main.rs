//! All tests of the command in one binary: each link of one costs seconds.

// Tests may fail by a panic; clippy knows only those marked so, not their helpers.
#![allow(clippy::unwrap_used)]

mod adapters;
mod bits_per_byte;
mod book;
mod chat;
mod chosen;
mod convert;
mod determinism;
mod documented;
mod example;
mod fine_tuning;
mod generation;
mod hostile;
mod inspect;
mod inspect_weights;
mod options;
mod pipeline;
mod refusals;
mod resuming;
mod run_folders;
mod settings;
mod support;
mod texts;
mod tokenizers;

#[cfg(unix)]
mod kills;
#[cfg(all(target_os = "linux", feature = "mpi"))]
mod mpirun;
#[cfg(unix)]
mod signals;
#[cfg(unix)]
mod terminals;
