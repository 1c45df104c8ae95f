//! Cross-attention: to another sequence.

use candle_core::{Result, Tensor, bail};

use super::forward::{Positions, check};
use super::{AttentionInputs, KeysValues, MultiHeadAttention};

impl MultiHeadAttention {
    /// Attention of the input to `memory`, a sequence that may have another length and width.
    ///
    /// # Errors
    /// If a shape, dtype or device does not match the layer, the layer's mask has a band other than full, or the layer
    /// has rotary positions, which the two sequences do not share.
    pub fn forward_cross(&self, xs: &Tensor, memory: &Tensor) -> Result<Tensor> {
        let memory = self.keys_values(memory)?;
        self.forward_with(xs, &AttentionInputs { memory: Some(&memory), ..Default::default() })
    }

    /// Keys and values of a memory (B, S, M) or (S, M), to be used in any number of calls. Gradients flow through them.
    ///
    /// # Errors
    /// If the shape, dtype or device does not match the layer, or the layer has rotary positions.
    pub fn keys_values(&self, memory: &Tensor) -> Result<KeysValues> {
        check("a memory", memory, &self.k_proj)?;
        if self.rotary.is_some() {
            bail!("multi-head-attention: expected no rotary positions with a memory, which does not share them");
        }
        let (k, v) = self.project_keys_values(&batched(memory)?, &Positions::From(0))?;
        Ok(KeysValues { k, v })
    }
}

/// Turns (T, C) into a batch of one, (1, T, C).
fn batched(xs: &Tensor) -> Result<Tensor> {
    if xs.rank() == 2 { xs.unsqueeze(0) } else { Ok(xs.clone()) }
}
