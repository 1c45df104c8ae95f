//! Rotation of pairs of channels, composed of candle's own operations, for any dtype and device, and for tracked
//! tables.

use candle_core::{Result, Tensor};

use super::RotaryPairs;

/// See [`super::rotary`]; the arguments have been checked.
pub(super) fn rotary(xs: &Tensor, cos: &Tensor, sin: &Tensor, pairs: RotaryPairs) -> Result<Tensor> {
    let (b, t, h, d) = xs.dims4()?;
    // The pairs' two sides are the rows (halves) or the columns (neighbours) of each head, seen as a matrix.
    let (shape, side) = match pairs {
        RotaryPairs::Halves => ((b, t, h, 2, d / 2), 3),
        RotaryPairs::Neighbours => ((b, t, h, d / 2, 2), 4),
    };
    let xs = xs.reshape(shape)?;
    let (first, second) = (xs.narrow(side, 0, 1)?.squeeze(side)?, xs.narrow(side, 1, 1)?.squeeze(side)?); // (B, T, H, D/2)
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?); // (T, 1, D/2)
    let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let turned_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    Tensor::stack(&[turned_first, turned_second], side)?.reshape((b, t, h, d))
}
