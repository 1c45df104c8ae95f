//! `y = x W^T + b`, composed of candle's own operations, for any dtype and device.

use candle_core::{Result, Tensor};

/// See [`super::linear`]; the arguments have been checked, and give a result of shape `out_shape`.
pub(super) fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, out_shape: Vec<usize>) -> Result<Tensor> {
    let in_dim = weight.dim(1)?;
    let ys = xs.reshape(((), in_dim))?.matmul(&weight.t()?)?; // (N, O)
    let ys = match bias {
        Some(bias) => ys.broadcast_add(bias)?,
        None => ys,
    };
    ys.reshape(out_shape)
}
