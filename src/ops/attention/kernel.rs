//! Attention and its gradients, on slices: tile by tile, with memory linear in the number of positions.
//!
//! One head of keys and values is copied into the layouts that the tile products need, and serves all query heads that
//! share it. Each of these is processed in tiles of [`TILE`] queries and keys. Forward keeps two numbers per query,
//! from which backward recomputes the weights of a tile, as in FlashAttention (Dao et al. 2022, arXiv:2205.14135).
//! Tiles in which nothing is allowed are never computed, and of the others only the blocks that some query sees.

use pulp::{Simd, WithSimd};

use super::rows::{Rows, RowsMut, tiles};
use super::scores::{Online, Scoring, Softmax, TILE, Tile};
use super::visible::Visible;
use crate::cpu::block_product::{GROUP, Left, Right, Target, product};
use crate::cpu::simd::{dispatch, dispatch_vectors, sum_of};

/// Queries (T) and keys (S) of a sequence, channels of queries and keys (D) and of values (E).
#[derive(Clone, Copy)]
pub(super) struct Dims {
    pub(super) t: usize,
    pub(super) s: usize,
    pub(super) d: usize,
    pub(super) e: usize,
}

/// Channels, rounded up to whole groups.
fn padded(channels: usize) -> usize {
    channels.next_multiple_of(GROUP)
}

/// The forward pass over the query heads that share a key-value head.
pub(super) struct Forward {
    dims: Dims,
    k_columns: Vec<f32>,
    v: Vec<f32>,
    q: Vec<f32>,
    out: Vec<f32>,
    scores: Vec<f32>,
}

impl Forward {
    /// Allocates buffers for heads of these sizes.
    pub(super) fn new(dims: Dims) -> Self {
        let Dims { s, d, e, .. } = dims;
        let s = s.next_multiple_of(TILE);
        Self {
            dims,
            k_columns: vec![0.0; s * d],
            v: vec![0.0; s * padded(e)],
            q: vec![0.0; TILE * padded(d)],
            out: vec![0.0; TILE * padded(e)],
            scores: vec![0.0; TILE * TILE],
        }
    }

    /// Loads a key-value head.
    pub(super) fn load(&mut self, k: Rows, v: Rows) {
        let Dims { s, d, e, .. } = self.dims;
        dispatch(
            #[inline(always)]
            || {
                k.copy_columns(s, d, &mut self.k_columns);
                v.copy(0..s, e, 1.0, &mut self.v, padded(e));
            },
        );
    }

    /// Processes a query head: `out[t] = sum over s of weights[t, s] v[s]`, and what backward needs of each query.
    pub(super) fn head<V: Visible>(
        &mut self,
        out: RowsMut,
        softmax: &mut [Softmax],
        q: Rows,
        scoring: Scoring,
        visible: &V,
    ) {
        dispatch_vectors(ForwardHead { work: self, out, softmax, q, scoring, visible });
    }
}

struct ForwardHead<'a, V> {
    work: &'a mut Forward,
    out: RowsMut<'a>,
    softmax: &'a mut [Softmax],
    q: Rows<'a>,
    scoring: Scoring<'a>,
    visible: &'a V,
}

