//! The backward pass of one head.

use pulp::{Simd, WithSimd};

use super::bias::BiasRows;
use super::pack::{Rows, RowsMut};
use super::softmax::{RowGradients, RowStats, Scoring, softmax_tile_backward};
use super::tile::{HeadMask, Tile};
use super::{Dims, TILE, padded, tiles};
use crate::cpu::allocation::Buffer;
use crate::cpu::micro_gemm::{Left, Right, Target, product, product_of_nonzero};
use crate::cpu::simd::{dispatch, dispatch_vectors, sum_of};

/// What forward gave for one head, and the gradient of it.
#[derive(Clone, Copy)]
pub(super) struct Saved<'a> {
    pub(super) out: Rows<'a>,
    pub(super) dout: Rows<'a>,
    pub(super) stats: &'a [RowStats],
    pub(super) with_lse: bool,
}

impl Saved<'_> {
    /// The mean of dweights by the weights of a query, which is `dout . out`, less the gradient of its log-sum-exp: what
    /// the gradient of a softmax subtracts.
    #[inline(always)]
    pub(super) fn mean(&self, query: usize, e: usize) -> f32 {
        let mean = sum_of(self.dout.row(query, e), self.out.row(query, e), |dout, out| dout * out);
        if self.with_lse { mean - self.dout.row(query, e + 1)[e] } else { mean }
    }
}

/// Whether products of tensors with these largest magnitudes are finite, and so are they; the first counts the terms of a
/// sum. Without the product, zeros would pass beside what is not finite.
#[inline(always)]
fn are_tame([a, b]: [f32; 2]) -> bool {
    const FAR_BELOW_MAX: f32 = 1e37;
    a < FAR_BELOW_MAX && b < FAR_BELOW_MAX && a * b < FAR_BELOW_MAX
}

/// The backward pass over the query heads that share a key-value head; accumulates the gradients of the latter.
pub(super) struct Backward {
    dims: Dims,
    k: Buffer,
    k_columns: Buffer,
    v_columns: Buffer,
    /// For each tile, the largest magnitudes of its keys and of its values.
    magnitudes: Vec<[f32; 2]>,
    dk: Buffer,
    dv: Buffer,
    q: Buffer,
    dq: Buffer,
    dout: Buffer,
    weights: Buffer,
    dscores: Buffer,
}

impl Backward {
    /// Allocates buffers for heads of these sizes.
    pub(super) fn new(dims: Dims) -> Self {
        let Dims { s, d, e, .. } = dims;
        let s = s.next_multiple_of(TILE);
        Self {
            dims,
            k: Buffer::zeros(s * padded(d)),
            k_columns: Buffer::zeros(s * d),
            v_columns: Buffer::zeros(s * e),
            magnitudes: vec![[0.0; 2]; s / TILE],
            dk: Buffer::zeros(s * padded(d)),
            dv: Buffer::zeros(s * padded(e)),
            q: Buffer::zeros(TILE * padded(d)),
            dq: Buffer::zeros(TILE * padded(d)),
            dout: Buffer::zeros(TILE * padded(e)),
            weights: Buffer::zeros(TILE * TILE),
            dscores: Buffer::zeros(TILE * TILE),
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
                for (keys, magnitudes) in tiles(0..s).zip(&mut self.magnitudes) {
                    let columns = |len: usize| keys.start * len..(keys.start + TILE) * len;
                    k.copy(keys.clone(), d, 1.0, &mut self.k[columns(padded(d))], padded(d));
                    *magnitudes = [
                        k.copy_columns(keys.clone(), d, &mut self.k_columns[columns(d)]),
                        v.copy_columns(keys.clone(), e, &mut self.v_columns[columns(e)]),
                    ];
                }
            },
        );
    }

    /// Processes a query head: its gradient, that of its bias, and its contribution to those of keys and values.
    pub(super) fn head(
        &mut self,
        (dq, q): (RowsMut, Rows),
        saved: Saved,
        scoring: Scoring,
        mask: HeadMask,
        dbias: Option<BiasRows>,
    ) {
        dispatch_vectors(BackwardHead { work: self, dq, saved, q, scoring, mask, dbias });
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

struct BackwardHead<'a> {
    work: &'a mut Backward,
    dq: RowsMut<'a>,
    saved: Saved<'a>,
    q: Rows<'a>,
    scoring: Scoring<'a>,
    mask: HeadMask<'a>,
    dbias: Option<BiasRows<'a>>,
}

