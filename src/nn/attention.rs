//! Causal self-attention.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::{AttentionInputs, KvCache, Linear, MultiHeadAttention, MultiHeadAttentionConfig};
use crate::ops::{Mask, Scale};

/// Sizes and options of a [`CausalSelfAttention`].
#[derive(Clone, Debug)]
pub struct CausalSelfAttentionConfig {
    /// Channels of input and output (C).
    pub embed_dim: usize,
    /// Heads (H), which must divide `embed_dim`.
    pub num_heads: usize,
    /// Whether the projections have biases.
    pub bias: bool,
    /// Whether the outputs of the heads go through a learnable projection W^O.
    pub output_projection: bool,
    /// The factor on the dot products.
    pub scale: Scale,
    /// Whether position `t` sees only positions `s <= t`; otherwise it sees all.
    pub causal: bool,
    /// Initialisation of W^Q, W^K and W^V.
    pub init: Init,
    /// Initialisation of W^O.
    pub output_init: Init,
}

impl CausalSelfAttentionConfig {
    /// Causal, scaled by `1 / sqrt(D)`, without biases, with an output projection, and with weights initialised
    /// uniformly in `±1 / sqrt(C)`.
    pub fn new(embed_dim: usize, num_heads: usize) -> Self {
        let bound = 1.0 / (embed_dim as f64).sqrt();
        let init = Init::Uniform { lo: -bound, up: bound };
        Self {
            embed_dim,
            num_heads,
            bias: false,
            output_projection: true,
            scale: Scale::InverseSqrt,
            causal: true,
            init,
            output_init: init,
        }
    }
}

impl From<&CausalSelfAttentionConfig> for MultiHeadAttentionConfig {
    fn from(config: &CausalSelfAttentionConfig) -> Self {
        Self {
            bias: config.bias,
            output_bias: config.bias,
            output_projection: config.output_projection,
            scale: config.scale,
            mask: if config.causal { Mask::causal() } else { Mask::full() },
            init: Some(config.init),
            output_init: Some(config.output_init),
            ..Self::new(config.embed_dim, config.num_heads)
        }
    }
}

/// Causal self-attention with learnable W^Q, W^K and W^V.
///
/// For the rows `x[t]` of an input with T positions and C channels,
///
/// ```text
/// q = x W^Q    k = x W^K    v = x W^V
/// y[t] = sum over s <= t of softmax(scale * q[t] . k[s]) * v[s]
/// ```
///
/// in each of H heads, among which the C channels are divided; with an output projection, the result is `y W^O`.
///
/// | tensor | shape |
/// |---|---|
/// | input | (B, T, C) or (T, C) |
/// | output | that of the input |
/// | weights | (B, H, T, T), or (H, T, T) for an input (T, C) |
///
/// ```
/// use candle_attention::nn::{Parameters, causal_self_attention};
/// use candle_core::{DType, Device, Module, Tensor};
///
/// let parameters = Parameters::new(42);
/// let layer = causal_self_attention(8, 2, parameters.var_builder(DType::F32, &Device::Cpu))?;
/// let xs = Tensor::ones((3, 5, 8), DType::F32, &Device::Cpu)?;
/// assert_eq!(layer.forward(&xs)?.dims(), [3, 5, 8]);
///
/// let gradients = layer.forward(&xs)?.sum_all()?.backward()?;
/// for (name, var) in parameters.vars() {
///     assert!(gradients.get(&var).is_some(), "{name} has no gradient");
/// }
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct CausalSelfAttention(MultiHeadAttention);

impl CausalSelfAttention {
    /// Reads or creates `q_proj`, `k_proj`, `v_proj` and, with an output projection, `o_proj`. Each has a `weight` (C,
    /// C), stored as (out, in), and with `bias` also a `bias` (C).
    ///
    /// # Errors
    /// If `num_heads` does not divide `embed_dim`, or the builder lacks a tensor or has it in another shape.
    pub fn new(config: &CausalSelfAttentionConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self(MultiHeadAttention::new(&config.into(), vb)?))
    }

    /// The textbook form: one head, no biases, no output projection, scaled or not.
    ///
    /// # Errors
    /// Those of [`CausalSelfAttention::new`].
    pub fn single_head(embed_dim: usize, scale: Scale, vb: VarBuilder) -> Result<Self> {
        let config = CausalSelfAttentionConfig {
            output_projection: false,
            scale,
            ..CausalSelfAttentionConfig::new(embed_dim, 1)
        };
        Self::new(&config, vb)
    }

    /// The underlying general layer, for what this one does not offer: a mask or dropout for a single call, or
    /// cross-attention.
    pub fn multi_head(&self) -> &MultiHeadAttention {
        &self.0
    }

    /// The projection to queries, W^Q.
    pub fn q_proj(&self) -> &Linear {
        self.0.q_proj()
    }

    /// The projection to keys, W^K.
    pub fn k_proj(&self) -> &Linear {
        self.0.k_proj()
    }

    /// The projection to values, W^V.
    pub fn v_proj(&self) -> &Linear {
        self.0.v_proj()
    }

    /// The output projection, W^O, if there is one.
    pub fn o_proj(&self) -> Option<&Linear> {
        self.0.o_proj()
    }

    /// The output, and the attention weights (B, H, T, T), or (H, T, T) for an input (T, C). Both are differentiable.
    ///
    /// # Errors
    /// If the input's shape, dtype or device does not match the layer.
    pub fn forward_with_weights(&self, xs: &Tensor) -> Result<(Tensor, Tensor)> {
        self.0.forward_with_weights(xs, &AttentionInputs::default())
    }

    /// The output at the next positions of a text, without a graph: see [`MultiHeadAttention::forward_cached`].
    ///
    /// # Errors
    /// If the input's shape, dtype or device does not match the layer, or the cache has no room.
    pub fn forward_cached(&self, xs: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        self.0.forward_cached(xs, cache)
    }
}

impl Module for CausalSelfAttention {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.0.forward(xs)
    }
}

/// Multi-head causal self-attention with an output projection and without biases, as in most language models. For other
/// forms, see [`CausalSelfAttention::new`].
///
/// # Errors
/// Those of [`CausalSelfAttention::new`].
pub fn causal_self_attention(embed_dim: usize, num_heads: usize, vb: VarBuilder) -> Result<CausalSelfAttention> {
    CausalSelfAttention::new(&CausalSelfAttentionConfig::new(embed_dim, num_heads), vb)
}
