//! Attention and its gradients, on slices: tile by tile, with memory linear in the number of positions.
//!
//! One head of one sequence is worked through in tiles of [`TILE`] queries and keys. Forward keeps two numbers for each
//! query, from which backward recomputes a tile's weights, as FlashAttention does (Dao et al. 2022, arXiv:2205.14135).
//! Tiles in which nothing is allowed are never computed.

use std::ops::Range;

use super::visible::Visible;
use crate::ops::matmul::{Matrix, MatrixMut, Output, matmul};
use crate::ops::simd::{dispatch, exp, max_of, sum_of};

/// Queries and keys of a tile: its scores stay in the first cache.
const TILE: usize = 64;

/// Queries (T) and keys (S) of a sequence, channels of queries and keys (D) and of values (E).
#[derive(Clone, Copy)]
pub(super) struct Dims {
    pub(super) t: usize,
    pub(super) s: usize,
    pub(super) d: usize,
    pub(super) e: usize,
}

/// Of one query: `weights = exp(score - highest) * factor`. Kept apart they are more exact than in one logarithm of the
/// sum, whose rounding grows with the scores.
#[derive(Clone, Copy, Default)]
pub(super) struct Softmax {
    /// The highest score, or 0 if the query sees nothing.
    highest: f32,
    /// One over the sum of the exponentials, or 0 if the query sees nothing.
    factor: f32,
}

/// The rows of one head: `len` channels each, `stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
}

impl<'a> Rows<'a> {
    fn tile(self, rows: &Range<usize>, len: usize) -> Matrix<'a> {
        Matrix::new(&self.data[rows.start * self.stride..], rows.len(), len, self.stride)
    }

    fn row(self, i: usize, len: usize) -> &'a [f32] {
        &self.data[i * self.stride..i * self.stride + len]
    }
}

/// The rows of one head, to write to.
pub(super) struct RowsMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) stride: usize,
}

impl RowsMut<'_> {
    fn tile(&mut self, rows: &Range<usize>, len: usize) -> MatrixMut<'_> {
        MatrixMut::new(&mut self.data[rows.start * self.stride..], rows.len(), len, self.stride)
    }

    fn row(&mut self, i: usize, len: usize) -> &mut [f32] {
        &mut self.data[i * self.stride..i * self.stride + len]
    }
}

fn tiles(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    (range.start / TILE * TILE..end).step_by(TILE).map(move |start| start..end.min(start + TILE))
}

/// One head: `out[t] = sum over s of weights[t, s] v[s]`, and what backward needs of each query.
pub(super) fn forward(
    mut out: RowsMut,
    softmax: &mut [Softmax],
    [q, k, v]: [Rows; 3],
    scale: f32,
    visible: &impl Visible,
    dims: Dims,
) {
    let Dims { t, s, d, e } = dims;
    let mut scores = [0.0; TILE * TILE];
    for queries in tiles(0..t) {
        let (mut highest, mut sums) = ([f32::NEG_INFINITY; TILE], [0.0; TILE]);
        let mut output = Output::Overwrite;
        for keys in tiles(visible.keys(&queries, s)) {
            // Pass 1: scores.
            let tile = MatrixMut::new(&mut scores, queries.len(), keys.len(), TILE);
            matmul(tile, Output::Overwrite, scale, q.tile(&queries, d), k.tile(&keys, d).t());
            hide(&mut scores, &queries, &keys, visible);
            // Pass 2: exponentials, relative to the highest score so far; what was summed before shrinks with it.
            for (i, query) in queries.clone().enumerate() {
                let row = &mut scores[i * TILE..i * TILE + keys.len()];
                let factor = exponentiate(row, &mut highest[i], &mut sums[i]);
                if output == Output::Add && factor != 1.0 {
                    out.row(query, e).iter_mut().for_each(|x| *x *= factor);
                }
            }
            // Pass 3: the weighted sum of the values.
            let weights = Matrix::new(&scores, queries.len(), keys.len(), TILE);
            matmul(out.tile(&queries, e), output, 1.0, weights, v.tile(&keys, e));
            output = Output::Add;
        }
        for (i, query) in queries.enumerate() {
            // A query that sees nothing has a sum of 0, and its output is 0.
            let is_empty = sums[i] == 0.0;
            let factor = if is_empty { 0.0 } else { 1.0 / sums[i] };
            softmax[query] = Softmax { highest: if is_empty { 0.0 } else { highest[i] }, factor };
            match output {
                Output::Add => out.row(query, e).iter_mut().for_each(|x| *x *= factor),
                Output::Overwrite => out.row(query, e).fill(0.0),
            }
        }
    }
}

/// Turns a row of scores into exponentials relative to the highest so far, and adds them to the sum. Returns the factor
/// by which what was added up before has shrunk.
fn exponentiate(row: &mut [f32], highest: &mut f32, sum: &mut f32) -> f32 {
    let before = *highest;
    dispatch(
        #[inline(always)]
        || {
            let now = max_of(row).max(before);
            // Nothing allowed so far: any finite reference gives exponentials of 0.
            let reference = if now == f32::NEG_INFINITY { 0.0 } else { now };
            for x in row.iter_mut() {
                *x = exp(*x - reference);
            }
            let factor = if before == f32::NEG_INFINITY { 0.0 } else { exp(before - reference) };
            *sum = *sum * factor + sum_of(row, row, |x, _| x);
            *highest = now;
            factor
        },
    )
}

