//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

mod kernel;
mod reference;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};

use self::kernel::{Angles, Dims, Heads};
use super::record;
use super::storage::{check_alike, has_kernel, values};
use crate::memory;

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
/// `xs` (B, T, H, D), `cos` and `sin` (T, D/2); the result as `xs`. candle-nn's `rope`, `rope_i` and `rope_thd` have no
/// backward pass and say nothing about it.
///
/// In `f32` on the CPU the operation is fused, and takes heads as they lie in a packed projection. Tables that are
/// themselves tracked have their gradients, by candle's own operations.
///
/// # Errors
/// If D is odd, or sizes, dtypes or devices do not agree.
pub fn rotary(xs: &Tensor, cos: &Tensor, sin: &Tensor, pairs: RotaryPairs) -> Result<Tensor> {
    let (_, t, _, d) = xs.dims4()?;
    if !d.is_multiple_of(2) {
        bail!("rotary: expected an even number of channels, got {d}");
    }
    for (name, table) in [("cos", cos), ("sin", sin)] {
        check_alike("rotary", name, table, "the input", xs)?;
        if table.dims() != [t, d / 2] {
            bail!("rotary: expected {name} of shape {:?}, got {:?}", [t, d / 2], table.dims());
        }
    }
    let tables_are_fixed = !record::is_tracked(cos) && !record::is_tracked(sin);
    if !has_kernel(&[xs, cos, sin]) || !tables_are_fixed || xs.elem_count() == 0 {
        return reference::rotary(xs, cos, sin, pairs);
    }
    let xs = if xs.layout().stride()[3] == 1 { xs.clone() } else { record::contiguous(xs)? };
    record::apply1(&xs, Rotary { cos: cos.contiguous()?, sin: sin.contiguous()?, pairs })
}

/// The fused operation.
struct Rotary {
    cos: Tensor,
    sin: Tensor,
    pairs: RotaryPairs,
}

impl Rotary {
    /// `xs` turned, or with `back` turned back.
    fn turn(&self, xs: &[f32], layout: &Layout, back: bool) -> Result<Vec<f32>> {
        let (_, t, h, d) = layout.shape().dims4()?;
        let (cos, sin) = (values(&self.cos)?, values(&self.sin)?);
        let negated: Vec<f32> = if back { sin.iter().map(|sin| -sin).collect() } else { Vec::new() };
        let sin: &[f32] = if back { &negated } else { &sin };
        let strides = layout.stride();
        let heads = Heads { data: &xs[layout.start_offset()..], strides: [strides[0], strides[1], strides[2]] };
        let mut ys = vec![0.0; layout.shape().elem_count()];
        kernel::turn(&mut ys, heads, Angles { cos: &cos, sin }, self.pairs, Dims { t, h, d });
        Ok(ys)
    }
}

impl CustomOp1 for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.turn(xs.as_slice()?, layout, false)?), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, dys: &Tensor) -> Result<Option<Tensor>> {
        let dys = dys.contiguous()?;
        let dxs = self.turn(&values(&dys)?, &Layout::contiguous(xs.shape()), true)?;
        Ok(Some(Tensor::from_vec(dxs, xs.shape(), &Device::Cpu)?))
    }
}

