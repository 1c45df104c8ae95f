//! The forward pass of one head.

use pulp::{Simd, WithSimd};

use super::pack::{Rows, RowsMut};
use super::softmax::{RowStats, RunningSoftmax, Scoring, softmax_tile};
use super::tile::{HeadMask, Tile};
use super::{Dims, TILE, padded, tiles};
use crate::cpu::allocation::Buffer;
use crate::cpu::micro_gemm::{Left, Right, Target, product, product_of_nonzero};
use crate::cpu::simd::{dispatch, dispatch_vectors};

/// The forward pass over the query heads that share a key-value head.
pub(super) struct Forward {
    dims: Dims,
    k_columns: Buffer,
    v: Buffer,
    /// For each tile, whether its values are finite.
    v_is_finite: Vec<bool>,
    q: Buffer,
    out: Buffer,
    scores: Buffer,
}

impl Forward {
    /// Allocates buffers for heads of these sizes.
    pub(super) fn new(dims: Dims) -> Self {
        let Dims { s, d, e, .. } = dims;
        let s = s.next_multiple_of(TILE);
        Self {
            dims,
            k_columns: Buffer::zeros(s * d),
            v: Buffer::zeros(s * padded(e)),
            v_is_finite: vec![true; s / TILE],
            q: Buffer::zeros(TILE * padded(d)),
            out: Buffer::zeros(TILE * padded(e)),
            scores: Buffer::zeros(TILE * TILE),
        }
    }

    /// Loads a key-value head.
    pub(super) fn load(&mut self, k: Rows, v: Rows) {
        let Dims { s, d, e, .. } = self.dims;
        dispatch(
            #[inline(always)]
            || {
                for (keys, is_finite) in tiles(0..s).zip(&mut self.v_is_finite) {
                    k.copy_columns(keys.clone(), d, &mut self.k_columns[keys.start * d..][..TILE * d]);
                    let to = &mut self.v[keys.start * padded(e)..];
                    *is_finite = v.copy(keys, e, 1.0, to, padded(e)).is_finite();
                }
            },
        );
    }

    /// Processes a query head: `out[t] = sum over s of weights[t, s] v[s]`, and what backward needs of each query. With
    /// `with_lse`, each row of `out` has the log-sum-exp after its channels.
    pub(super) fn head(
        &mut self,
        out: RowsMut,
        stats: &mut [RowStats],
        q: Rows,
        scoring: Scoring,
        mask: HeadMask,
        with_lse: bool,
    ) {
        dispatch_vectors(ForwardHead { work: self, out, stats, q, scoring, mask, with_lse });
    }
}

struct ForwardHead<'a> {
    work: &'a mut Forward,
    out: RowsMut<'a>,
    stats: &'a mut [RowStats],
    q: Rows<'a>,
    scoring: Scoring<'a>,
    mask: HeadMask<'a>,
    with_lse: bool,
}

impl WithSimd for ForwardHead<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { work, mut out, stats, q, scoring, mask, with_lse } = self;
        let Dims { t, s, d, e } = work.dims;
        let (d_stride, e_stride) = (padded(d), padded(e));
        for queries in tiles(0..t) {
            let rows = queries.len();
            q.copy(queries.clone(), d, scoring.scale, &mut work.q, d_stride);
            let mut running = RunningSoftmax::new(scoring.sink);
            let mut is_first = true;
            for keys in tiles(mask.sequence.keys(mask.band, &queries, s)) {
                let Some(tile) = Tile::new(mask, queries.clone(), keys.clone()) else { continue };
                // Pass 1: scores.
                let scores = Target { data: &mut work.scores, stride: TILE, adds: false };
                let q = Left { data: &work.q, row_stride: d_stride, k_stride: 1 };
                let k = Right { data: &work.k_columns[keys.start * d..], stride: TILE };
                product(simd, scores, q, k, rows, |row| (tile.columns_of(row).end, 0..d));
                // Pass 2: exponentials, relative to the highest score so far; earlier sums are rescaled.
                softmax_tile(simd, &mut work.scores, &mut running, &tile, scoring);
                if !is_first {
                    for (out, factor) in work.out.chunks_exact_mut(e_stride).zip(running.factors) {
                        if factor != 1.0 {
                            out.iter_mut().for_each(|x| *x *= factor);
                        }
                    }
                }
                // Pass 3: the weighted sum of the values.
                let out = Target { data: &mut work.out, stride: e_stride, adds: !is_first };
                let weights = Left { data: &work.scores, row_stride: TILE, k_stride: 1 };
                let v = Right { data: &work.v[keys.start * e_stride..], stride: e_stride };
                let extent = |row: usize| (e, tile.columns_of(row));
                match work.v_is_finite[keys.start / TILE] {
                    true => product(simd, out, weights, v, rows, extent),
                    false => product_of_nonzero(out, weights, v, rows, extent),
                }
                is_first = false;
            }
            if is_first {
                work.out.fill(0.0);
            }
            for (row, query) in queries.enumerate() {
                stats[query] = running.stats(row);
                let inv_sum = stats[query].inv_sum;
                for (out, x) in out.row(query, e).iter_mut().zip(&work.out[row * e_stride..]) {
                    *out = x * inv_sum;
                }
                if with_lse {
                    out.row(query, e + 1)[e] = stats[query].log_sum_exp();
                }
            }
        }
    }
}
