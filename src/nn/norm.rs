//! Layer and root-mean-square normalisation as modules.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::ops;

/// [`ops::layer_norm`] with a learnable weight and, if wanted, bias, both (C).
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

impl LayerNorm {
    /// From its tensors, each (C).
    pub fn new(weight: Tensor, bias: Option<Tensor>, eps: f64) -> Self {
        Self { weight, bias, eps }
    }
}

impl Module for LayerNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::layer_norm(xs, &self.weight, self.bias.as_ref(), self.eps)
    }
}

/// Reads or creates `weight` (ones) and, with `bias`, `bias` (zeros) for `dim` channels.
///
/// # Errors
/// If the builder lacks a tensor or holds it in another shape.
pub fn layer_norm(dim: usize, bias: bool, eps: f64, vb: VarBuilder) -> Result<LayerNorm> {
    let weight = vb.get_with_hints(dim, "weight", candle_nn::init::ONE)?;
    let bias = if bias { Some(vb.get_with_hints(dim, "bias", candle_nn::init::ZERO)?) } else { None };
    Ok(LayerNorm::new(weight, bias, eps))
}

/// [`ops::rms_norm`] with a learnable weight (C).
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// From its weight (C).
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps }
    }
}

impl Module for RmsNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::rms_norm(xs, &self.weight, self.eps)
    }
}

/// Reads or creates `weight` (ones) for `dim` channels.
///
/// # Errors
/// If the builder lacks the tensor or holds it in another shape.
pub fn rms_norm(dim: usize, eps: f64, vb: VarBuilder) -> Result<RmsNorm> {
    Ok(RmsNorm::new(vb.get_with_hints(dim, "weight", candle_nn::init::ONE)?, eps))
}
