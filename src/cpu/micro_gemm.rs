//! Products of small matrices that stay in cache, for the tiles of attention and for Muon's iteration.
//!
//! `C(r) += sum over k of A(r, k) B(k)`, where the rows of B and C have columns in groups of [`GROUP`]. A is read one
//! number at a time, with any strides, so no product needs a transposed copy of it. A block of [`ROWS`] rows of C stays
//! in registers while `k` runs.

use std::ops::Range;

use pulp::Simd;

/// Rows of C in a block.
pub(crate) const ROWS: usize = 4;

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
            // As many groups at once as fit into registers: in all versions of the code but the first, a constant.
            column += match (S::F32_LANES, (columns - column).div_ceil(GROUP)) {
                (16, 1) => block::<S, 1>(simd, c, a, b, k.len()),
                (16, 2) => block::<S, 2>(simd, c, a, b, k.len()),
                (16, 3) => block::<S, 3>(simd, c, a, b, k.len()),
                (16, _) => block::<S, 4>(simd, c, a, b, k.len()),
                (8, _) => block::<S, 2>(simd, c, a, b, k.len()),
                (4, _) => block::<S, 4>(simd, c, a, b, k.len()),
                (_, _) => block::<S, 16>(simd, c, a, b, k.len()),
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

/// Computes one block of `N` vectors per row, and returns its number of columns.
#[inline(always)]
fn block<S: Simd, const N: usize>(simd: S, c: Target, a: Left, b: Right, k: usize) -> usize {
    let columns = N * S::F32_LANES;
    let mut sums = [[simd.splat_f32s(0.0); N]; ROWS];
    for k in 0..k {
        let b = &S::as_simd_f32s(&b.data[k * b.stride..][..columns]).0[..N];
        for (r, sums) in sums.iter_mut().enumerate() {
            let a = simd.splat_f32s(a.data[r * a.row_stride + k * a.k_stride]);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = simd.mul_add_e_f32s(a, *b, *sum);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        let row = &mut c.data[r * c.stride..][..columns];
        for (out, sum) in S::as_mut_simd_f32s(row).0.iter_mut().zip(sums) {
            *out = if c.adds { simd.add_f32s(*out, sum) } else { sum };
        }
    }
    columns
}
