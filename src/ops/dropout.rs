//! Dropout (Srivastava et al. 2014, JMLR 15). The mask is not kept: backward draws it again.

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};

use super::record::{self, Kept};
use crate::cpu::parallel::{CHUNK, for_each_chunk};
use crate::cpu::random::{DropoutFactors, DropoutOptions};
use crate::cpu::simd::dispatch;
use crate::cpu::storage::{has_kernel, slice, values};

/// Sets elements to 0 with probability `rate` and divides the others by `1 - rate`: `xs` (B, ..), the result has its
/// shape.
///
/// Element `i` of sequence `b` is decided by word `i` of stream `first_sequence + b` of the options' key, independently
/// of threads and of the other sequences in the tensor. A rate of 0 returns the input.
///
/// # Errors
/// If the rate is not from 0 to below 1, or the input is a scalar or not floating-point.
///
/// ```
/// use candle_attention::ops::{self, DropoutOptions, RandomKey};
/// use candle_core::{DType, Device, Tensor};
///
/// let xs = Tensor::ones((4, 100), DType::F32, &Device::Cpu)?;
/// let options = DropoutOptions { rate: 0.5, key: RandomKey { seed: 1, step: 2, site: 3 }, first_sequence: 0 };
/// let whole = ops::dropout(&xs, &options)?;
/// let shard = ops::dropout(&xs.narrow(0, 2, 2)?, &DropoutOptions { first_sequence: 2, ..options })?;
/// assert_eq!(shard.to_vec2::<f32>()?, whole.narrow(0, 2, 2)?.to_vec2::<f32>()?);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn dropout(xs: &Tensor, options: &DropoutOptions) -> Result<Tensor> {
    let factors = options.factors()?;
    let Some(&sequences) = xs.dims().first() else {
        bail!("dropout: expected an input of shape (B, ..), got a scalar");
    };
    if !xs.dtype().is_float() {
        bail!("dropout: expected an input of a floating-point dtype, got {:?}", xs.dtype());
    }
    if options.rate == 0.0 || xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let sequence_len = xs.elem_count() / sequences;
    let op = Dropout { factors, first_sequence: options.first_sequence, sequence_len };
    match has_kernel(&[xs]) {
        true => record::apply1(&xs.contiguous()?, op, Kept::Nothing),
        false => op.reference(xs),
    }
}

/// The fused operation. For backward it keeps only the source of its random numbers.
struct Dropout {
    factors: DropoutFactors,
    first_sequence: u64,
    sequence_len: usize,
}

impl Dropout {
    /// The product with a tensor of factors, for any dtype and device.
    fn reference(&self, xs: &Tensor) -> Result<Tensor> {
        let mut factors = vec![0.0; xs.elem_count()];
        self.fill(0, &mut factors);
        xs * Tensor::from_vec(factors, xs.shape(), xs.device())?.to_dtype(xs.dtype())?
    }

    /// `ys = factors xs`. As it is linear, it is also its own backward.
    fn apply(&self, xs: &[f32]) -> Vec<f32> {
        let mut ys = vec![0.0; xs.len()];
        for_each_chunk(&mut ys, CHUNK, |i, ys| {
            self.fill(i * CHUNK, ys);
            let xs = &xs[i * CHUNK..];
            dispatch(
                #[inline(always)]
                || ys.iter_mut().zip(xs).for_each(|(y, x)| *y *= x),
            );
        });
        ys
    }

