//! `y = x W^T + b` and its gradients, on slices.

use crate::cpu::few_rows::{self, Layer, MAX_ROWS};
use crate::cpu::matmul::{Matrix, MatrixMut, Output, in_bf16, matmul, product};
use crate::cpu::sums::sum_rows;

/// Sizes: rows of the input (all leading dimensions), input channels, output channels.
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
pub(super) fn forward(xs: &[f32], weight: &[f32], bias: &[f32], dims: Dims) -> Vec<f32> {
    let Dims { rows, in_dim, out_dim } = dims;
    if rows <= MAX_ROWS && in_dim > 0 && !in_bf16() {
        let mut ys = vec![0.0; rows * out_dim];
        few_rows::linear(&mut ys, false, xs, rows, &[Layer { weight, bias }]);
        return ys;
    }
    let (xs, weight) = (Matrix::new(xs, rows, in_dim, in_dim), Matrix::new(weight, out_dim, in_dim, in_dim));
    if bias.is_empty() {
        return product(xs, weight.t());
    }
    // The product is added to the bias, not the other way round: one pass less.
    let mut ys = bias.repeat(rows);
    matmul(MatrixMut::new(&mut ys, rows, out_dim, out_dim), Output::Add, 1.0, xs, weight.t());
    ys
}

/// `dxs = dys W`, as `ys = xs W^T`.
pub(super) fn backward_input(dys: &[f32], weight: &[f32], dims: Dims) -> Vec<f32> {
    let Dims { rows, in_dim, out_dim } = dims;
    product(Matrix::new(dys, rows, out_dim, out_dim), Matrix::new(weight, out_dim, in_dim, in_dim))
}

/// `dW = dys^T xs`, as `ys = xs W^T`.
pub(super) fn backward_weight(dys: &[f32], xs: &[f32], dims: Dims) -> Vec<f32> {
    let Dims { rows, in_dim, out_dim } = dims;
    product(Matrix::new(dys, rows, out_dim, out_dim).t(), Matrix::new(xs, rows, in_dim, in_dim))
}

/// `dbias = sum over rows of dys`, as `ys = .. + bias`.
pub(super) fn backward_bias(dys: &[f32], dims: Dims) -> Vec<f32> {
    let Dims { rows, out_dim, .. } = dims;
    sum_rows(
        rows,
        out_dim,
        #[inline(always)]
        |row, sums| sums.iter_mut().zip(&dys[row * out_dim..]).for_each(|(sum, dy)| *sum += dy),
    )
}
