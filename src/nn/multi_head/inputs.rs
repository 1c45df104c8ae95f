//! What a call of multi-head attention takes beside its input.

use candle_core::Tensor;

use crate::ops::{DropoutOptions, Mask};

/// Keys (B, S, G, D) and values (B, S, G, E) that [`MultiHeadAttention::keys_values`](super::MultiHeadAttention::keys_values) has made of a memory: once for
/// all the queries that look at it.
#[derive(Clone, Debug)]
pub struct KeysValues {
    pub(super) k: Tensor,
    pub(super) v: Tensor,
}

/// What a call of [`MultiHeadAttention::forward_with`](super::MultiHeadAttention::forward_with) has beside its input. The default is self-attention with the
/// layer's own mask.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionInputs<'a> {
    /// Keys and values of another sequence, in place of the input's own.
    pub memory: Option<&'a KeysValues>,
    /// Which positions see which, in place of the layer's mask.
    pub mask: Option<&'a Mask>,
    /// What attention weights to drop, and with which random numbers. The layer's own rate is that of `forward_t`.
    pub dropout: Option<DropoutOptions>,
}
