//! Matrix products of `f32` slices, through the crate `gemm` or, where asked for, in bf16.

#[cfg(target_arch = "x86_64")]
mod bf16;

use std::cell::Cell;

use candle_core::{Result, bail};
use gemm::Parallelism;

use super::{parallel, simd};

thread_local! {
    static IN_BF16: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with the products of [`linear`](crate::ops::linear) and
/// [`linear_cross_entropy`](crate::ops::linear_cross_entropy), forward and backward, in bf16 where they have kernels: the
/// factors are rounded to bf16, products and sums are `f32`. About 1.8 times as fast as in `f32`; inputs, results and
/// everything else stay in `f32`. Gradients are computed so if `work` computes them. On other devices and dtypes nothing
/// changes.
///
/// # Errors
/// If the processor has no AVX-512 instructions for bf16 (`avx512_bf16`), or they are turned off.
pub fn bf16_products<R>(work: impl FnOnce() -> R) -> Result<R> {
    if !simd::has_bf16() {
        bail!("bf16-products: expected a processor with avx512_bf16, got one without");
    }
    Ok(parallel::with_flag(&IN_BF16, work))
}

/// A matrix in a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `cols` elements, `row_stride` apart.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(fits(data.len(), rows, cols, row_stride), "a matrix reaches past its slice");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Self { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}

/// A matrix to write to, stored by rows.
pub(crate) struct MatrixMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// Rows of `cols` elements, `row_stride` apart.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(row_stride >= cols, "the rows of an output overlap");
        assert!(fits(data.len(), rows, cols, row_stride), "a matrix reaches past its slice");
        Self { data, rows, cols, row_stride }
    }
}

fn fits(len: usize, rows: usize, cols: usize, row_stride: usize) -> bool {
    rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= len
}

/// What happens to the output's previous content.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Output {
    Overwrite,
    Add,
}

/// `out = scale * a b`, or `out += scale * a b`.
pub(crate) fn matmul(out: MatrixMut, output: Output, scale: f32, a: Matrix, b: Matrix) {
    assert!(a.rows == out.rows && b.cols == out.cols, "the sizes of a product do not agree");
    // SAFETY: `MatrixMut::new` has checked that every element the stride reaches lies inside its slice, and `out` is a
    // unique borrow whose rows do not overlap, so no element is written twice at once or read while written.
    unsafe { gemm_into(out.data.as_mut_ptr(), out.row_stride, output, scale, a, b) }
}

/// `a b`, stored by rows, in a new vector that is not filled with zeros first.
pub(crate) fn product(a: Matrix, b: Matrix) -> Vec<f32> {
    let len = a.rows * b.cols;
    if a.cols == 0 {
        return vec![0.0; len];
    }
    let mut out = Vec::with_capacity(len);
    // SAFETY: the vector has room for all rows, stored contiguously, and nobody else has access to it. With `Overwrite`
    // and at least one term to add up, gemm writes every element and reads none.
    unsafe {
        gemm_into(out.as_mut_ptr(), b.cols, Output::Overwrite, 1.0, a, b);
        out.set_len(len);
    }
    out
}

/// The product of `a` and `b`, written or added to rows `row_stride` apart.
///
/// # Safety
/// From `out` to the last of `a.rows` rows of `b.cols` elements, `row_stride` apart, memory must be valid for writes by this
/// call alone, and with [`Output::Add`] the rows must be initialised.
unsafe fn gemm_into(out: *mut f32, row_stride: usize, output: Output, scale: f32, a: Matrix, b: Matrix) {
    assert!(a.cols == b.rows, "the sizes of a product do not agree");
    let (m, n, k) = (a.rows, b.cols, a.cols);
    // Waking threads costs some ten microseconds, as much as this many multiplications.
    const WORTH_SPLITTING: usize = 1 << 20;
    let threads = if m * n * k >= WORTH_SPLITTING { parallel::threads() } else { 1 };
    #[cfg(target_arch = "x86_64")]
    if IN_BF16.get() && m * n * k > 0 {
        // SAFETY: the caller answers for this memory, which need not be initialised.
        let out = unsafe { std::slice::from_raw_parts_mut(out.cast(), (m - 1) * row_stride + n) };
        return bf16::product(out, row_stride, (output, scale), a, b, threads);
    }
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    // SAFETY: the caller answers for `out`; `Matrix::new` has checked that every element the strides of `a` and `b`
    // reach lies inside their slices (a transpose reaches the same elements).
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            row_stride as isize,
            output == Output::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_strided_and_transposed_matrices() {
        // Two rows of three, four apart; three rows of two.
        let a = [1., 2., 3., 0., 4., 5., 6.];
        let b = [1., 0., 0., 1., 2., 2.];
        let mut out = [10.0; 5];
        let (a, b) = (Matrix::new(&a, 2, 3, 4), Matrix::new(&b, 3, 2, 2));
        matmul(MatrixMut::new(&mut out, 2, 2, 3), Output::Overwrite, 1.0, a, b);
        assert_eq!(out, [7., 8., 10., 16., 17.]);
        matmul(MatrixMut::new(&mut out, 2, 2, 3), Output::Add, 0.5, b.t(), a.t());
        assert_eq!(out, [10.5, 16., 10., 20., 25.5]);
    }

    #[test]
    #[should_panic(expected = "past its slice")]
    fn a_matrix_that_reaches_past_its_slice_is_refused() {
        Matrix::new(&[0.0; 5], 2, 3, 3);
    }
}
