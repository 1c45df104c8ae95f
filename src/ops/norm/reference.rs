//! Normalisation composed of candle's own differentiable operations, for any dtype and device. The statistics of `f16`
//! and `bf16` are taken in `f32`.

use candle_core::{D, Result, Tensor};

use crate::cpu::storage::precise;

/// See [`super::layer_norm`]; the arguments have been checked.
pub(super) fn layer_norm(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let precise = xs.to_dtype(precise(xs.dtype()))?;
    let centred = precise.broadcast_sub(&precise.mean_keepdim(D::Minus1)?)?;
    let ys = to_unit(&centred, eps)?.to_dtype(xs.dtype())?.broadcast_mul(weight)?;
    match bias {
        Some(bias) => ys.broadcast_add(bias),
        None => Ok(ys),
    }
}

/// See [`super::rms_norm`]; the arguments have been checked.
pub(super) fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    to_unit(&xs.to_dtype(precise(xs.dtype()))?, eps)?.to_dtype(xs.dtype())?.broadcast_mul(weight)
}

/// `x / sqrt(mean(x^2) + eps)` over the last dimension.
fn to_unit(xs: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = xs.sqr()?.mean_keepdim(D::Minus1)?;
    xs.broadcast_div(&(mean_square + eps)?.sqrt()?)
}
