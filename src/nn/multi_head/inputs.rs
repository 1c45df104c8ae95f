//! Optional inputs of multi-head attention.

use candle_core::Tensor;

use crate::ops::{DropoutOptions, Mask};

/// Keys (B, S, G, D) and values (B, S, G, E) of a memory, from
/// [`MultiHeadAttention::keys_values`](super::MultiHeadAttention::keys_values): computed once for all queries.
#[derive(Clone, Debug)]
pub struct KeysValues {
    pub(super) k: Tensor,
    pub(super) v: Tensor,
}

/// Optional inputs of [`MultiHeadAttention::forward_with`](super::MultiHeadAttention::forward_with). The default is
/// self-attention with the layer's own mask.
///
/// ```
/// use candle_attention::nn::{AttentionInputs, MultiHeadAttention, MultiHeadAttentionConfig, Parameters};
/// use candle_attention::ops::{KeyPadding, Mask};
/// use candle_core::{DType, Device, Tensor};
///
/// let vb = Parameters::new(42).var_builder(DType::F32, &Device::Cpu);
/// let layer = MultiHeadAttention::new(&MultiHeadAttentionConfig::new(8, 2), vb)?;
/// // Two texts, of 5 and of 3 positions, padded on the left to 5.
/// let xs = Tensor::rand(-1f32, 1., (2, 5, 8), &Device::Cpu)?;
/// let mask = Mask { key_padding: Some(KeyPadding::Left(vec![5, 3])), ..Mask::causal() };
/// let ys = layer.forward_with(&xs, &AttentionInputs { mask: Some(&mask), ..Default::default() })?;
///
/// let alone = layer.forward(&xs.get(1)?.narrow(0, 2, 3)?)?; // the shorter text
/// let difference = (ys.get(1)?.narrow(0, 2, 3)? - alone)?.abs()?.max_all()?.to_scalar::<f32>()?;
/// assert!(difference < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionInputs<'a> {
    /// Keys and values of another sequence instead of the input's own.
    pub memory: Option<&'a KeysValues>,
    /// Which positions see which, instead of the layer's mask.
    pub mask: Option<&'a Mask>,
    /// The positions of the input for the layer's rotary embedding, (B, T) of `u32`, instead of 0 to T - 1; for instance
    /// starting again with each of several documents. They say nothing about which positions see which.
    pub positions: Option<&'a Tensor>,
    /// Dropout of the attention weights. The layer's own rate applies only in `forward_t`.
    pub dropout: Option<DropoutOptions>,
}