/// The cosines and sines of the angles `t * theta^(-2i/D)` for the positions `t` in `start..start + seq_len`: two tensors
/// (seq_len, D/2), computed in `f64`, of the dtype and on the device of `like`.
///
/// # Errors
/// If D is odd, `theta` is not above 0, or memory cannot hold them.
pub fn rotary_tables(
    theta: f64,
    head_dim: usize,
    start: usize,
    seq_len: usize,
    like: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let half = head_dim / 2;
    if !head_dim.is_multiple_of(2) {
        bail!("rotary-tables: expected an even number of channels, got {head_dim}");
    }
    if !(theta > 0.0 && theta.is_finite()) {
        bail!("rotary-tables: expected theta above 0, got {theta}");
    }
    if start.checked_add(seq_len).is_none() {
        bail!("rotary-tables: expected positions that 64 bits count, got {seq_len} from {start} on");
    }
    // Two of `f64`, while they are computed.
    memory::check("rotary-tables", memory::tensor_bytes(&[seq_len, half], 2 * size_of::<f64>()))?;
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
    use crate::ops::testing::{assert_like_reference, randn};
    use candle_core::{DType, Var};

    fn values(x: &Tensor) -> Vec<f64> {
        x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f64 {
        values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    /// The reference on tables of the dtype of `x`.
    fn with(op: Turn, x: &Tensor, tables: &[Tensor; 2], pairs: RotaryPairs) -> Result<Tensor> {
        op(x, &tables[0].to_dtype(x.dtype())?, &tables[1].to_dtype(x.dtype())?, pairs)
    }
    type Turn = fn(&Tensor, &Tensor, &Tensor, RotaryPairs) -> Result<Tensor>;

    const BOTH: [RotaryPairs; 2] = [RotaryPairs::Halves, RotaryPairs::Neighbours];

    #[test]
    fn the_kernel_is_the_reference() {
        for [b, t, h, d] in [[1, 1, 1, 2], [2, 7, 3, 10], [3, 131, 5, 34], [1, 5, 1, 20_014], [2, 3, 0, 4]] {
            let tables = [randn(2, &[t, d / 2]), randn(3, &[t, d / 2])];
            for pairs in BOTH {
                let fused = |x: &[Tensor]| with(rotary, &x[0], &tables, pairs);
                let reference = |x: &[Tensor]| with(reference::rotary, &x[0], &tables, pairs);
                let label = format!("rotary {pairs:?} {:?}", [b, t, h, d]);
                assert_like_reference(&label, &[randn(1, &[b, t, h, d])], &fused, &reference);
            }
        }
    }

    /// A part of a packed projection, heads before positions, channels that are not neighbours; rows of longer tables.
    #[test]
    fn views_give_the_same() {
        let tables = [randn(2, &[11, 5]).narrow(0, 4, 7).unwrap(), randn(3, &[5, 7]).t().unwrap()];
        type View = fn(&Tensor) -> Result<Tensor>;
        let views: [(&[usize], View); 3] = [
            (&[2, 7, 90], |x| x.reshape((2, 7, 9, 10))?.narrow(2, 3, 3)),
            (&[2, 3, 7, 10], |x| x.transpose(1, 2)),
            (&[2, 10, 7, 3], |x| x.permute((0, 2, 3, 1))),
        ];
        for (shape, view) in views {
            for pairs in BOTH {
                let fused = |x: &[Tensor]| with(rotary, &view(&x[0])?, &tables, pairs);
                let reference = |x: &[Tensor]| with(reference::rotary, &view(&x[0])?, &tables, pairs);
                assert_like_reference("rotary of a view", &[randn(1, shape)], &fused, &reference);
            }
        }
    }

    #[test]
    fn tables_that_are_tracked_have_gradients() {
        let xs = randn(1, &[2, 7, 3, 10]).to_dtype(DType::F32).unwrap();
        let [cos, sin] =
            [2, 3].map(|seed| Var::from_tensor(&randn(seed, &[7, 5]).to_dtype(DType::F32).unwrap()).unwrap());
        for pairs in BOTH {
            for (cos, sin, var) in
                [(cos.as_tensor(), &sin.as_detached_tensor(), &cos), (&cos.as_detached_tensor(), sin.as_tensor(), &sin)]
            {
                let gradients = rotary(&xs, cos, sin, pairs).unwrap().sum_all().unwrap().backward().unwrap();
                assert!(values(gradients.get(var).unwrap()).iter().any(|x| *x != 0.0));
            }
        }
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
        for pairs in BOTH {
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
        assert!(error.contains("rotary: expected cos of shape [7, 5], got [6, 5]"), "{error}");
        let halves = xs.to_dtype(DType::F32).unwrap();
        let error = rotary(&halves, &cos, &sin, RotaryPairs::Halves).unwrap_err().to_string();
        assert!(error.contains("rotary: expected cos of the dtype F32 of the input, got F64"), "{error}");
        assert!(rotary(&randn(1, &[2, 7, 3, 5]), &cos, &sin, RotaryPairs::Halves).is_err());
        for (theta, d, start, len, expected) in [
            (1e4, 5, 0, 7, "expected an even number of channels, got 5"),
            (f64::NAN, 4, 0, 7, "expected theta above 0, got NaN"),
            (1e4, 4, usize::MAX, 7, "expected positions that 64 bits count"),
            (1e4, 4, 0, usize::MAX / 2, "of memory, got more than 64 bits count"),
            (1e4, 64, 0, 1 << 47, "of memory, got"),
        ] {
            let error = rotary_tables(theta, d, start, len, &xs).unwrap_err().to_string();
            assert!(error.contains("rotary-tables") && error.contains(expected), "{error}");
        }
    }
}
