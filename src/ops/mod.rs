//! Differentiable functions on tensors: the building blocks of the layers in [`crate::nn`].
//!
//! Every function here has gradients for all its floating-point inputs, on every device. Each documents its formula,
//! shapes and errors.
//!
//! In `f32` on the CPU most are fused: one pass forward and one backward, split over threads, or confined to one inside
//! [`sequential`]. There are as many threads as in rayon's current pool (`RAYON_NUM_THREADS` sets that), but of their own:
//! after a call they spin for a fifth of a millisecond before they sleep. Vector instructions are chosen at run time; the
//! environment variable `CANDLE_ATTENTION_SIMD` (`scalar`, `avx2`, `avx512`) forces a choice. For other dtypes and devices,
//! the same functions are composed of candle's own operations, which are also the reference in the tests of the fused
//! ones. Results are bit-identical for any number of threads.
//!
//! The gradients of fused functions have no graph. Where candle's environment variable `CANDLE_GRAD_DO_NOT_DETACH` asks for
//! gradients of gradients, everything is composed. In half precision, sums over rows are taken in `f32` and rounded once.
//!
//! ```
//! use candle_attention::ops::{self, AttentionOptions};
//! use candle_core::{DType, Device, Tensor};
//!
//! let (b, t, h, d) = (2, 7, 3, 8);
//! let xs = Tensor::ones((b, t, h * d), DType::F32, &Device::Cpu)?;
//! let w_qkv = Tensor::ones((3 * h * d, h * d), DType::F32, &Device::Cpu)?;
//! let qkv = ops::linear(&xs, &w_qkv, None)?; // (B, T, 3 * H * D)
//! let ys = ops::self_attention(&qkv, h, &AttentionOptions::default())?; // (B, T, H * D)
//! assert_eq!(ys.dims(), [b, t, h * d]);
//! # Ok::<(), candle_core::Error>(())
//! ```

pub(crate) mod activation;
pub mod attention;
mod cross_entropy;
mod dropout;
mod embedding;
mod linear;
mod norm;
#[cfg_attr(not(feature = "lm"), allow(dead_code, reason = "only the trainer records"))]
pub(crate) mod record;
mod rotary;
#[cfg(test)]
mod tests;
mod with_bias;

pub use crate::cpu::parallel::sequential;
pub use crate::cpu::random::{DropoutOptions, RandomKey};
pub use activation::{
    geglu_erf, geglu_tanh, gelu_erf, gelu_tanh, quick_geglu, quick_gelu, reglu, relu, relu_squared, silu, swiglu,
};
pub use attention::{
    AttentionOptions, Band, KeyPadding, Mask, QkvLayout, Scale, attention, attention_with_lse, attention_with_weights,
    self_attention,
};
pub use cross_entropy::{CrossEntropyOptions, cross_entropy, linear_cross_entropy};
pub use dropout::dropout;
pub use embedding::embedding;
pub use linear::linear;
#[cfg(feature = "lm")]
pub(crate) use norm::norm_rows;
pub use norm::{layer_norm, rms_norm};
#[cfg(feature = "lm")]
pub(crate) use rotary::rotary_rows;
pub use rotary::{RotaryPairs, rotary, rotary_tables};
pub(crate) use rotary::{frequencies as rotary_frequencies, tables as tables_of_frequencies};
