//! Matrix products of `f32` slices, through the crate `gemm` or, where asked for, in bf16.

#[cfg(target_arch = "x86_64")]
mod bf16;

use std::cell::{Cell, RefCell};
use std::ops::Range;

use candle_core::{Result, bail};
use gemm::Parallelism;

use super::parallel::{for_each_with, threads, with_flag};
use super::simd;
use super::transpose::transpose;

thread_local! {
    static IN_BF16: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with the products of [`linear`](crate::ops::linear) and
/// [`linear_cross_entropy`](crate::ops::linear_cross_entropy), forward and backward, in bf16 where they have kernels: the
/// factors are rounded to bf16 (what is subnormal there counts as 0), products and sums are `f32`; inputs, results and
/// everything else stay in `f32`. Gradients are computed so if `work` computes them. On other devices and dtypes nothing
/// changes.
///
/// # Errors
/// If the processor has no AVX-512 instructions for bf16 (`avx512_bf16`), or they are turned off.
pub fn bf16_products<R>(work: impl FnOnce() -> R) -> Result<R> {
    if !simd::has_bf16() {
        bail!("bf16-products: expected a processor with avx512_bf16, got one without");
    }
    Ok(with_flag(&IN_BF16, work))
}

/// Whether products are taken in bf16 here.
pub(crate) fn in_bf16() -> bool {
    IN_BF16.get()
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

    /// Some of its rows.
    fn of_rows(self, rows: Range<usize>) -> Self {
        Self { data: &self.data[(rows.start * self.row_stride).min(self.data.len())..], rows: rows.len(), ..self }
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
    /// Multiplications that take several times as long as handing them to a thread.
    const WORTH_A_PIECE: usize = 1 << 18;
    let most = match threads() {
        1 => 1,
        // Threads need not be equally fast.
        threads => 2 * threads,
    };
    let (m, n, k) = (a.rows, b.cols, a.cols);
    let wanted = (m * n * k / WORTH_A_PIECE).clamp(1, most);
    #[cfg(target_arch = "x86_64")]
    if in_bf16() && m * n * k > 0 {
        assert!(k == b.rows, "the sizes of a product do not agree");
        // SAFETY: the caller answers for this memory, which need not be initialised.
        let out = unsafe { std::slice::from_raw_parts_mut(out.cast(), (m - 1) * row_stride + n) };
        return bf16::product(out, row_stride, (output, scale), a, b, wanted);
    }
    let pieces = Pieces::new(m, n, k, wanted);
    // SAFETY: that of this function.
    unsafe { in_pieces(&pieces, out, row_stride, output, scale, a, b) }
}

/// As [`gemm_into`], in pieces on all threads.
///
/// # Safety
/// As for [`gemm_into`].
unsafe fn in_pieces(
    pieces: &Pieces,
    out: *mut f32,
    row_stride: usize,
    output: Output,
    scale: f32,
    a: Matrix,
    b: Matrix,
) {
    assert!(a.cols == b.rows, "the sizes of a product do not agree");
    let out = Start(out);
    let work = |i: usize| {
        let (rows, cols) = pieces.get(i);
        let out = out.plus(rows.start * row_stride + cols.start);
        // SAFETY: the caller answers for all elements of `out`, and pieces do not overlap.
        unsafe { piece_into(out, row_stride, output, scale, a.of_rows(rows), b.t().of_rows(cols).t()) }
    };
    for_each_with(pieces.count, || (), |(), i| work(i));
}

/// Where an output starts, for several threads.
#[derive(Clone, Copy)]
struct Start(*mut f32);

// SAFETY: an address; whoever writes there answers for it.
unsafe impl Sync for Start {}

impl Start {
    fn plus(self, elements: usize) -> *mut f32 {
        self.0.wrapping_add(elements)
    }
}

/// What `gemm`'s kernels take at a time, or a multiple of it.
const UNIT: usize = 32;

/// Parts of the rows or of the columns of a product.
struct Pieces {
    rows: usize,
    cols: usize,
    count: usize,
    /// Bounds between pieces are multiples of this.
    unit: usize,
    by_columns: bool,
}

impl Pieces {
    /// Cuts a product of (rows, k) and (k, cols) into at most `wanted` pieces.
    ///
    /// An element has the same bits in a piece as in the whole: `gemm` adds up its `k` terms in the same order, except in a
    /// product of a single row or column, of at most 256 elements, or of at most 64 rows and 64 columns if `k` is above 512
    /// (`gemm_basic_generic` of gemm-common 0.19). Of such a kind is no piece unless the whole is.
    fn new(rows: usize, cols: usize, k: usize, wanted: usize) -> Self {
        let unit = |side: usize, other: usize| match other {
            ..=2 => side.max(1),
            3..=8 => 3 * UNIT,
            9..=64 if k > 512 => 3 * UNIT,
            _ => UNIT,
        };
        let (row_unit, col_unit) = (unit(rows, cols), unit(cols, rows));
        // Each piece packs its part of one matrix and all of the other. `b` is dearer to pack: often a transposed weight.
        let by_columns = cols / col_unit >= wanted.min(rows / row_unit);
        let (side, unit) = if by_columns { (cols, col_unit) } else { (rows, row_unit) };
        Self { rows, cols, count: wanted.min(side / unit).max(1), unit, by_columns }
    }

    /// The rows and columns of a piece: whole units, and in the last one what is left.
    fn get(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let side = if self.by_columns { self.cols } else { self.rows };
        let bound = |i: usize| if i == self.count { side } else { side / self.unit * i / self.count * self.unit };
        let part = bound(i)..bound(i + 1);
        if self.by_columns { (0..self.rows, part) } else { (part, 0..self.cols) }
    }
}

/// `gemm` is slow at transposing what is not stored by rows. From this many rows of the result on, copying it by blocks is
/// faster.
const WORTH_TRANSPOSING: usize = 9;

/// About the elements of a block, which stays in the L2 cache.
const BLOCK: usize = 128 * 1024;

thread_local! {
    static TRANSPOSED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The product of `a` and `b` on this thread.
///
/// # Safety
/// As for [`gemm_into`].
unsafe fn piece_into(out: *mut f32, row_stride: usize, output: Output, scale: f32, a: Matrix, b: Matrix) {
    let (rows, cols, k) = (a.rows, b.cols, b.rows);
    if b.row_stride != 1 || b.col_stride == 1 || rows < WORTH_TRANSPOSING || k == 0 {
        // SAFETY: that of this function.
        return unsafe { call_gemm(out, row_stride, output, scale, a, b) };
    }
    TRANSPOSED.with_borrow_mut(|transposed| {
        // No block is of a kind that the whole is not: see `Pieces::new`.
        let width = (BLOCK / k).next_multiple_of(UNIT).max(3 * UNIT);
        let mut first = 0;
        while first < cols {
            let width = if cols - first < 2 * width { cols - first } else { width };
            // With a stride that is no power of two, rows do not evict one another.
            let stride = width.next_multiple_of(16) + 16;
            transposed.resize(transposed.len().max(k * stride), 0.0);
            transpose(&b.data[first * b.col_stride..], b.col_stride, [width, k], transposed, stride);
            let b = Matrix::new(transposed, k, width, stride);
            // SAFETY: that of this function, of which these are some columns.
            unsafe { call_gemm(out.add(first), row_stride, output, scale, a, b) };
            first += width;
        }
    });
}

/// The product of `a` and `b` by `gemm`.
///
/// # Safety
/// As for [`gemm_into`].
unsafe fn call_gemm(out: *mut f32, row_stride: usize, output: Output, scale: f32, a: Matrix, b: Matrix) {
    // SAFETY: the caller answers for `out`; `Matrix::new` has checked that every element the strides of `a` and `b`
    // reach lies inside their slices (a transpose or a part reaches none but these).
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
            Parallelism::None,
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

    /// Kernels, packing and the split of `k` depend on the sizes that `gemm` is given.
    #[test]
    fn a_product_in_pieces_has_the_bits_of_the_whole() {
        let sides = [1, 2, 3, 8, 9, 31, 64, 65, 97, 193, 300];
        let values: Vec<f32> =
            (0..300 * 1100u32).map(|i| (i.wrapping_mul(2654435761) >> 8) as f32 / 1e7 - 0.8).collect();
        let mut split = 0;
        for (rows, cols) in sides.into_iter().flat_map(|rows| sides.map(|cols| (rows, cols))) {
            for (k, form) in [1, 2, 100, 512, 513, 1100].into_iter().flat_map(|k| [0, 1, 2].map(|form| (k, form))) {
                let whole = |rows: usize, cols: usize| Matrix::new(&values, rows, cols, cols);
                let a = if form == 1 { whole(k, rows).t() } else { whole(rows, k) };
                let b = if form == 2 { whole(cols, k).t() } else { whole(k, cols) };
                let of = |wanted: usize| {
                    let (mut out, pieces) = (vec![0.5f32; rows * cols], Pieces::new(rows, cols, k, wanted));
                    // SAFETY: `out` has these rows, and nobody else access to it.
                    unsafe { in_pieces(&pieces, out.as_mut_ptr(), cols, Output::Add, 0.3, a, b) };
                    (out.into_iter().map(f32::to_bits).collect::<Vec<_>>(), pieces.count)
                };
                let (expected, _) = of(1);
                for wanted in [2, 3, 7, 100] {
                    let (got, count) = of(wanted);
                    split += usize::from(count > 1);
                    assert!(got == expected, "({rows}, {k}) by ({k}, {cols}), form {form}, in {count} pieces");
                }
            }
        }
        assert!(split > 2000, "{split} products were in pieces");
    }

    #[test]
    #[should_panic(expected = "past its slice")]
    fn a_matrix_that_reaches_past_its_slice_is_refused() {
        Matrix::new(&[0.0; 5], 2, 3, 3);
    }
}
