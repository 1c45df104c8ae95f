//! Normalisation over the last dimension, with gradients that reach everything.
//!
//! candle-nn's fused `layer_norm` and `rms_norm` have no backward pass and say nothing about it: whatever lies
//! before them stops learning. These have one.
//!
//! The statistics of `f16` and `bf16` are taken in `f32`.

use candle_core::{D, DType, Result, Tensor, bail};

/// `(x - mean) / sqrt(variance + eps) * weight + bias` (Ba et al. 2016, arXiv:1607.06450).
///
/// `xs` (.., C), `weight` and `bias` (C). Mean and variance (of the population) are those of the C channels.
///
/// # Errors
/// If the shapes, dtypes or devices do not agree.
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    check("layer-norm", xs, weight)?;
    let centred = {
        let xs = to_statistics_dtype(xs)?;
        xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?
    };
    let ys = scale_to_unit(&centred, eps)?.to_dtype(xs.dtype())?.broadcast_mul(weight)?;
    match bias {
        Some(bias) => {
            check("layer-norm", xs, bias)?;
            ys.broadcast_add(bias)
        }
        None => Ok(ys),
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich 2019, arXiv:1910.07467).
///
/// `xs` (.., C), `weight` (C).
///
/// # Errors
/// If the shapes, dtypes or devices do not agree.
pub fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check("rms-norm", xs, weight)?;
    scale_to_unit(&to_statistics_dtype(xs)?, eps)?.to_dtype(xs.dtype())?.broadcast_mul(weight)
}

/// `x / sqrt(mean(x^2) + eps)` over the last dimension.
fn scale_to_unit(xs: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = xs.sqr()?.mean_keepdim(D::Minus1)?;
    xs.broadcast_div(&(mean_square + eps)?.sqrt()?)
}

fn to_statistics_dtype(xs: &Tensor) -> Result<Tensor> {
    match xs.dtype() {
        DType::F16 | DType::BF16 => xs.to_dtype(DType::F32),
        _ => Ok(xs.clone()),
    }
}

fn check(op: &str, xs: &Tensor, parameter: &Tensor) -> Result<()> {
    let channels = match xs.dims() {
        [.., channels] => *channels,
        [] => bail!("{op}: expected an input of shape (.., C), got a scalar"),
    };
    if parameter.dims() != [channels] {
        bail!("{op}: expected parameters of shape {:?}, got {:?}", [channels], parameter.dims());
    }
    if !xs.dtype().is_float() || parameter.dtype() != xs.dtype() {
        bail!(
            "{op}: expected parameters of the input's floating-point dtype {:?}, got {:?}",
            xs.dtype(),
            parameter.dtype()
        );
    }
    if !parameter.device().same_device(xs.device()) {
        bail!(
            "{op}: expected parameters on the input's device {:?}, got {:?}",
            xs.device().location(),
            parameter.device().location()
        );
    }
    Ok(())
}
