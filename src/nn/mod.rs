//! Layers: candle [`Module`](candle_nn::Module)s whose gradients reach every parameter and the input.
//!
//! `Linear`, `LayerNorm`, `RmsNorm`, `Embedding` and `Dropout` are drop-in replacements for candle-nn's: same names,
//! arguments, initial values and tensor names. In a model written for candle-nn, only the `use` line changes.
//!
//! ```
//! use candle_attention::nn::{Parameters, causal_self_attention};
//! use candle_core::{DType, Device, Module, Tensor};
//!
//! let parameters = Parameters::new(42); // the seed of the initial values
//! let layer = causal_self_attention(16, 4, parameters.var_builder(DType::F32, &Device::Cpu))?;
//! let ys = layer.forward(&Tensor::ones((2, 7, 16), DType::F32, &Device::Cpu)?)?; // (B, T, C)
//! let gradients = ys.sqr()?.mean_all()?.backward()?;
//! assert!(parameters.vars().iter().all(|(_, var)| gradients.get(var).is_some()));
//! # Ok::<(), candle_core::Error>(())
//! ```

mod attention;
mod dropout_layer;
mod embedding;
mod kv_cache;
mod linear;
mod lora;
pub mod mapping;
mod multi_head;
mod norm;
#[cfg(feature = "lm")]
mod on_slices;
mod parameters;
mod projection;
mod rotary;
mod rotary_scaling;

pub use attention::{CausalSelfAttention, CausalSelfAttentionConfig, causal_self_attention};
pub use candle_nn::LayerNormConfig;
pub use dropout_layer::Dropout;
pub use embedding::{Embedding, embedding};
pub use kv_cache::KvCache;
pub use linear::{Linear, linear, linear_b, linear_no_bias, linear_with};
pub use lora::{LoraConfig, LoraLinear};
#[cfg(feature = "lm")]
pub(crate) use multi_head::Scratch as AttentionScratch;
pub use multi_head::{AttentionInputs, KeysValues, MultiHeadAttention, MultiHeadAttentionConfig};
pub use norm::{LayerNorm, RmsNorm, layer_norm, layer_norm_no_bias, rms_norm};
pub use parameters::Parameters;
pub(crate) use projection::Projection;
pub use rotary::{RotaryEmbedding, RotaryEmbeddingConfig};
pub use rotary_scaling::RotaryScaling;
