//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

mod kernel;
mod reference;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};

use self::kernel::{Angles, Dims, Heads};
use super::QkvLayout;
use super::record::{self, Kept};
use crate::cpu::allocation;
use crate::cpu::checks::check_alike;
use crate::cpu::storage::{has_kernel, values};

/// Which channels of a head form the pairs that are rotated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RotaryPairs {
    /// Channel `i` with channel `i + D/2`, as in Hugging Face's llama and qwen.
    #[default]
    Halves,
    /// Channel `2i` with channel `2i + 1`, as in the paper.
    Neighbours,
}

/// Rotates queries or keys, (B, T, H, D) or (B, H, T, D) as `layout` says, by their positions: each pair of channels
/// `(a, b)` at position `t`, by the angle with this cosine and sine, becomes `(a cos - b sin, b cos + a sin)`.
///
/// `cos` and `sin` are (T, D/2), for instance from [`rotary_tables`], or (B, T, D/2) where the sequences have positions of
/// their own. The result has the shape of `xs`. Where heads and positions agree in number, a wrong layout cannot be
/// noticed.
///
/// candle-nn's `rope`, `rope_i` and `rope_thd` silently have no backward pass; this one has. In `f32` on the CPU it is
/// fused, and reads heads where they lie in a packed projection. Tracked tables get gradients too, through candle's own
/// operations. In half precision it computes in `f32`.
///
/// # Errors
/// If D is odd, or sizes, dtypes or devices differ.
///
/// ```
/// use candle_attention::ops::{QkvLayout, RotaryPairs, rotary, rotary_tables};
/// use candle_core::{DType, Device, Tensor};
///
/// let q = Tensor::ones((2, 5, 3, 8), DType::F32, &Device::Cpu)?; // (B, T, H, D)
/// let (cos, sin) = rotary_tables(10_000.0, 8, 0, 5, &q)?; // (T, D/2) each
/// assert_eq!(rotary(&q, &cos, &sin, RotaryPairs::Halves, QkvLayout::Bthd)?.dims(), q.dims());
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn rotary(xs: &Tensor, cos: &Tensor, sin: &Tensor, pairs: RotaryPairs, layout: QkvLayout) -> Result<Tensor> {
    match layout {
        QkvLayout::Bthd => heads_last(xs, cos, sin, pairs),
        QkvLayout::Bhtd => heads_last(&xs.transpose(1, 2)?, cos, sin, pairs)?.transpose(1, 2),
    }
}

/// [`rotary`] of (B, T, H, D).
fn heads_last(xs: &Tensor, cos: &Tensor, sin: &Tensor, pairs: RotaryPairs) -> Result<Tensor> {
    let (b, t, _, d) = xs.dims4()?;
    if !d.is_multiple_of(2) {
        bail!("rotary: expected an even number of channels, got {d}");
    }
    for (name, table) in [("cos", cos), ("sin", sin)] {
        check_alike("rotary", name, table, "the input", xs)?;
        let (shared, own) = ([t, d / 2], [b, t, d / 2]);
        if table.dims() != shared && table.dims() != own {
            bail!("rotary: expected {name} of shape {shared:?} or {own:?}, got {:?}", table.dims());
        }
    }
    if cos.rank() != sin.rank() {
        bail!("rotary: expected cos and sin of one shape, got {:?} and {:?}", cos.dims(), sin.dims());
    }
    let tables_are_fixed = !cos.track_op() && !sin.track_op();
    if !has_kernel(&[xs, cos, sin]) || !tables_are_fixed || xs.elem_count() == 0 {
        return reference::rotary(xs, cos, sin, pairs);
    }
    let xs = if xs.layout().stride()[3] == 1 { xs.clone() } else { xs.contiguous()? };
    record::apply1(&xs, Rotary { cos: cos.contiguous()?, sin: sin.contiguous()?, pairs }, Kept::Nothing)
}

/// [`rotary`] of heads (rows, H, D) at one position, on slices: `cos` and `sin` are (D/2).
#[cfg(feature = "lm")]
pub(crate) fn rotary_rows(ys: &mut [f32], xs: &[f32], [cos, sin]: [&[f32]; 2], pairs: RotaryPairs) {
    let d = 2 * cos.len();
    let heads = Heads { data: xs, strides: [xs.len(), xs.len(), d] };
    kernel::rotate(ys, heads, Angles { cos, sin }, pairs, Dims { t: 1, h: xs.len() / d, d });
}

