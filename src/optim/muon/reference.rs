//! Muon composed of candle's own operations, for any dtype and device.

use candle_core::{Result, Tensor, Var};

use super::{COEFFICIENTS, LEAST_NORM, MARGIN, MuonStep, rate};
use crate::cpu::sums::euclidean_norm;

/// See [`super::muon`]; the arguments have been checked.
pub(super) fn muon(var: &Var, gradient: &Tensor, momentum_buffer: &mut Tensor, step: &MuonStep) -> Result<()> {
    let &MuonStep { learning_rate, momentum, weight_decay, gradient_scale, cautious } = step;
    let gradient = (gradient.to_dtype(momentum_buffer.dtype())? * (gradient_scale * (1.0 - momentum)))?;
    *momentum_buffer = ((&*momentum_buffer * momentum)? + &gradient)?;
    let ahead = ((&*momentum_buffer * momentum)? + &gradient)?;
    let update = (orthogonal(&ahead)? * rate(step, var.dims2()?))?;
    cautious.apply_composed(var, update, &gradient, 1.0 - learning_rate * weight_decay)
}

fn orthogonal(matrix: &Tensor) -> Result<Tensor> {
    let (rows, cols) = matrix.dims2()?;
    if rows > cols {
        return orthogonal(&matrix.t()?.contiguous()?)?.t()?.contiguous();
    }
    let mut xs = (matrix * (1.0 / (euclidean_norm(matrix)? * MARGIN).max(LEAST_NORM)))?;
    for [a, b, c] in COEFFICIENTS {
        let gram = xs.matmul(&xs.t()?)?; // (rows, rows)
        let polynomial = ((&gram * b)? + (gram.matmul(&gram)? * c)?)?;
        xs = ((&xs * a)? + polynomial.matmul(&xs)?)?;
    }
    Ok(xs)
}
