//! The approximate polar factor of a matrix, on slices: its singular vectors with singular values near 1.
//!
//! The iteration of [`super`] runs on the Gram matrix of the shorter side only, which commutes with its polynomials:
//!
//! ```text
//! P = a + b G + c G^2,   Q = Q P,   G = G P^2         starting from Q = 1 and G = X^T X / |X|^2; result X Q / |X|
//! ```
//!
//! All these matrices are symmetric, so only half of each product is computed and then mirrored.

use pulp::{Simd, WithSimd};

use super::{COEFFICIENTS, LEAST_NORM, MARGIN};
use crate::cpu::micro_gemm::{GROUP, Left, ROWS, Right, Target, product};
use crate::cpu::parallel::for_each_chunk;
use crate::cpu::simd::{dispatch, dispatch_vectors};
use crate::cpu::sums::norm_of;
use crate::cpu::transpose::transpose;

/// Replaces a matrix (rows, cols) by its polar factor.
pub(super) fn orthogonalize(xs: &mut [f32], (rows, cols): (usize, usize)) {
    let scale = (1.0 / (norm_of(xs) * MARGIN).max(LEAST_NORM)) as f32;
    let (long, short) = (rows.max(cols), rows.min(cols));
    let side = short.next_multiple_of(GROUP);
    // With the longer side as rows, and columns padded to whole groups.
    let mut tall = vec![0.0; long.next_multiple_of(ROWS) * side];
    match rows >= cols {
        true => copy(xs, cols, cols, &mut tall, side),
        false => transpose(xs, cols, [rows, cols], &mut tall, side),
    }
    dispatch(
        #[inline(always)]
        || tall.iter_mut().for_each(|x| *x *= scale),
    );
    let q = inverse_root(&tall, long, side);
    let mut out = vec![0.0; tall.len()];
    multiply(&mut out, rows_of(&tall, side), &q, side, side, Part::Whole);
    match rows >= cols {
        true => copy(&out, side, cols, xs, cols),
        false => transpose(&out, side, [cols, rows], xs, cols),
    }
}

/// The product of the polynomials: approximately the inverse square root of the Gram matrix of `tall`.
fn inverse_root(tall: &[f32], long: usize, side: usize) -> Vec<f32> {
    let [mut gram, mut polynomial, mut next, mut q] = [(); 4].map(|()| vec![0.0; side * side]);
    multiply(&mut gram, Left { data: tall, row_stride: 1, k_stride: side }, tall, side, long, Part::Symmetric);
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

/// Which part of a product to compute.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Whole,
    /// The lower triangle; the upper one mirrors it.
    Symmetric,
}

/// `c = a b` with rows of `side` elements in `b` and `c`, and `k` rows in `b`.
fn multiply(c: &mut [f32], a: Left, b: &[f32], side: usize, k: usize, part: Part) {
    /// Rows per chunk.
    const ROWS_TOGETHER: usize = 64;
    for_each_chunk(c, ROWS_TOGETHER * side, |piece, c| {
        dispatch_vectors(Rows { c, a, b, side, k, first: piece * ROWS_TOGETHER, part });
    });
    if part == Part::Symmetric {
        mirror(c, side);
    }
}

/// Some rows of a product, starting at row `first`.
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
        // A block of B with this many rows and columns stays in the L1 cache.
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
    for top in (0..side).step_by(GROUP) {
        let (above, below) = xs.split_at_mut(top * side);
        if top > 0 {
            transpose(below, side, [GROUP, top], &mut above[top..], side);
        }
        for (row, column) in (0..GROUP).flat_map(|row| (0..row).map(move |column| (row, column))) {
            below[column * side + top + row] = below[row * side + top + column];
        }
    }
}

/// Copies `columns` columns of a matrix to another; both with their row strides.
fn copy(from: &[f32], from_stride: usize, columns: usize, to: &mut [f32], to_stride: usize) {
    for (to, from) in to.chunks_mut(to_stride).zip(from.chunks(from_stride)) {
        to[..columns].copy_from_slice(&from[..columns]);
    }
}
