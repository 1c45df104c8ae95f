//! The polar factor of a matrix, on slices: its singular vectors with singular values near 1.
//!
//! The iteration of [`super`] is done on the Gram matrix of the shorter side alone, which commutes with its polynomials:
//!
//! ```text
//! P = a + b G + c G^2,   Q = Q P,   G = G P^2         from Q = 1 and G = X^T X / |X|^2, at last X Q / |X|
//! ```
//!
//! All these matrices are symmetric, so that half of each product is computed and mirrored.

use pulp::{Simd, WithSimd};

use super::{COEFFICIENTS, LEAST_NORM, MARGIN};
use crate::ops::block_product::{GROUP, Left, ROWS, Right, Target, product};
use crate::ops::parallel::for_each_chunk;
use crate::ops::simd::{dispatch, dispatch_vectors};
use crate::ops::sums::norm_of;

/// Of a matrix (rows, cols), in its place.
pub(super) fn orthogonalize(xs: &mut [f32], (rows, cols): (usize, usize)) {
    let scale = (1.0 / (norm_of(xs) * MARGIN).max(LEAST_NORM)) as f32;
    let (long, short) = (rows.max(cols), rows.min(cols));
    let side = short.next_multiple_of(GROUP);
    // Of its own strides in `xs`, the matrix is upright here: its columns are those of the shorter side.
    let (long_stride, short_stride) = if rows >= cols { (cols, 1) } else { (1, cols) };
    let mut upright = vec![0.0; long.next_multiple_of(ROWS) * side];
    transfer(&mut upright, (side, 1), xs, (long_stride, short_stride), (long, short), scale);

    let q = inverse_root(&upright, long, side);
    let mut out = vec![0.0; upright.len()];
    multiply(&mut out, rows_of(&upright, side), &q, side, side, Part::Whole);
    transfer(xs, (long_stride, short_stride), &out, (side, 1), (long, short), 1.0);
}

/// The product of the polynomials: near the inverse of the root of the Gram matrix of `upright`.
fn inverse_root(upright: &[f32], long: usize, side: usize) -> Vec<f32> {
    let [mut gram, mut polynomial, mut next, mut q] = [(); 4].map(|()| vec![0.0; side * side]);
    multiply(&mut gram, Left { data: upright, row_stride: 1, k_stride: side }, upright, side, long, Part::Symmetric);
    for (i, coefficients) in COEFFICIENTS.iter().enumerate() {
        let [a, b, c] = coefficients.map(|coefficient| coefficient as f32);
        multiply(&mut polynomial, rows_of(&gram, side), &gram, side, side, Part::Symmetric);
        dispatch(
            #[inline(always)]
            || polynomial.iter_mut().zip(&gram).for_each(|(square, gram)| *square = b * gram + c * *square),
        );
        polynomial.iter_mut().step_by(side + 1).for_each(|diagonal| *diagonal += a);
        if i == 0 {
            q.copy_from_slice(&polynomial);
        } else {
            multiply(&mut next, rows_of(&q, side), &polynomial, side, side, Part::Symmetric);
            std::mem::swap(&mut q, &mut next);
        }
        if i + 1 < COEFFICIENTS.len() {
            multiply(&mut next, rows_of(&gram, side), &polynomial, side, side, Part::Symmetric);
            multiply(&mut gram, rows_of(&next, side), &polynomial, side, side, Part::Symmetric);
        }
    }
    q
}

fn rows_of(data: &[f32], row_stride: usize) -> Left<'_> {
    Left { data, row_stride, k_stride: 1 }
}

/// What of a product is to be computed.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Whole,
    /// The lower triangle, which the upper one mirrors.
    Symmetric,
}

/// `c = a b` with rows of `side` elements in `b` and `c`, and `k` rows in `b`.
fn multiply(c: &mut [f32], a: Left, b: &[f32], side: usize, k: usize, part: Part) {
    /// Rows a piece of work.
    const ROWS_TOGETHER: usize = 64;
    for_each_chunk(c, ROWS_TOGETHER * side, |piece, c| {
        dispatch_vectors(Rows { c, a, b, side, k, first: piece * ROWS_TOGETHER, part });
    });
    if part == Part::Symmetric {
        mirror(c, side);
    }
}

/// Some rows of a product, from the row `first` on.
struct Rows<'a> {
    c: &'a mut [f32],
    a: Left<'a>,
    b: &'a [f32],
    side: usize,
    k: usize,
    first: usize,
    part: Part,
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { c, a, b, side, k, first, part } = self;
        // A part of B of so many rows and columns stays in the first cache.
        const K_TOGETHER: usize = 64;
        const COLUMNS_TOGETHER: usize = 64;
        let a = Left { data: &a.data[first * a.row_stride..], ..a };
        let rows = c.len() / side;
        for k_start in (0..k).step_by(K_TOGETHER) {
            let k = k_start..k.min(k_start + K_TOGETHER);
            for column in (0..side).step_by(COLUMNS_TOGETHER) {
                let (b, c) = (Right { data: &b[column..], stride: side }, &mut c[column..]);
                let c = Target { data: c, stride: side, adds: k_start > 0 };
                let width = side.min(column + COLUMNS_TOGETHER) - column;
                let columns = |row: usize| match part {
                    Part::Whole => width,
                    Part::Symmetric => (first + row + ROWS).next_multiple_of(GROUP).saturating_sub(column).min(width),
                };
                product(simd, c, a, b, rows, |row| (columns(row), k.clone()));
            }
        }
    }
}

/// Copies the lower triangle onto the upper one.
fn mirror(xs: &mut [f32], side: usize) {
    // By squares, whose lines all stay in the first cache.
    for top in (0..side).step_by(GROUP) {
        for left in (0..=top).step_by(GROUP) {
            for row in top..top + GROUP {
                for column in left..row.min(left + GROUP) {
                    xs[column * side + row] = xs[row * side + column];
                }
            }
        }
    }
}

/// `to[i, j] = scale from[i, j]` for matrices of any strides.
fn transfer(
    to: &mut [f32],
    (to_row, to_column): (usize, usize),
    from: &[f32],
    (from_row, from_column): (usize, usize),
    (rows, columns): (usize, usize),
    scale: f32,
) {
    for top in (0..rows).step_by(GROUP) {
        for left in (0..columns).step_by(GROUP) {
            for row in top..rows.min(top + GROUP) {
                for column in left..columns.min(left + GROUP) {
                    to[row * to_row + column * to_column] = scale * from[row * from_row + column * from_column];
                }
            }
        }
    }
}
