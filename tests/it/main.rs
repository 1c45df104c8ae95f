//! All integration tests in one binary: each link of one costs seconds.

// Tests may fail by a panic; clippy knows only those marked so, not their helpers.
#![allow(clippy::unwrap_used)]

mod attention_cache;
mod chapter;
mod cross_entropy;
mod drop_in;
mod gradient_traps;
mod layer;
mod mappings;
mod multi_head;
mod multi_head_contract;
#[cfg(any(feature = "cuda", feature = "metal"))]
mod on_gpu;
mod ops;
mod ragged_decoding;
mod support;

#[cfg(feature = "lm")]
mod agreement;
#[cfg(feature = "lm")]
mod bits_per_byte;
#[cfg(feature = "lm")]
mod charts;
#[cfg(feature = "lm")]
mod chat;
#[cfg(feature = "lm")]
mod config_variants;
#[cfg(feature = "lm")]
mod corpus;
#[cfg(feature = "lm")]
mod decoding;
#[cfg(feature = "lm")]
mod divergence;
#[cfg(feature = "lm")]
mod documents;
#[cfg(feature = "lm")]
mod dropout;
#[cfg(feature = "lm")]
mod end_of_text;
#[cfg(feature = "lm")]
mod exact_resume;
#[cfg(feature = "lm")]
mod foreign_folders;
#[cfg(feature = "lm")]
mod gguf;
#[cfg(feature = "lm")]
mod hostile;
#[cfg(feature = "lm")]
mod inspect;
#[cfg(feature = "lm")]
mod llama_and_qwen3;
#[cfg(feature = "lm")]
mod lora;
#[cfg(feature = "lm")]
mod model;
#[cfg(feature = "lm")]
mod optimizers;
#[cfg(feature = "lm")]
mod recipes;
#[cfg(feature = "lm")]
mod run_dirs;
#[cfg(feature = "lm")]
mod samples;
#[cfg(feature = "lm")]
mod sampling;
#[cfg(all(feature = "lm", unix))]
mod strange_folders;
#[cfg(feature = "lm")]
mod tokenizers;
#[cfg(feature = "lm")]
mod torch;
#[cfg(feature = "lm")]
mod training;
#[cfg(feature = "lm")]
mod weight_report;