impl WithSimd for BackwardHead<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { work, mut dq, saved, q, scoring, mask, mut dbias } = self;
        let Dims { t, s, d, e } = work.dims;
        let (d_stride, e_stride) = (padded(d), padded(e));
        let mut means = [0.0; TILE];
        for queries in tiles(0..t) {
            let rows = queries.len();
            let of_queries = q.copy(queries.clone(), d, scoring.scale, &mut work.q, d_stride);
            let of_queries = scoring.scale.abs() * of_queries * d as f32;
            let of_douts = saved.dout.copy(queries.clone(), e, 1.0, &mut work.dout, e_stride) * e as f32;
            for (mean, query) in means.iter_mut().zip(queries.clone()) {
                *mean = saved.mean(query, e);
            }
            let mut is_first = true;
            for keys in tiles(mask.sequence.keys(mask.band, &queries, s)) {
                let Some(tile) = Tile::new(mask, queries.clone(), keys.clone()) else { continue };
                // In forward, pass 1: scores = (scale q) k^T.
                let scores = Target { data: &mut work.weights, stride: TILE, adds: false };
                let q = Left { data: &work.q, row_stride: d_stride, k_stride: 1 };
                let k = Right { data: &work.k_columns[keys.start * d..], stride: TILE };
                product(simd, scores, q, k, rows, |row| (tile.columns_of(row).end, 0..d));
                // Pass 3 was out = weights v: dweights = dout v^T.
                let dweights = Target { data: &mut work.dscores, stride: TILE, adds: false };
                let dout = Left { data: &work.dout, row_stride: e_stride, k_stride: 1 };
                let v = Right { data: &work.v_columns[keys.start * e..], stride: TILE };
                product(simd, dweights, dout, v, rows, |row| (tile.columns_of(row).end, 0..e));
                // Pass 2 was weights = softmax(scores).
                let [of_keys, of_values] = work.magnitudes[keys.start / TILE];
                let is_finite = are_tame([of_queries, of_keys]) && are_tame([of_douts, of_values]);
                let row_gradients = RowGradients { stats: saved.stats, means: &means, is_finite };
                let both = [&mut *work.weights, &mut *work.dscores];
                softmax_tile_backward(simd, both, row_gradients, &tile, scoring, dbias.as_mut());
                // Pass 3 again: dv = weights^T dout.
                let dv = Target { data: &mut work.dv[keys.start * e_stride..], stride: e_stride, adds: true };
                let weights = Left { data: &work.weights, row_stride: 1, k_stride: TILE };
                let dout = Right { data: &work.dout, stride: e_stride };
                let to_values = |key: usize| (e, tile.rows_of(key));
                // Pass 1 again: dq = scale dscores k, dk = dscores^T (scale q).
                let dq = Target { data: &mut work.dq, stride: d_stride, adds: !is_first };
                let dscores = Left { data: &work.dscores, row_stride: TILE, k_stride: 1 };
                let k = Right { data: &work.k[keys.start * d_stride..], stride: d_stride };
                let to_queries = |row: usize| (d, tile.columns_of(row));
                let dk = Target { data: &mut work.dk[keys.start * d_stride..], stride: d_stride, adds: true };
                let dscores_t = Left { data: &work.dscores, row_stride: 1, k_stride: TILE };
                let q = Right { data: &work.q, stride: d_stride };
                let to_keys = |key: usize| (d, tile.rows_of(key));
                if is_finite {
                    product(simd, dv, weights, dout, keys.len(), to_values);
                    product(simd, dq, dscores, k, rows, to_queries);
                    product(simd, dk, dscores_t, q, keys.len(), to_keys);
                } else {
                    product_of_nonzero(dv, weights, dout, keys.len(), to_values);
                    product_of_nonzero(dq, dscores, k, rows, to_queries);
                    product_of_nonzero(dk, dscores_t, q, keys.len(), to_keys);
                }
                is_first = false;
            }
            if is_first {
                work.dq.fill(0.0);
            }
            for (query, row) in queries.zip(work.dq.chunks_exact(d_stride)) {
                for (dq, x) in dq.row(query, d).iter_mut().zip(row) {
                    *dq = x * scoring.scale;
                }
            }
        }
    }
}
