//! Matrix products of `f32` slices, through the crate `gemm`.

use std::cell::RefCell;

use gemm::Parallelism;

use super::parallel;
use super::transpose::transpose;

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

/// `gemm` transposes what is not stored by rows slowly. From this many rows of the result on, copying it by blocks is
/// faster.
const WORTH_TRANSPOSING: usize = 8;

/// About the elements of a block, which stays in the L2 cache.
const TRANSPOSED_LEN: usize = 128 * 1024;

/// Columns of a block: whole vectors for gemm.
const COLUMNS: usize = 64;

thread_local! {
    static TRANSPOSED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The product of `a` and `b`, written or added to rows `row_stride` apart.
///
/// # Safety
/// For each of `a.rows` rows, `b.cols` elements from `out + row * row_stride` on must be valid for writes by this call
/// alone, and with [`Output::Add`] initialised.
unsafe fn gemm_into(out: *mut f32, row_stride: usize, output: Output, scale: f32, a: Matrix, b: Matrix) {
    assert!(a.cols == b.rows, "the sizes of a product do not agree");
    let (m, n, k) = (a.rows, b.cols, a.cols);
    // Waking threads costs some ten microseconds, as much as this many multiplications.
    const WORTH_SPLITTING: usize = 1 << 20;
    let parallelism = match parallel::threads() {
        threads if threads > 1 && m * n * k >= WORTH_SPLITTING => Parallelism::Rayon(threads),
        _ => Parallelism::None,
    };
    if b.row_stride != 1 || m < WORTH_TRANSPOSING || !matches!(parallelism, Parallelism::None) {
        // SAFETY: the caller answers for `out`.
        return unsafe { gemm_call(out, row_stride, output, scale, a, b, parallelism) };
    }
    TRANSPOSED.with_borrow_mut(|transposed| {
        let columns = (TRANSPOSED_LEN / k.max(1)).next_multiple_of(COLUMNS);
        for first in (0..n).step_by(columns) {
            let columns = columns.min(n - first);
            let stride = columns.next_multiple_of(16) + 16;
            transposed.resize(transposed.len().max(k * stride), 0.0);
            transpose(&b.data[first * b.col_stride..], b.col_stride, [columns, k], transposed, stride);
            let b = Matrix::new(transposed, k, columns, stride);
            // SAFETY: the caller answers for `out`, of which these are some columns.
            unsafe { gemm_call(out.add(first), row_stride, output, scale, a, b, Parallelism::None) };
        }
    });
}

unsafe fn gemm_call(
    out: *mut f32,
    row_stride: usize,
    output: Output,
    scale: f32,
    a: Matrix,
    b: Matrix,
    parallelism: Parallelism,
) {
    // SAFETY: the caller answers for `out`; `Matrix::new` has checked that every element the strides of `a` and `b`
    // reach lies inside their slices (a transpose reaches the same elements).
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
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
