//! Sums over whole tensors, for a trainer's gradients.

use candle_core::{DType, Device, Result, Tensor};

use super::elementwise::zip_map;
use super::simd::dispatch;
use super::storage::{has_kernel, values};

/// The Euclidean norm, with squares taken and summed in `f64`.
pub(crate) fn euclidean_norm(tensor: &Tensor) -> Result<f64> {
    let tensor = tensor.contiguous()?;
    if !has_kernel(&[&tensor]) {
        let squares = tensor.to_dtype(DType::F64)?.sqr()?;
        return Ok(squares.sum_all()?.to_scalar::<f64>()?.sqrt());
    }
    Ok(norm_of(&values(&tensor)?))
}

/// The Euclidean norm of a slice.
pub(crate) fn norm_of(values: &[f32]) -> f64 {
    let sum = dispatch(
        #[inline(always)]
        || {
            let mut sums = [0.0f64; 16];
            let chunks = values.chunks_exact(16);
            for (sum, x) in sums.iter_mut().zip(chunks.remainder()) {
                *sum += f64::from(*x) * f64::from(*x);
            }
            for chunk in chunks {
                for (sum, x) in sums.iter_mut().zip(chunk) {
                    *sum += f64::from(*x) * f64::from(*x);
                }
            }
            sums.iter().sum::<f64>()
        },
    );
    sum.sqrt()
}

/// The sum of tensors of equal shape, added in order.
pub(crate) fn add(tensors: &[&Tensor]) -> Result<Tensor> {
    let [first, rest @ ..] = tensors else { candle_core::bail!("add: expected at least one tensor, got none") };
    if let Some(other) = rest.iter().find(|other| other.shape() != first.shape()) {
        candle_core::bail!("add: expected tensors of shape {:?}, got {:?}", first.dims(), other.dims());
    }
    if !has_kernel(tensors) {
        return rest.iter().try_fold((*first).clone(), |sum, tensor| sum + *tensor);
    }
    let [first, second, rest @ ..] = tensors else { return Ok((*first).clone()) };
    let contiguous = [first.contiguous()?, second.contiguous()?];
    let mut sum = zip_map(&values(&contiguous[0])?, &values(&contiguous[1])?, |a, b| a + b);
    for tensor in rest {
        let tensor = tensor.contiguous()?;
        let tensor = values(&tensor)?;
        dispatch(
            #[inline(always)]
            || sum.iter_mut().zip(&*tensor).for_each(|(sum, x)| *sum += x),
        );
    }
    Tensor::from_vec(sum, first.shape(), &Device::Cpu)
}