    /// The factors of the elements from `first` on, counted through all sequences.
    fn fill(&self, mut first: usize, mut out: &mut [f32]) {
        while !out.is_empty() {
            let (sequence, element) = (first / self.sequence_len, first % self.sequence_len);
            let n = out.len().min(self.sequence_len - element);
            let (of_sequence, rest) = out.split_at_mut(n);
            self.factors.fill(self.first_sequence.wrapping_add(sequence as u64), element as u64, of_sequence);
            (first, out) = (first + n, rest);
        }
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.apply(slice(xs, layout)?)), layout.shape().clone()))
    }

    fn bwd(&self, _xs: &Tensor, _ys: &Tensor, dys: &Tensor) -> Result<Option<Tensor>> {
        let dys = dys.contiguous()?;
        let dxs = self.apply(&values(&dys)?);
        Ok(Some(Tensor::from_vec(dxs, dys.shape(), &Device::Cpu)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_like_reference, randn};
    use crate::ops::RandomKey;
    use candle_core::{DType, Var};

    const OPTIONS: DropoutOptions =
        DropoutOptions { rate: 0.3, key: RandomKey { seed: 1, step: 2, site: 3 }, first_sequence: 5 };

    fn values_of(xs: &Tensor) -> Vec<f32> {
        xs.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn the_kernel_is_the_reference() {
        for shape in [&[1][..], &[7], &[3, 13, 5], &[2, 20_011], &[40_009, 1], &[131, 67]] {
            let op = |xs: &Tensor| Dropout {
                factors: OPTIONS.factors().unwrap(),
                first_sequence: 5,
                sequence_len: xs.elem_count() / shape[0],
            };
            let reference = |x: &[Tensor]| op(&x[0]).reference(&x[0]);
            let label = format!("dropout of {shape:?}");
            assert_like_reference(&label, &[randn(1, shape)], &|x| dropout(&x[0], &OPTIONS), &reference);
        }
        let strided = |x: &[Tensor]| dropout(&x[0].transpose(0, 2)?.narrow(0, 3, 6)?, &OPTIONS);
        let copied = |x: &[Tensor]| dropout(&x[0].transpose(0, 2)?.narrow(0, 3, 6)?.contiguous()?, &OPTIONS);
        assert_like_reference("dropout of a view", &[randn(1, &[5, 3, 11])], &strided, &copied);
    }

    #[test]
    fn shards_drop_what_the_whole_drops() {
        let xs = randn(1, &[7, 11, 13]).to_dtype(DType::F32).unwrap();
        let whole = dropout(&xs, &OPTIONS).unwrap();
        for (first, n) in [(0, 3), (3, 4), (6, 1)] {
            let options = DropoutOptions { first_sequence: 5 + first as u64, ..OPTIONS };
            let shard = dropout(&xs.narrow(0, first, n).unwrap(), &options).unwrap();
            assert_eq!(values_of(&shard), values_of(&whole.narrow(0, first, n).unwrap()));
        }
    }

    #[test]
    fn backward_drops_what_forward_dropped() {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let xs = Var::from_tensor(&Tensor::ones((3, 5, 7), dtype, &Device::Cpu).unwrap()).unwrap();
            let ys = dropout(&xs, &OPTIONS).unwrap();
            let gradients = ys.sum_all().unwrap().backward().unwrap();
            assert_eq!(values_of(gradients.get(&xs).unwrap()), values_of(&ys));
            let dropped = values_of(&ys).iter().filter(|y| **y == 0.0).count();
            assert!((15..50).contains(&dropped), "{dropped} of 105");
        }
    }

    #[test]
    fn nothing_dropped_is_the_input() {
        let xs = randn(1, &[3, 5]);
        let same = dropout(&xs, &DropoutOptions { rate: 0.0, ..OPTIONS }).unwrap();
        assert_eq!(same.id(), xs.id());
        let none = Tensor::zeros((0, 5), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(dropout(&none, &OPTIONS).unwrap().dims(), [0, 5]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = |xs: &Tensor, rate: f64| dropout(xs, &DropoutOptions { rate, ..OPTIONS }).unwrap_err().to_string();
        assert!(error(&randn(1, &[3]), 1.0).contains("dropout: expected a rate from 0 to below 1, got 1"));
        assert!(error(&randn(1, &[]), 0.5).contains("dropout: expected an input of shape (B, ..), got a scalar"));
        let ids = Tensor::new(&[1u32, 2], &Device::Cpu).unwrap();
        assert!(error(&ids, 0.5).contains("dropout: expected an input of a floating-point dtype, got U32"));
    }
}
