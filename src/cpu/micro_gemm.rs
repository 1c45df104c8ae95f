//! Products of small matrices that stay in cache, for the tiles of attention and for Muon's iteration.
//!
//! `C(r) += sum over k of A(r, k) B(k)`, where the rows of B and C have columns in groups of [`GROUP`]. A is read one
//! number at a time, with any strides, so no product needs a transposed copy of it. A block of rows of C stays in
//! registers while `k` runs: eight or more vectors, as many as two units for multiply-adds of four cycles keep in flight.

use std::ops::Range;

use pulp::Simd;

/// Rows of C for which the caller says what is needed of the product.
pub(crate) const ROWS: usize = 8;

/// Columns in a group: the lanes of the longest vectors.
pub(crate) const GROUP: usize = 16;

/// `A(r, k) = data[r * row_stride + k * k_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) k_stride: usize,
}

/// B: rows `stride` apart, with whole groups of columns.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
}

/// C: rows `stride` apart, with whole groups of columns and whole blocks of rows.
pub(crate) struct Target<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) stride: usize,
    /// Whether the product is added to the content.
    pub(crate) adds: bool,
}

/// Computes `rows` rows of the product, rounded up to whole blocks. For the block that starts at a row, `extent` gives
/// the number of columns wanted, which is rounded up to whole groups, and the range of `k` outside which A is zero
/// there.
#[inline(always)]
pub(crate) fn product<S: Simd>(
    simd: S,
    c: Target,
    a: Left,
    b: Right,
    rows: usize,
    extent: impl Fn(usize) -> (usize, Range<usize>),
) {
    for row in (0..rows).step_by(ROWS) {
        let (columns, k) = extent(row);
        let a = Left { data: &a.data[row * a.row_stride + k.start * a.k_stride..], ..a };
        let b = Right { data: &b.data[k.start * b.stride..], ..b };
        let mut column = 0;
        while column < columns {
            let b = Right { data: &b.data[column..], ..b };
            let c = Target { data: &mut c.data[row * c.stride + column..], ..c };
            // As fit into registers: in all versions of the code but the first, a constant.
            column += match (S::F32_LANES, (columns - column).div_ceil(GROUP)) {
                (16, 1) => blocks::<S, 8, 1>(simd, c, a, b, k.len()),
                (16, 3) => blocks::<S, 8, 3>(simd, c, a, b, k.len()),
                (16, _) => blocks::<S, 8, 2>(simd, c, a, b, k.len()),
                (8, _) => blocks::<S, 4, 2>(simd, c, a, b, k.len()),
                (4, _) => blocks::<S, 4, 4>(simd, c, a, b, k.len()),
                (_, _) => blocks::<S, 4, 16>(simd, c, a, b, k.len()),
            };
        }
    }
}

/// As [`product`], but leaves out the terms in which A is zero: what B has there, even if it is not finite, has no
/// effect. Many times slower.
pub(crate) fn product_of_nonzero(
    c: Target,
    a: Left,
    b: Right,
    rows: usize,
    extent: impl Fn(usize) -> (usize, Range<usize>),
) {
    for row in 0..rows {
        let (columns, ks) = extent(row / ROWS * ROWS);
        let out = &mut c.data[row * c.stride..][..columns.next_multiple_of(GROUP)];
        if !c.adds {
            out.fill(0.0);
        }
        for (a, k) in ks.map(|k| (a.data[row * a.row_stride + k * a.k_stride], k)).filter(|(a, _)| *a != 0.0) {
            out.iter_mut().zip(&b.data[k * b.stride..]).for_each(|(out, b)| *out += a * b);
        }
    }
}

/// Computes `N` vectors of each of [`ROWS`] rows, `R` rows at a time, and returns the number of columns.
#[inline(always)]
fn blocks<S: Simd, const R: usize, const N: usize>(simd: S, c: Target, a: Left, b: Right, k: usize) -> usize {
    for row in (0..ROWS).step_by(R) {
        let a = Left { data: a.data.get(row * a.row_stride..).unwrap_or_default(), ..a };
        let c = Target { data: &mut c.data[row * c.stride..], ..c };
        block::<S, R, N>(simd, c, a, b, k);
    }
    N * S::F32_LANES
}

/// Computes one block of `R` rows of `N` vectors.
#[inline(always)]
fn block<S: Simd, const R: usize, const N: usize>(simd: S, c: Target, a: Left, b: Right, k: usize) {
    let columns = N * S::F32_LANES;
    let last = |n: usize, stride: usize| (n - 1).saturating_mul(stride);
    if k > 0 {
        assert!(last(R, a.row_stride).saturating_add(last(k, a.k_stride)) < a.data.len(), "A reaches past its data");
        assert!(last(k, b.stride).saturating_add(columns) <= b.data.len(), "B reaches past its data");
    }
    let mut sums = [[simd.splat_f32s(0.0); N]; R];
    for k in 0..k {
        // SAFETY: the row of B ends within its data, as just checked for the last, and vectors are plain numbers.
        let b: [S::f32s; N] = unsafe { b.data.as_ptr().add(k * b.stride).cast::<[S::f32s; N]>().read_unaligned() };
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the highest index, that of the last row and the last k, is within the data, as just checked.
            let a = simd.splat_f32s(unsafe { *a.data.get_unchecked(r * a.row_stride + k * a.k_stride) });
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = simd.mul_add_e_f32s(a, b, *sum);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        let row = &mut c.data[r * c.stride..][..columns];
        for (out, sum) in S::as_mut_simd_f32s(row).0.iter_mut().zip(sums) {
            *out = if c.adds { simd.add_f32s(*out, sum) } else { sum };
        }
    }
}
