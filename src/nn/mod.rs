//! Layers: candle [`Module`](candle_nn::Module)s whose gradients reach every parameter and the input.

mod attention;
mod linear;
mod norm;
mod parameters;

pub use attention::{CausalSelfAttention, CausalSelfAttentionConfig, causal_self_attention};
pub use linear::{Linear, linear};
pub use norm::{LayerNorm, RmsNorm, layer_norm, rms_norm};
pub use parameters::Parameters;
