//! Rotation of pairs of channels, composed of candle's own operations, for any dtype and device, and for tracked
//! tables, whose gradients are sums over sequences and heads. In half precision everything is computed in `f32`.

use candle_core::{Result, Tensor};

use super::RotaryPairs;
use crate::cpu::storage::precise;

/// See [`super::rotary`]; the arguments have been checked.
pub(super) fn rotary(xs: &Tensor, cos: &Tensor, sin: &Tensor, pairs: RotaryPairs) -> Result<Tensor> {
    let (b, t, h, d) = xs.dims4()?;
    // The pairs' two sides are the rows (halves) or the columns (neighbours) of each head, seen as a matrix.
    let (shape, side) = match pairs {
        RotaryPairs::Halves => ((b, t, h, 2, d / 2), 3),
        RotaryPairs::Neighbours => ((b, t, h, d / 2, 2), 4),
    };
    let precise = |x: &Tensor| x.to_dtype(precise(x.dtype()));
    let sides = precise(xs)?.reshape(shape)?;
    let (first, second) = (sides.narrow(side, 0, 1)?.squeeze(side)?, sides.narrow(side, 1, 1)?.squeeze(side)?); // (B, T, H, D/2)
    let of_heads = |table: &Tensor| precise(table)?.unsqueeze(table.rank() - 1); // (T, 1, D/2) or (B, T, 1, D/2)
    let (cos, sin) = (of_heads(cos)?, of_heads(sin)?);
    let rotated_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let rotated_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    Tensor::stack(&[rotated_first, rotated_second], side)?.reshape((b, t, h, d))?.to_dtype(xs.dtype())
}