impl<V: Visible> WithSimd for ForwardHead<'_, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { work, mut out, softmax, q, scoring, visible } = self;
        let Dims { t, s, d, e } = work.dims;
        let (d_stride, e_stride) = (padded(d), padded(e));
        for queries in tiles(0..t) {
            let rows = queries.len();
            q.copy(queries.clone(), d, scoring.scale, &mut work.q, d_stride);
            let mut online = Online::new();
            work.out.fill(0.0);
            for keys in tiles(visible.keys(&queries, s)) {
                let tile = Tile { queries: queries.clone(), keys: keys.clone(), scoring, visible };
                // Pass 1: scores.
                let scores = Target { data: &mut work.scores, stride: TILE, adds: false };
                let q = Left { data: &work.q, row_stride: d_stride, k_stride: 1 };
                let k = Right { data: &work.k_columns[keys.start * d..], stride: TILE };
                product(simd, scores, q, k, rows, |row| (tile.reach(row), 0..d));
                // Pass 2: exponentials, relative to the highest score so far; earlier sums are rescaled.
                tile.weigh_online(&mut work.scores, &mut online);
                for (out, factor) in work.out.chunks_exact_mut(e_stride).zip(online.factors) {
                    if factor != 1.0 {
                        out.iter_mut().for_each(|x| *x *= factor);
                    }
                }
                // Pass 3: the weighted sum of the values.
                let out = Target { data: &mut work.out, stride: e_stride, adds: true };
                let weights = Left { data: &work.scores, row_stride: TILE, k_stride: 1 };
                let v = Right { data: &work.v[keys.start * e_stride..], stride: e_stride };
                product(simd, out, weights, v, rows, |row| (e, 0..tile.reach(row)));
            }
            for (row, query) in queries.enumerate() {
                softmax[query] = online.softmax(row);
                let factor = softmax[query].factor;
                for (out, x) in out.row(query, e).iter_mut().zip(&work.out[row * e_stride..]) {
                    *out = x * factor;
                }
            }
        }
    }
}

/// What forward kept of one head, and the gradient of its output.
#[derive(Clone, Copy)]
pub(super) struct Saved<'a> {
    pub(super) out: Rows<'a>,
    pub(super) dout: Rows<'a>,
    pub(super) softmax: &'a [Softmax],
}

/// The backward pass over the query heads that share a key-value head; accumulates the gradients of the latter.
pub(super) struct Backward {
    dims: Dims,
    k: Vec<f32>,
    k_columns: Vec<f32>,
    v_columns: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    q: Vec<f32>,
    dq: Vec<f32>,
    dout: Vec<f32>,
    weights: Vec<f32>,
    dscores: Vec<f32>,
}

impl Backward {
    /// Allocates buffers for heads of these sizes.
    pub(super) fn new(dims: Dims) -> Self {
        let Dims { s, d, e, .. } = dims;
        let s = s.next_multiple_of(TILE);
        Self {
            dims,
            k: vec![0.0; s * padded(d)],
            k_columns: vec![0.0; s * d],
            v_columns: vec![0.0; s * e],
            dk: vec![0.0; s * padded(d)],
            dv: vec![0.0; s * padded(e)],
            q: vec![0.0; TILE * padded(d)],
            dq: vec![0.0; TILE * padded(d)],
            dout: vec![0.0; TILE * padded(e)],
            weights: vec![0.0; TILE * TILE],
            dscores: vec![0.0; TILE * TILE],
        }
    }

    /// Loads a key-value head.
    pub(super) fn load(&mut self, k: Rows, v: Rows) {
        let Dims { s, d, e, .. } = self.dims;
        self.dk.fill(0.0);
        self.dv.fill(0.0);
        dispatch(
            #[inline(always)]
            || {
                k.copy(0..s, d, 1.0, &mut self.k, padded(d));
                k.copy_columns(s, d, &mut self.k_columns);
                v.copy_columns(s, e, &mut self.v_columns);
            },
        );
    }

    /// Processes a query head: its gradient, and its contribution to those of keys and values.
    pub(super) fn head<V: Visible>(&mut self, dq: RowsMut, saved: Saved, q: Rows, scoring: Scoring, visible: &V) {
        dispatch_vectors(BackwardHead { work: self, dq, saved, q, scoring, visible });
    }

    /// Writes the gradient of the loaded keys.
    pub(super) fn store_dk(&self, mut dk: RowsMut) {
        let Dims { s, d, .. } = self.dims;
        dk.fill(&self.dk[..s * padded(d)], padded(d), d);
    }

