//! `y = x W^T + b` and its gradients, on slices.

use crate::ops::matmul::{Matrix, MatrixMut, Output, matmul};
use crate::ops::simd;

/// Sizes: rows of the input (all leading dimensions), their channels, those of the output.
#[derive(Clone, Copy)]
pub(super) struct Dims {
    pub(super) rows: usize,
    pub(super) in_dim: usize,
    pub(super) out_dim: usize,
}

impl Dims {
    /// From the shapes of the input (.., I) and the weight (O, I).
    pub(super) fn new(xs: &[usize], weight: &[usize]) -> Self {
        Self { rows: xs[..xs.len() - 1].iter().product(), in_dim: weight[1], out_dim: weight[0] }
    }
}

/// `ys = xs W^T + bias`; an empty bias is none.
pub(super) fn forward(ys: &mut [f32], xs: &[f32], weight: &[f32], bias: &[f32], dims: Dims) {
    let Dims { rows, in_dim, out_dim } = dims;
    // The product adds to the bias instead of the other way round: one pass less.
    let output = if bias.is_empty() { Output::Overwrite } else { Output::Add };
    if !bias.is_empty() {
        ys.chunks_exact_mut(out_dim).for_each(|row| row.copy_from_slice(bias));
    }
    let (xs, weight) = (Matrix::new(xs, rows, in_dim, in_dim), Matrix::new(weight, out_dim, in_dim, in_dim));
    matmul(MatrixMut::new(ys, rows, out_dim, out_dim), output, 1.0, xs, weight.t());
}

/// `dxs = dys W`, as `ys = xs W^T`.
pub(super) fn backward_input(dxs: &mut [f32], dys: &[f32], weight: &[f32], dims: Dims) {
    let Dims { rows, in_dim, out_dim } = dims;
    let (dys, weight) = (Matrix::new(dys, rows, out_dim, out_dim), Matrix::new(weight, out_dim, in_dim, in_dim));
    matmul(MatrixMut::new(dxs, rows, in_dim, in_dim), Output::Overwrite, 1.0, dys, weight);
}

/// `dW = dys^T xs`, as `ys = xs W^T`.
pub(super) fn backward_weight(dweight: &mut [f32], dys: &[f32], xs: &[f32], dims: Dims) {
    let Dims { rows, in_dim, out_dim } = dims;
    let (dys, xs) = (Matrix::new(dys, rows, out_dim, out_dim), Matrix::new(xs, rows, in_dim, in_dim));
    matmul(MatrixMut::new(dweight, out_dim, in_dim, in_dim), Output::Overwrite, 1.0, dys.t(), xs);
}

/// `dbias = sum over rows of dys`, as `ys = .. + bias`.
pub(super) fn backward_bias(dbias: &mut [f32], dys: &[f32]) {
    let out_dim = dbias.len().max(1);
    simd::dispatch(
        #[inline(always)]
        || {
            for row in dys.chunks_exact(out_dim) {
                for (sum, dy) in dbias.iter_mut().zip(row) {
                    *sum += dy;
                }
            }
        },
    );
}
