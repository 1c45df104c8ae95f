#![doc = include_str!("../README.md")]

mod cpu;
pub mod nn;
pub mod ops;
pub mod optim;

#[cfg(feature = "lm")]
pub mod generate;
#[cfg(feature = "lm")]
mod host;
#[cfg(feature = "lm")]
pub mod model;
#[cfg(feature = "lm")]
pub mod text;
#[cfg(feature = "lm")]
pub mod train;

pub use candle_core;
#[cfg(feature = "lm")]
pub use host::{Error, Memory, Result};

/// The built-in corpus of Portuguese sentences, made by `examples/make_corpus`: a text to train on and one to validate on.
#[cfg(feature = "lm")]
pub const BUILT_IN_CORPUS: [&str; 2] = [include_str!("../data/train.txt"), include_str!("../data/validation.txt")];
