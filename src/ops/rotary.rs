//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

use candle_core::{Result, Tensor, bail};

/// Which channels of a head turn together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RotaryPairs {
    /// Channel `i` with channel `i + D/2`, as in Hugging Face's llama and qwen.
    #[default]
    Halves,
    /// Channel `2i` with channel `2i + 1`, as in the paper.
    Neighbours,
}

/// Turns each pair of channels `(a, b)` at position `t` by the angle of its cosine and sine:
/// `(a cos - b sin, b cos + a sin)`.
///
/// `xs` (B, T, H, D), `cos` and `sin` (T, D/2); the result as `xs`. Composed of candle's own differentiable operations;
/// candle-nn's `rope`, `rope_i` and `rope_thd` have no backward pass and say nothing about it.
///
/// # Errors
/// If D is odd, or sizes, dtypes or devices do not agree.
pub fn rotary(xs: &Tensor, cos: &Tensor, sin: &Tensor, pairs: RotaryPairs) -> Result<Tensor> {
    let (b, t, h, d) = xs.dims4()?;
    if !d.is_multiple_of(2) {
        bail!("rotary: expected an even number of channels, got {d}");
    }
    for (name, table) in [("cos", cos), ("sin", sin)] {
        if table.dims() != [t, d / 2] || table.dtype() != xs.dtype() {
            let (dims, dtype) = (table.dims(), table.dtype());
            bail!(
                "rotary: expected {name} of shape {:?} and dtype {:?}, got {dims:?} and {dtype:?}",
                [t, d / 2],
                xs.dtype()
            );
        }
    }
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

/// The cosines and sines of the angles `t * theta^(-2i/D)` for the positions `t` in `start..start + seq_len`: two tensors
/// (seq_len, D/2), computed in `f64`, of the dtype and on the device of `like`.
///
/// # Errors
/// If they cannot be allocated.
pub fn rotary_tables(
    theta: f64,
    head_dim: usize,
    start: usize,
    seq_len: usize,
    like: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let half = head_dim / 2;
    let angle = |i: usize| (start + i / half) as f64 * theta.powf(-2.0 * (i % half) as f64 / head_dim as f64);
    let table = |f: fn(f64) -> f64| {
        let values: Vec<f64> = (0..seq_len * half).map(|i| f(angle(i))).collect();
        Tensor::from_vec(values, (seq_len, half), like.device())?.to_dtype(like.dtype())
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::randn;
    use candle_core::DType;

    fn values(x: &Tensor) -> Vec<f64> {
        x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f64 {
        values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn it_is_candle_nns() {
        let xs = randn(1, &[2, 7, 3, 10]);
        let (cos, sin) = rotary_tables(10_000.0, 10, 0, 7, &xs).unwrap();
        let heads_first = xs.transpose(1, 2).unwrap().contiguous().unwrap();
        let halves = candle_nn::rotary_emb::rope_slow(&heads_first, &cos, &sin).unwrap().transpose(1, 2).unwrap();
        assert!(difference(&rotary(&xs, &cos, &sin, RotaryPairs::Halves).unwrap(), &halves) < 1e-14);
        let neighbours = candle_nn::rotary_emb::rope_i_slow(&heads_first, &cos, &sin).unwrap().transpose(1, 2).unwrap();
        assert!(difference(&rotary(&xs, &cos, &sin, RotaryPairs::Neighbours).unwrap(), &neighbours) < 1e-14);
    }

    /// What rotary positions are for: a product of a query and a key depends on the distance of their positions alone.
    #[test]
    fn scores_depend_on_distances() {
        let (q, k) = (randn(1, &[1, 1, 1, 6]), randn(2, &[1, 1, 1, 6]));
        for pairs in [RotaryPairs::Halves, RotaryPairs::Neighbours] {
            let score = |t: usize, s: usize| {
                let turned = |x: &Tensor, at: usize| {
                    let (cos, sin) = rotary_tables(10_000.0, 6, at, 1, x).unwrap();
                    rotary(x, &cos, &sin, pairs).unwrap()
                };
                (turned(&q, t) * turned(&k, s)).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
            };
            assert!((score(5, 2) - score(1005, 1002)).abs() < 1e-10);
            assert!((score(5, 2) - score(5, 3)).abs() > 1e-3);
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let xs = randn(1, &[2, 7, 3, 10]);
        let (cos, sin) = rotary_tables(10_000.0, 10, 0, 6, &xs).unwrap();
        let error = rotary(&xs, &cos, &sin, RotaryPairs::Halves).unwrap_err().to_string();
        assert!(error.contains("rotary: expected cos of shape [7, 5] and dtype F64, got [6, 5] and F64"), "{error}");
        assert!(rotary(&randn(1, &[2, 7, 3, 5]), &cos, &sin, RotaryPairs::Halves).is_err());
    }
}
