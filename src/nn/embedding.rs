//! A table of learnable rows.

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::ops;

/// [`ops::embedding`] with a learnable table (V, C), for ids of any integer dtype: candle-nn's `Embedding`.
#[derive(Clone, Debug)]
pub struct Embedding {
    embeddings: Tensor,
    hidden_size: usize,
}

impl Embedding {
    /// From its table (V, C), with C again.
    pub fn new(embeddings: Tensor, hidden_size: usize) -> Self {
        Self { embeddings, hidden_size }
    }

    /// The table (V, C).
    pub fn embeddings(&self) -> &Tensor {
        &self.embeddings
    }

    /// The channels of a row (C).
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }
}

impl Module for Embedding {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let ids = if ids.dtype().is_int() { ids.to_dtype(DType::U32)? } else { ids.clone() };
        ops::embedding(&ids, &self.embeddings)
    }
}

/// Reads or creates `weight` (V, C), standard normal.
///
/// # Errors
/// If the builder lacks the tensor or holds it in another shape.
pub fn embedding(in_size: usize, out_size: usize, vb: VarBuilder) -> Result<Embedding> {
    let weight = vb.get_with_hints((in_size, out_size), "weight", Init::Randn { mean: 0.0, stdev: 1.0 })?;
    Ok(Embedding::new(weight, out_size))
}
