//! Differentiable functions on tensors: what the layers of [`crate::nn`] are made of.
//!
//! Every function here has a gradient with respect to every floating-point tensor it is given, on every device (the
//! steps of the optimizers, [`adamw`] and [`muon`], need none). Each states its formula, shapes and errors.
//!
//! In `f32` on the CPU most are fused: one pass forward and one backward, split over rayon's threads, or on one thread
//! inside [`sequential`]. Vector instructions are chosen when the program runs; the environment variable
//! `CANDLE_ATTENTION_SIMD` (`scalar`, `avx2`, `avx512`) forces a choice. Other dtypes and devices take the same functions
//! composed of candle's own operations, which are also what the fused ones are tested against. Results are the same to
//! the last bit for any number of threads.

mod activation;
mod adamw;
pub mod attention;
mod block_product;
mod cautious;
mod cross_entropy;
mod dropout;
mod elementwise;
mod embedding;
mod linear;
mod matmul;
#[cfg(feature = "lm")]
mod moving_average;
mod muon;
mod norm;
mod parallel;
mod random;
#[cfg_attr(not(feature = "lm"), allow(dead_code, reason = "only the trainer records"))]
pub(crate) mod record;
mod rotary;
mod simd;
mod storage;
#[cfg_attr(not(feature = "lm"), allow(dead_code, reason = "only the trainer adds"))]
mod sums;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use activation::{geglu_erf, geglu_tanh, gelu_erf, gelu_tanh, reglu, relu_squared, silu, swiglu};
pub use adamw::{AdamWStep, Moments, adamw};
pub use attention::{AttentionOptions, Mask, Scale, attention, attention_with_weights, self_attention};
pub use cautious::Cautious;
pub use cross_entropy::{CrossEntropyOptions, cross_entropy, linear_cross_entropy};
pub use dropout::dropout;
pub use embedding::embedding;
pub use linear::linear;
pub use muon::{MuonStep, muon};
pub use norm::{layer_norm, rms_norm};
pub use parallel::sequential;
pub use random::{DropoutOptions, RandomKey};
pub use rotary::{RotaryPairs, rotary, rotary_tables};
#[cfg(feature = "lm")]
pub(crate) use {
    moving_average::moving_average,
    parallel::{for_each, for_each_in_order, map},
    sums::{add, norm},
};