    /// Writes the gradient of the loaded values.
    pub(super) fn store_dv(&self, mut dv: RowsMut) {
        let Dims { s, e, .. } = self.dims;
        dv.fill(&self.dv[..s * padded(e)], padded(e), e);
    }
}

struct BackwardHead<'a, V> {
    work: &'a mut Backward,
    dq: RowsMut<'a>,
    saved: Saved<'a>,
    q: Rows<'a>,
    scoring: Scoring<'a>,
    visible: &'a V,
}

impl<V: Visible> WithSimd for BackwardHead<'_, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { work, mut dq, saved, q, scoring, visible } = self;
        let Dims { t, s, d, e } = work.dims;
        let (d_stride, e_stride) = (padded(d), padded(e));
        let mut dots = [0.0; TILE];
        for queries in tiles(0..t) {
            let rows = queries.len();
            q.copy(queries.clone(), d, scoring.scale, &mut work.q, d_stride);
            saved.dout.copy(queries.clone(), e, 1.0, &mut work.dout, e_stride);
            // The gradient of a row's softmax subtracts the weighted mean of dweights, which is dout . out.
            for (dot, query) in dots.iter_mut().zip(queries.clone()) {
                *dot = sum_of(saved.dout.row(query, e), saved.out.row(query, e), |dout, out| dout * out);
            }
            work.dq.fill(0.0);
            for keys in tiles(visible.keys(&queries, s)) {
                let tile = Tile { queries: queries.clone(), keys: keys.clone(), scoring, visible };
                // In forward, pass 1: scores = (scale q) k^T.
                let scores = Target { data: &mut work.weights, stride: TILE, adds: false };
                let q = Left { data: &work.q, row_stride: d_stride, k_stride: 1 };
                let k = Right { data: &work.k_columns[keys.start * d..], stride: TILE };
                product(simd, scores, q, k, rows, |row| (tile.reach(row), 0..d));
                // Pass 3 was out = weights v: dweights = dout v^T.
                let dweights = Target { data: &mut work.dscores, stride: TILE, adds: false };
                let dout = Left { data: &work.dout, row_stride: e_stride, k_stride: 1 };
                let v = Right { data: &work.v_columns[keys.start * e..], stride: TILE };
                product(simd, dweights, dout, v, rows, |row| (tile.reach(row), 0..e));
                // Pass 2 was weights = softmax(scores).
                tile.weigh_again(&mut work.weights, &mut work.dscores, saved.softmax, &dots);
                // Pass 3 again: dv = weights^T dout.
                let dv = Target { data: &mut work.dv[keys.start * e_stride..], stride: e_stride, adds: true };
                let weights = Left { data: &work.weights, row_stride: 1, k_stride: TILE };
                let dout = Right { data: &work.dout, stride: e_stride };
                product(simd, dv, weights, dout, keys.len(), |key| (e, tile.first_row(key)..rows));
                // Pass 1 again: dq = scale dscores k, dk = dscores^T (scale q).
                let dq = Target { data: &mut work.dq, stride: d_stride, adds: true };
                let dscores = Left { data: &work.dscores, row_stride: TILE, k_stride: 1 };
                let k = Right { data: &work.k[keys.start * d_stride..], stride: d_stride };
                product(simd, dq, dscores, k, rows, |row| (d, 0..tile.reach(row)));
                let dk = Target { data: &mut work.dk[keys.start * d_stride..], stride: d_stride, adds: true };
                let dscores = Left { data: &work.dscores, row_stride: 1, k_stride: TILE };
                let q = Right { data: &work.q, stride: d_stride };
                product(simd, dk, dscores, q, keys.len(), |key| (d, tile.first_row(key)..rows));
            }
            for (query, row) in queries.zip(work.dq.chunks_exact(d_stride)) {
                for (dq, x) in dq.row(query, d).iter_mut().zip(row) {
                    *dq = x * scoring.scale;
                }
            }
        }
    }
}