/// Puts minus infinity where a query does not see a key.
fn hide(scores: &mut [f32], queries: &Range<usize>, keys: &Range<usize>, visible: &impl Visible) {
    if visible.all(queries, keys) {
        return;
    }
    for (i, query) in queries.clone().enumerate() {
        let row = &mut scores[i * TILE..i * TILE + keys.len()];
        for (score, key) in row.iter_mut().zip(keys.clone()) {
            if !visible.sees(query, key) {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// Where the rows of a gradient lie in a buffer.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) offset: usize,
    pub(super) stride: usize,
}

impl Place {
    fn tile<'a>(self, data: &'a mut [f32], rows: &Range<usize>, len: usize) -> MatrixMut<'a> {
        MatrixMut::new(&mut data[self.offset + rows.start * self.stride..], rows.len(), len, self.stride)
    }

    /// Copies contiguous rows of `len` elements to this place.
    pub(super) fn fill(self, data: &mut [f32], rows: &[f32], len: usize) {
        for (i, row) in rows.chunks_exact(len).enumerate() {
            data[self.offset + i * self.stride..][..len].copy_from_slice(row);
        }
    }
}

/// The gradients of queries, keys and values in one buffer, since they may be interleaved there.
pub(super) struct Gradients<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) places: [Place; 3],
}

/// What forward left, and the gradient of its output.
#[derive(Clone, Copy)]
pub(super) struct Saved<'a> {
    pub(super) out: Rows<'a>,
    pub(super) dout: Rows<'a>,
    pub(super) softmax: &'a [Softmax],
}

/// One head: adds to the gradients of queries, keys and values.
pub(super) fn backward(
    gradients: Gradients,
    saved: Saved,
    [q, k, v]: [Rows; 3],
    scale: f32,
    visible: &impl Visible,
    dims: Dims,
) {
    let Dims { t, s, d, e } = dims;
    let Gradients { data, places: [dq, dk, dv] } = gradients;
    let (mut weights, mut dscores) = ([0.0; TILE * TILE], [0.0; TILE * TILE]);
    let mut dots = [0.0; TILE];
    for queries in tiles(0..t) {
        // The gradient of a row's softmax subtracts the mean of dweights under the weights, which is dout . out.
        for (dot, query) in dots.iter_mut().zip(queries.clone()) {
            let (dout, out) = (saved.dout.row(query, e), saved.out.row(query, e));
            *dot = dispatch(
                #[inline(always)]
                || sum_of(dout, out, |dout, out| dout * out),
            );
        }
        for keys in tiles(visible.keys(&queries, s)) {
            let (rows, cols) = (queries.len(), keys.len());
            // In forward, passes 1 and 2: weights = exp(scale q . k - highest) * factor.
            let tile = MatrixMut::new(&mut weights, rows, cols, TILE);
            matmul(tile, Output::Overwrite, scale, q.tile(&queries, d), k.tile(&keys, d).t());
            hide(&mut weights, &queries, &keys, visible);
            // Pass 3 was out = weights v: dweights = dout v^T, dv = weights^T dout.
            let tile = MatrixMut::new(&mut dscores, rows, cols, TILE);
            matmul(tile, Output::Overwrite, 1.0, saved.dout.tile(&queries, e), v.tile(&keys, e).t());
            for (i, query) in queries.clone().enumerate() {
                let row = i * TILE..i * TILE + cols;
                softmax_backward(&mut dscores[row.clone()], &mut weights[row], saved.softmax[query], dots[i]);
            }
            let w = Matrix::new(&weights, rows, cols, TILE);
            matmul(dv.tile(data, &keys, e), Output::Add, 1.0, w.t(), saved.dout.tile(&queries, e));
            // Pass 1 was scores = scale q k^T: dq = scale dscores k, dk = scale dscores^T q.
            let ds = Matrix::new(&dscores, rows, cols, TILE);
            matmul(dq.tile(data, &queries, d), Output::Add, scale, ds, k.tile(&keys, d));
            matmul(dk.tile(data, &keys, d), Output::Add, scale, ds.t(), q.tile(&queries, d));
        }
    }
}

/// `weights`, which holds scores, becomes the weights; `dscores`, which holds dweights, becomes
/// `weights * (dweights - dot)`.
fn softmax_backward(dscores: &mut [f32], weights: &mut [f32], Softmax { highest, factor }: Softmax, dot: f32) {
    dispatch(
        #[inline(always)]
        || {
            for (dscore, weight) in dscores.iter_mut().zip(weights.iter_mut()) {
                *weight = exp(*weight - highest) * factor;
                *dscore = *weight * (*dscore - dot);
            }
        },
    );
}
