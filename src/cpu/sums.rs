//! Sums over whole tensors and over rows, in an order that does not depend on threads.

use candle_core::{D, DType, Device, Result, Tensor};

use super::elementwise::zip_map;
use super::parallel::{CHUNK, for_each_chunk};
use super::simd::dispatch;
use super::storage::{has_kernel, precise, values};

/// Elements of a block. Sums over elements are taken block by block, and the sums of the blocks added in order: so
/// their bits do not depend on how the blocks are divided among threads or processes.
pub(crate) const BLOCK: usize = 4096;

/// Rows of a block of [`sum_rows`].
pub(crate) const ROWS: usize = 32;

/// The sum of some values, in the order of blocks.
pub(crate) fn sum(values: &[f64]) -> f64 {
    values.chunks(BLOCK).map(|block| block.iter().sum::<f64>()).sum()
}

/// The Euclidean norm, with squares taken and summed in `f64`.
pub(crate) fn euclidean_norm(tensor: &Tensor) -> Result<f64> {
    let tensor = tensor.contiguous()?;
    // Also where second derivatives are wanted: a norm has none.
    if tensor.dtype() == DType::F32 && tensor.device().is_cpu() {
        return Ok(norm_of(&values(&tensor)?));
    }
    let inner = if tensor.device().is_cpu() { DType::F64 } else { precise(tensor.dtype()) };
    Ok(total(&tensor.to_dtype(inner)?.sqr()?)?.sqrt())
}

/// The sum of all elements: of rows in the tensor's dtype and on its device, of their sums in `f64` on the CPU, since not
/// every device has `f64`.
pub(crate) fn total(tensor: &Tensor) -> Result<f64> {
    let rows = if tensor.rank() == 0 { tensor.clone() } else { tensor.sum(D::Minus1)? };
    let rows: Vec<f64> = rows.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    Ok(sum(&rows))
}

/// The Euclidean norm of a slice.
pub(crate) fn norm_of(values: &[f32]) -> f64 {
    block_sums_of_squares(values).iter().sum::<f64>().sqrt()
}

/// The sums of the squares of each block.
pub(crate) fn block_sums_of_squares(values: &[f32]) -> Vec<f64> {
    const TOGETHER: usize = CHUNK / BLOCK;
    let mut blocks = vec![0.0; values.len().div_ceil(BLOCK)];
    for_each_chunk(&mut blocks, TOGETHER, |piece, sums| {
        let blocks = values[piece * TOGETHER * BLOCK..].chunks(BLOCK);
        sums.iter_mut().zip(blocks).for_each(|(sum, block)| *sum = sum_of_squares(block));
    });
    blocks
}

fn sum_of_squares(block: &[f32]) -> f64 {
    dispatch(
        #[inline(always)]
        || {
            let mut sums = [0.0f64; 16];
            let chunks = block.chunks_exact(16);
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
    )
}

/// The sum of `rows` rows of `c` numbers, of which `add` adds the one of an index to its second argument.
///
/// Rows are added in order in short blocks, and the sums of the blocks in pairs, those sums in pairs again, and so on: a
/// running sum would lose what a long sum adds to it.
#[inline(always)]
pub(crate) fn sum_rows(rows: usize, c: usize, add: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let c = c.max(1);
    let mut sums = vec![0.0; rows.div_ceil(ROWS).max(1) * c];
    let together = (CHUNK / (ROWS * c)).max(1);
    for_each_chunk(&mut sums, together * c, |piece, sums| {
        dispatch(
            #[inline(always)]
            || {
                for (block, sum) in (piece * together..).zip(sums.chunks_exact_mut(c)) {
                    (block * ROWS..rows.min((block + 1) * ROWS)).for_each(|row| add(row, sum));
                }
            },
        );
    });
    dispatch(
        #[inline(always)]
        || {
            let mut distance = c;
            while distance < sums.len() {
                for pair in sums.chunks_mut(2 * distance).filter(|pair| pair.len() > distance) {
                    let (one, other) = pair.split_at_mut(distance);
                    one[..c].iter_mut().zip(&other[..c]).for_each(|(one, other)| *one += other);
                }
                distance *= 2;
            }
        },
    );
    sums.truncate(c);
    sums
}

/// `a + b`, of equal shape and without a graph.
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape() != b.shape() {
        candle_core::bail!("add: expected tensors of one shape, got {:?} and {:?}", a.dims(), b.dims());
    }
    if !has_kernel(&[a, b]) {
        return a.detach() + b.detach();
    }
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let sum = zip_map(&values(&a)?, &values(&b)?, |a, b| a + b);
    Tensor::from_vec(sum, a.shape(), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{randn, without_kernels};

    /// Beside 1e16 a 1 is lost, two together are not.
    #[test]
    fn values_are_added_in_blocks_and_blocks_in_order() {
        let mut values = vec![0.0; 2 * BLOCK + 1];
        (values[0], values[2 * BLOCK]) = (1e16, -1e16);
        (values[BLOCK], values[BLOCK + 1]) = (1.0, 1.0);
        assert_eq!(sum(&values), 2.0);
        (values[BLOCK - 1], values[BLOCK]) = (1.0, 0.0);
        assert_eq!(sum(&values), 0.0);
    }

    /// Also over many blocks, a last one that is not full, and a view that is not contiguous.
    #[test]
    fn a_norm_is_that_of_the_squares_in_f64() {
        for shape in [[1, 1], [3, 5], [67, 200], [100, 131]] {
            let xs = randn(1, &shape).to_dtype(DType::F32).unwrap();
            let squares = xs.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap();
            let expected = squares.to_scalar::<f64>().unwrap().sqrt();
            for xs in [&xs, &xs.t().unwrap()] {
                let got = euclidean_norm(xs).unwrap();
                // All terms are positive: each of the n additions rounds once, and the root halves the relative error.
                let allowed = expected * f64::EPSILON * xs.elem_count() as f64 / 2.0;
                assert!((got - expected).abs() <= allowed, "{shape:?}: {got}, expected {expected} ± {allowed:e}");
                // With second derivatives too, as on several processes.
                assert_eq!(without_kernels(|| euclidean_norm(xs)).unwrap(), got);
            }
        }
    }

    /// In `f32`, where a running sum over all elements would lose a hundredth.
    #[test]
    fn a_total_is_that_of_rows_in_the_dtype_and_of_their_sums_in_f64() {
        for shape in [&[][..], &[7], &[1000, 1000], &[3, 1, 5]] {
            let elements = shape.iter().product::<usize>() as f64;
            let got = total(&Tensor::full(0.1f32, shape, &Device::Cpu).unwrap()).unwrap();
            let expected = elements * f64::from(0.1f32);
            assert!((got / expected - 1.0).abs() < 1e-5, "{shape:?}: {got}, expected {expected}");
        }
    }

    #[test]
    fn a_sum_of_two_has_no_graph_and_one_shape() {
        let [a, b] = [1, 2].map(|seed| randn(seed, &[3, 5]).to_dtype(DType::F32).unwrap());
        let a = candle_core::Var::from_tensor(&a).unwrap();
        let sum = add(&a, &b).unwrap();
        assert!(!sum.track_op());
        assert_eq!(sum.to_vec2::<f32>().unwrap(), (a.as_tensor() + &b).unwrap().to_vec2::<f32>().unwrap());
        let error = add(&a, &b.t().unwrap()).unwrap_err().to_string();
        assert!(error.contains("add: expected tensors of one shape, got [3, 5] and [5, 3]"), "{error}");
    }
}
