//! Trainable attention for candle, and a trainer from a text file to a small language model.

#[cfg(feature = "lm")]
mod errors;
#[cfg(feature = "lm")]
pub mod evaluate;
#[cfg(feature = "lm")]
mod files;
#[cfg(feature = "lm")]
pub mod generate;
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
