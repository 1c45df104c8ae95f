//! Normalisation composed of candle's own differentiable operations, for any dtype and device. `f16` and `bf16`
//! are computed in `f32`, as are then the sums over rows in backward, and rounded once.

use candle_core::{D, Result, Tensor};

use crate::cpu::storage::precise;

/// See [`super::layer_norm`]; the arguments have been checked.
pub(super) fn layer_norm(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let (dtype, precise) = (xs.dtype(), precise(xs.dtype()));
    let xs = xs.to_dtype(precise)?;
    let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let ys = to_unit(&centred, eps)?.broadcast_mul(&weight.to_dtype(precise)?)?;
    let ys = match bias {
        Some(bias) => ys.broadcast_add(&bias.to_dtype(precise)?)?,
        None => ys,
    };
    ys.to_dtype(dtype)
}

/// See [`super::rms_norm`]; the arguments have been checked.
pub(super) fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let (dtype, precise) = (xs.dtype(), precise(xs.dtype()));
    to_unit(&xs.to_dtype(precise)?, eps)?.broadcast_mul(&weight.to_dtype(precise)?)?.to_dtype(dtype)
}

/// `x / sqrt(mean(x^2) + eps)` over the last dimension.
fn to_unit(xs: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = xs.sqr()?.mean_keepdim(D::Minus1)?;
    xs.broadcast_div(&(mean_square + eps)?.sqrt()?)
}
