//! `y = x W^T + b`, composed of candle's own operations, for any dtype and device.

use candle_core::{Result, Tensor};

use crate::cpu::storage::{add_parameter, precise};

/// See [`super::linear`]; the arguments have been checked, and give a result of shape `out_shape`.
pub(super) fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, out_shape: Vec<usize>) -> Result<Tensor> {
    let (in_dim, dtype) = (weight.dim(1)?, xs.dtype());
    // On the CPU, candle adds up long products of f16 in that dtype.
    let inner = if xs.device().is_cpu() { precise(dtype) } else { dtype };
    let (xs, weight) = (xs.reshape(((), in_dim))?.to_dtype(inner)?, weight.to_dtype(inner)?);
    let ys = xs.matmul(&weight.t()?)?; // (N, O)
    let ys = match bias {
        Some(bias) => add_parameter(&ys, &bias.to_dtype(inner)?)?,
        None => ys,
    };
    ys.to_dtype(dtype)?.reshape(out_shape)
}