/// The fused operation.
struct Rotary {
    cos: Tensor,
    sin: Tensor,
    pairs: RotaryPairs,
}

impl Rotary {
    /// `xs` rotated, or with `back` rotated back.
    fn rotate(&self, xs: &[f32], layout: &Layout, back: bool) -> Result<Vec<f32>> {
        let (_, t, h, d) = layout.shape().dims4()?;
        let (cos, sin) = (values(&self.cos)?, values(&self.sin)?);
        let negated: Vec<f32> = if back { sin.iter().map(|sin| -sin).collect() } else { Vec::new() };
        let sin: &[f32] = if back { &negated } else { &sin };
        let strides = layout.stride();
        let heads = Heads { data: &xs[layout.start_offset()..], strides: [strides[0], strides[1], strides[2]] };
        let mut ys = vec![0.0; layout.shape().elem_count()];
        kernel::rotate(&mut ys, heads, Angles { cos: &cos, sin }, self.pairs, Dims { t, h, d });
        Ok(ys)
    }
}

impl CustomOp1 for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.rotate(xs.as_slice()?, layout, false)?), layout.shape().clone()))
    }

    fn bwd(&self, _xs: &Tensor, _ys: &Tensor, dys: &Tensor) -> Result<Option<Tensor>> {
        let dys = dys.contiguous()?;
        let dxs = self.rotate(&values(&dys)?, &Layout::contiguous(dys.shape()), true)?;
        Ok(Some(Tensor::from_vec(dxs, dys.shape(), &Device::Cpu)?))
    }
}

/// The cosines and sines of the angles `t * theta^(-2i/D)` for the positions `t` in `start..start + seq_len`: two
/// tensors (seq_len, D/2), computed in `f64`, with the dtype and device of `like`.
///
/// # Errors
/// If D is odd, `theta` is not above 0, or memory cannot hold the tables.
pub fn rotary_tables(
    theta: f64,
    head_dim: usize,
    start: usize,
    seq_len: usize,
    like: &Tensor,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "rotary-tables";
    let Some(end) = start.checked_add(seq_len) else {
        bail!("{OP}: expected positions that 64 bits can count, got {seq_len} from {start} on");
    };
    tables(OP, (&frequencies(OP, theta, head_dim)?, 1.0), start..end, (like.dtype(), like.device()))
}

