#![doc = include_str!("../README.md")]

#[cfg(feature = "lm")]
mod errors;
#[cfg(feature = "lm")]
pub mod evaluate;
#[cfg(feature = "lm")]
mod files;
#[cfg(feature = "lm")]
pub mod generate;
#[cfg(feature = "lm")]
pub mod input;
pub mod memory;
#[cfg(feature = "lm")]
pub mod metrics;
#[cfg(feature = "lm")]
pub mod model;
pub mod nn;
pub mod ops;
#[cfg(feature = "lm")]
pub mod run;
#[cfg(feature = "lm")]
pub mod text;
#[cfg(feature = "lm")]
pub mod train;
