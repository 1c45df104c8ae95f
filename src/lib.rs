//! Trainable attention for candle, and a trainer from a text file to a small language model.

#[cfg(feature = "lm")]
pub mod text;