/// The angles `theta^(-2i/D)` by which pairs of channels rotate from one position to the next.
pub(crate) fn frequencies(op: &str, theta: f64, head_dim: usize) -> Result<Vec<f64>> {
    if !head_dim.is_multiple_of(2) {
        bail!("{op}: expected an even number of channels, got {head_dim}");
    }
    if !(theta > 0.0 && theta.is_finite()) {
        bail!("{op}: expected theta above 0, got {theta}");
    }
    allocation::check(op, &[head_dim / 2], size_of::<f64>())?;
    Ok((0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect())
}

/// The cosines and sines, each times `factor`, of the angles at these positions: (positions, frequencies).
///
/// They are computed and rounded on the CPU: Metal has no `f64`.
pub(crate) fn tables(
    op: &str,
    (frequencies, factor): (&[f64], f64),
    positions: impl ExactSizeIterator<Item = usize> + Clone,
    (dtype, device): (DType, &Device),
) -> Result<(Tensor, Tensor)> {
    let len = positions.len();
    // Two tables in `f64` while they are computed.
    allocation::check(op, &[len, frequencies.len()], 2 * size_of::<f64>())?;
    let table = |f: fn(f64) -> f64| {
        let angles = positions.clone().flat_map(|t| frequencies.iter().map(move |angle| t as f64 * angle));
        let values: Vec<f64> = angles.map(|angle| factor * f(angle)).collect();
        Tensor::from_vec(values, (len, frequencies.len()), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_like_reference, randn};
    use candle_core::Var;

    fn values(x: &Tensor) -> Vec<f64> {
        x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f64 {
        values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    /// The reference on tables of the dtype of `x`.
    fn with(op: Rotate, x: &Tensor, tables: &[Tensor; 2], pairs: RotaryPairs) -> Result<Tensor> {
        op(x, &tables[0].to_dtype(x.dtype())?, &tables[1].to_dtype(x.dtype())?, pairs)
    }
    type Rotate = fn(&Tensor, &Tensor, &Tensor, RotaryPairs) -> Result<Tensor>;

    const BOTH: [RotaryPairs; 2] = [RotaryPairs::Halves, RotaryPairs::Neighbours];

    #[test]
    fn the_kernel_is_the_reference() {
        for [b, t, h, d] in [[1, 1, 1, 2], [2, 7, 3, 10], [3, 131, 5, 34], [1, 5, 1, 20_014], [2, 3, 0, 4]] {
            let tables = [randn(2, &[t, d / 2]), randn(3, &[t, d / 2])];
            for pairs in BOTH {
                let fused = |x: &[Tensor]| with(heads_last, &x[0], &tables, pairs);
                let reference = |x: &[Tensor]| with(reference::rotary, &x[0], &tables, pairs);
                let label = format!("rotary {pairs:?} {:?}", [b, t, h, d]);
                assert_like_reference(&label, &[randn(1, &[b, t, h, d])], &fused, &reference);
            }
        }
    }

    /// Each sequence at positions of its own, with and without kernels.
    #[test]
    fn tables_of_each_sequence_are_its_own() {
        for [b, t, h, d] in [[2, 7, 3, 10], [3, 131, 5, 34], [5, 1, 2, 6]] {
            let (x, tables) = (randn(1, &[b, t, h, d]), [2, 3].map(|seed| randn(seed, &[b, t, d / 2])));
            for pairs in BOTH {
                let fused = |x: &[Tensor]| with(heads_last, &x[0], &tables, pairs);
                let reference = |x: &[Tensor]| with(reference::rotary, &x[0], &tables, pairs);
                let label = format!("rotary {pairs:?} {:?}", [b, t, h, d]);
                assert_like_reference(&label, std::slice::from_ref(&x), &fused, &reference);
                for i in 0..b {
                    let one = |x: &Tensor| x.narrow(0, i, 1).unwrap();
                    let own = [0, 1].map(|j| tables[j].get(i).unwrap());
                    let alone = with(heads_last, &one(&x), &own, pairs).unwrap();
                    assert_eq!(difference(&one(&with(heads_last, &x, &tables, pairs).unwrap()), &alone), 0.0);
                }
            }
        }
    }

    /// 4096 ones: in half precision a running sum stops at 256 (bf16) or 2048 (f16).
    #[test]
    fn gradients_of_tables_in_half_precision_are_summed_in_f32() {
        let t = 3;
        for (dtype, shape) in
            [DType::BF16, DType::F16].into_iter().flat_map(|dtype| [(dtype, vec![t, 1]), (dtype, vec![64, t, 1])])
        {
            let table =
                |value: f32| Tensor::full(value, shape.as_slice(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let (cos, sin) = (Var::from_tensor(&table(1.0)).unwrap(), Var::from_tensor(&table(0.0)).unwrap());
            let h = if shape.len() == 2 { 64 } else { 4096 };
            let first = Tensor::ones((64, t, h, 1), dtype, &Device::Cpu).unwrap();
            let xs = Tensor::cat(&[&first, &first.zeros_like().unwrap()], 3).unwrap();
            let ys = heads_last(&xs, &cos, &sin, RotaryPairs::Halves).unwrap();
            assert_eq!(ys.dtype(), dtype);
            let gradients = (ys * &xs).unwrap().sum_all().unwrap().backward().unwrap();
            let expected = vec![4096.0; shape.iter().product()];
            assert_eq!(values(gradients.get(&cos).unwrap()), expected, "{dtype:?} {shape:?}");
        }
    }

    /// A slice of a packed projection, heads before positions, channels apart; rows of longer tables.
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
                let fused = |x: &[Tensor]| with(heads_last, &view(&x[0])?, &tables, pairs);
                let reference = |x: &[Tensor]| with(reference::rotary, &view(&x[0])?, &tables, pairs);
                assert_like_reference("rotary of a view", &[randn(1, shape)], &fused, &reference);
            }
        }
    }

    #[test]
    fn tracked_tables_have_gradients() {
        let xs = randn(1, &[2, 7, 3, 10]).to_dtype(DType::F32).unwrap();
        let [cos, sin] =
            [2, 3].map(|seed| Var::from_tensor(&randn(seed, &[7, 5]).to_dtype(DType::F32).unwrap()).unwrap());
        for pairs in BOTH {
            for (cos, sin, var) in
                [(cos.as_tensor(), &sin.as_detached_tensor(), &cos), (&cos.as_detached_tensor(), sin.as_tensor(), &sin)]
            {
                let gradients = heads_last(&xs, cos, sin, pairs).unwrap().sum_all().unwrap().backward().unwrap();
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
        assert!(difference(&heads_last(&xs, &cos, &sin, RotaryPairs::Halves).unwrap(), &halves) < 1e-14);
        let neighbours = candle_nn::rotary_emb::rope_i_slow(&heads_first, &cos, &sin).unwrap().transpose(1, 2).unwrap();
        assert!(difference(&heads_last(&xs, &cos, &sin, RotaryPairs::Neighbours).unwrap(), &neighbours) < 1e-14);
    }

    /// The other order of heads and positions, where they agree in number too, and with positions of each sequence.
    #[test]
    fn the_layout_says_which_dimension_has_the_positions() {
        for [b, t, h, d] in [[2, 7, 3, 10], [2, 5, 5, 6]] {
            let xs = randn(1, &[b, t, h, d]);
            let heads_first = xs.transpose(1, 2).unwrap();
            for shape in [&[t, d / 2][..], &[b, t, d / 2]] {
                let (cos, sin) = (randn(2, shape), randn(3, shape));
                let expected = rotary(&xs, &cos, &sin, RotaryPairs::Halves, QkvLayout::Bthd).unwrap();
                let got = rotary(&heads_first, &cos, &sin, RotaryPairs::Halves, QkvLayout::Bhtd).unwrap();
                assert_eq!(got.dims(), [b, h, t, d]);
                assert_eq!(difference(&got.transpose(1, 2).unwrap(), &expected), 0.0);
                if t == h {
                    let wrong = rotary(&heads_first, &cos, &sin, RotaryPairs::Halves, QkvLayout::Bthd).unwrap();
                    assert!(difference(&wrong.transpose(1, 2).unwrap(), &expected) > 0.1);
                }
            }
        }
    }

    /// The point of rotary positions: the product of a query and a key depends only on the distance of their positions.
    #[test]
    fn scores_depend_on_distances() {
        let (q, k) = (randn(1, &[1, 1, 1, 6]), randn(2, &[1, 1, 1, 6]));
        for pairs in BOTH {
            let score = |t: usize, s: usize| {
                let rotated = |x: &Tensor, at: usize| {
                    let (cos, sin) = rotary_tables(10_000.0, 6, at, 1, x).unwrap();
                    heads_last(x, &cos, &sin, pairs).unwrap()
                };
                (rotated(&q, t) * rotated(&k, s)).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
            };
            assert!((score(5, 2) - score(1005, 1002)).abs() < 1e-10);
            assert!((score(5, 2) - score(5, 3)).abs() > 1e-3);
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let xs = randn(1, &[2, 7, 3, 10]);
        let (cos, sin) = rotary_tables(10_000.0, 10, 0, 6, &xs).unwrap();
        let error = heads_last(&xs, &cos, &sin, RotaryPairs::Halves).unwrap_err().to_string();
        assert!(error.contains("rotary: expected cos of shape [7, 5] or [2, 7, 5], got [6, 5]"), "{error}");
        let (cos, sin) = rotary_tables(10_000.0, 10, 0, 7, &xs).unwrap();
        let own = Tensor::stack(&[&sin, &sin], 0).unwrap();
        let error = heads_last(&xs, &cos, &own, RotaryPairs::Halves).unwrap_err().to_string();
        assert!(error.contains("rotary: expected cos and sin of one shape, got [7, 5] and [2, 7, 5]"), "{error}");
        let halves = xs.to_dtype(DType::F32).unwrap();
        let error = heads_last(&halves, &cos, &sin, RotaryPairs::Halves).unwrap_err().to_string();
        assert!(error.contains("rotary: expected cos of the dtype F32 of the input, got F64"), "{error}");
        assert!(heads_last(&randn(1, &[2, 7, 3, 5]), &cos, &sin, RotaryPairs::Halves).is_err());
        for (theta, d, start, len, expected) in [
            (1e4, 5, 0, 7, "expected an even number of channels, got 5"),
            (f64::NAN, 4, 0, 7, "expected theta above 0, got NaN"),
            (1e4, 4, usize::MAX, 7, "expected positions that 64 bits can count"),
            (1e4, 4, 0, usize::MAX / 2, "fits into memory, got more bytes than 64 bits count"),
            (1e4, 64, 0, 1 << 47, "fits into memory, got 72057594038 MB"),
        ] {
            let error = rotary_tables(theta, d, start, len, &xs).unwrap_err().to_string();
            assert!(error.contains("rotary-tables") && error.contains(expected), "{error}");
        }
    }
}
