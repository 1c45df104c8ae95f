//! Differentiable functions on tensors: what the layers of [`crate::nn`] are made of.
//!
//! Every function here has a gradient with respect to every floating-point tensor it is given, on every
//! device. Each module states the formula, the shapes and the errors of its function.

mod adamw;
pub mod attention;
mod cross_entropy;
mod gelu;
mod linear;
mod matmul;
mod norm;
mod parallel;
mod rotary;
mod simd;
mod storage;
#[cfg(feature = "lm")]
mod sums;
#[cfg(test)]
mod testing;

pub use adamw::{AdamWStep, Moments, adamw};
pub use attention::{AttentionOptions, Mask, Scale, attention, attention_with_weights, self_attention};
pub use cross_entropy::{cross_entropy, linear_cross_entropy};
pub use gelu::{gelu_erf, gelu_tanh};
pub use linear::linear;
pub use norm::{layer_norm, rms_norm};
pub use parallel::sequential;
pub use rotary::{RotaryPairs, rotary, rotary_tables};
#[cfg(feature = "lm")]
pub(crate) use {
    parallel::map,
    sums::{add, norm},
};
