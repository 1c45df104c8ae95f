//! Layers: candle [`Module`](candle_nn::Module)s whose gradients reach every parameter and the input.
//!
//! `Linear`, `LayerNorm`, `RmsNorm`, `Embedding` and `Dropout` have candle-nn's names, arguments, initial values and names
//! of tensors: in a model written for candle-nn the `use` line is all that changes.

mod attention;
mod dropout;
mod embedding;
mod kv_cache;
mod linear;
mod multi_head;
mod norm;
mod parameters;
mod rotary;

pub use attention::{CausalSelfAttention, CausalSelfAttentionConfig, causal_self_attention};
pub use candle_nn::LayerNormConfig;
pub use dropout::Dropout;
pub use embedding::{Embedding, embedding};
pub use kv_cache::KvCache;
pub use linear::{Linear, linear, linear_b, linear_no_bias, linear_with};
pub use multi_head::{AttentionInputs, KeysValues, MultiHeadAttention, MultiHeadAttentionConfig};
pub use norm::{LayerNorm, RmsNorm, layer_norm, layer_norm_no_bias, rms_norm};
pub use parameters::Parameters;
pub use rotary::{RotaryEmbedding, RotaryEmbeddingConfig};
