//! Layer and root-mean-square normalisation as layers.

use candle_core::{Module, Result, Tensor};
use candle_nn::{LayerNormConfig, VarBuilder};

use crate::cpu::storage::add_parameter;
use crate::ops;

/// candle-nn's `LayerNorm` on [`ops::layer_norm`], with a learnable weight and an optional bias, both (C).
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    remove_mean: bool,
    eps: f64,
}

impl LayerNorm {
    /// From its tensors, each (C).
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight, bias: Some(bias), remove_mean: true, eps }
    }

    /// From its weight (C), without a bias.
    pub fn new_no_bias(weight: Tensor, eps: f64) -> Self {
        Self { weight, bias: None, remove_mean: true, eps }
    }

    /// From its weight (C), without a bias and without subtracting the mean: [`RmsNorm`].
    pub fn rms_norm(weight: Tensor, eps: f64) -> Self {
        Self { weight, bias: None, remove_mean: false, eps }
    }

    /// The weight (C).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias (C).
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The term added to the variance.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// Whether the mean is subtracted; otherwise this is [`ops::rms_norm`].
    pub fn remove_mean(&self) -> bool {
        self.remove_mean
    }
}

impl Module for LayerNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match &self.bias {
            bias if self.remove_mean => ops::layer_norm(xs, &self.weight, bias.as_ref(), self.eps),
            Some(bias) => add_parameter(&ops::rms_norm(xs, &self.weight, self.eps)?, bias),
            None => ops::rms_norm(xs, &self.weight, self.eps),
        }
    }
}

/// Reads or creates `weight` (ones) and, if the configuration is affine, `bias` (zeros) for `size` channels. The names
/// `gamma` and `beta` of old torch files are read too. Instead of a [`LayerNormConfig`], `config` may be just the
/// `eps`.
///
/// # Errors
/// If the builder lacks a tensor or has it in another shape.
pub fn layer_norm<C: Into<LayerNormConfig>>(size: usize, config: C, vb: VarBuilder) -> Result<LayerNorm> {
    let LayerNormConfig { eps, remove_mean, affine } = config.into();
    let get = |name, old_name, init| {
        let is_old = !vb.contains_tensor(name) && vb.contains_tensor(old_name);
        vb.get_with_hints(size, if is_old { old_name } else { name }, init)
    };
    let weight = get("weight", "gamma", candle_nn::init::ONE)?;
    let bias = if affine { Some(get("bias", "beta", candle_nn::init::ZERO)?) } else { None };
    Ok(LayerNorm { weight, bias, remove_mean, eps })
}

/// As [`layer_norm`], without a bias.
///
/// # Errors
/// Those of [`layer_norm`].
pub fn layer_norm_no_bias(size: usize, eps: f64, vb: VarBuilder) -> Result<LayerNorm> {
    layer_norm(size, LayerNormConfig { affine: false, ..eps.into() }, vb)
}

/// candle-nn's `RmsNorm` on [`ops::rms_norm`], with a learnable weight (C).
#[derive(Clone, Debug)]
pub struct RmsNorm(LayerNorm);

impl RmsNorm {
    /// From its weight (C).
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self(LayerNorm::rms_norm(weight, eps))
    }

    /// The same layer as a [`LayerNorm`].
    pub fn into_inner(self) -> LayerNorm {
        self.0
    }

    /// The weight (C).
    pub fn weight(&self) -> &Tensor {
        self.0.weight()
    }

    /// The term added to the mean of the squares.
    pub fn eps(&self) -> f64 {
        self.0.eps()
    }

    /// The same as `forward`, which here has a gradient (candle-nn's has none).
    ///
    /// # Errors
    /// Those of [`ops::rms_norm`].
    pub fn forward_diff(&self, xs: &Tensor) -> Result<Tensor> {
        self.forward(xs)
    }
}

impl Module for RmsNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.0.forward(xs)
    }
}

/// Reads or creates `weight` (ones) for `size` channels.
///
/// # Errors
/// If the builder lacks the tensor or has it in another shape.
pub fn rms_norm(size: usize, eps: f64, vb: VarBuilder) -> Result<RmsNorm> {
    Ok(RmsNorm(layer_norm(size, LayerNormConfig { remove_mean: false, affine: false, eps }, vb)?))
}
