//! A linear layer.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::ops;

/// candle-nn's `Linear` on [`ops::linear`]: `x W^T + b` with a learnable weight W (out, in) and an optional bias b
/// (out).
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// From its tensors: a weight (out, in) and a bias (out).
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// The weight (out, in).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias (out).
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for Linear {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::linear(xs, &self.weight, self.bias.as_ref())
    }
}

/// Reads or creates `weight` (out, in) and `bias` (out), initialised as in candle-nn: Kaiming normal and uniform in
/// `±1 / sqrt(in)`.
///
/// # Errors
/// If the builder lacks a tensor or has it in another shape.
pub fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    let bound = 1.0 / (in_dim as f64).sqrt();
    let weight = weight(in_dim, out_dim, candle_nn::init::DEFAULT_KAIMING_NORMAL, &vb)?;
    let bias = vb.get_with_hints(out_dim, "bias", Init::Uniform { lo: -bound, up: bound })?;
    Ok(Linear::new(weight, Some(bias)))
}

/// As [`linear`], without a bias.
///
/// # Errors
/// Those of [`linear`].
pub fn linear_no_bias(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    linear_with(in_dim, out_dim, false, candle_nn::init::DEFAULT_KAIMING_NORMAL, vb)
}

/// [`linear`] or [`linear_no_bias`].
///
/// # Errors
/// Those of [`linear`].
pub fn linear_b(in_dim: usize, out_dim: usize, bias: bool, vb: VarBuilder) -> Result<Linear> {
    if bias { linear(in_dim, out_dim, vb) } else { linear_no_bias(in_dim, out_dim, vb) }
}

/// As [`linear_b`], with the weight initialised by `init` and the bias to zero.
///
/// # Errors
/// Those of [`linear`].
pub fn linear_with(in_dim: usize, out_dim: usize, bias: bool, init: Init, vb: VarBuilder) -> Result<Linear> {
    let weight = weight(in_dim, out_dim, init, &vb)?;
    let bias = if bias { Some(vb.get_with_hints(out_dim, "bias", candle_nn::init::ZERO)?) } else { None };
    Ok(Linear::new(weight, bias))
}

fn weight(in_dim: usize, out_dim: usize, init: Init, vb: &VarBuilder) -> Result<Tensor> {
    vb.get_with_hints((out_dim, in_dim), "weight", init)
}
