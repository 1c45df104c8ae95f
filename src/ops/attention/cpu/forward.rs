//! The forward pass of one head.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::pack::{Rows, RowsMut, Uninit};
use super::softmax::{RowStats, RunningSoftmax, Scoring, softmax_tile};
use super::tile::{HeadMask, Tile};
use super::{Dims, TILE, padded, tiles};
use crate::cpu::allocation::Buffer;
use crate::cpu::micro_gemm::{Left, Right, Target, product, product_of_nonzero};
use crate::cpu::transpose::transpose;

/// The forward pass over the query heads that share a key-value head.
pub(super) struct Forward {
    dims: Dims,
    /// The sequence and key-value head whose keys and values are packed.
    head: Option<[usize; 2]>,
    /// Of each tile of keys: whether it is packed, and then whether its values are finite.
    tiles: Vec<Option<bool>>,
    k_columns: Buffer,
    v: Buffer,
    /// Keys of a tile.
    rows: Buffer,
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
            head: None,
            tiles: vec![None; s / TILE],
            k_columns: Buffer::zeros(s * d),
            v: Buffer::zeros(s * padded(e)),
            rows: Buffer::zeros(TILE * padded(d)),
            q: Buffer::zeros(TILE * padded(d)),
            out: Buffer::zeros(TILE * padded(e)),
            scores: Buffer::zeros(TILE * TILE),
        }
    }

    /// Turns to a key-value head of a sequence.
    pub(super) fn turn_to(&mut self, head: [usize; 2]) {
        if self.head.replace(head) != Some(head) {
            self.tiles.fill(None);
        }
    }

    /// Packs a tile of keys and values, unless it is packed already. Returns whether the values are finite.
    #[inline(always)]
    fn pack<S: Simd>(&mut self, simd: S, [k, v]: [Rows; 2], tile: usize) -> bool {
        let Dims { s, d, e, .. } = self.dims;
        let keys = tile * TILE..s.min((tile + 1) * TILE);
        if let Some(is_finite) = self.tiles[tile] {
            return is_finite;
        }
        // Keys are read row by row first, as memory likes it.
        k.copy(simd, keys.clone(), d, 1.0, &mut self.rows, padded(d));
        transpose(&self.rows, padded(d), [keys.len(), d], &mut self.k_columns[keys.start * d..], TILE);
        let to = &mut self.v[keys.start * padded(e)..];
        let is_finite = v.copy(simd, keys, e, 1.0, to, padded(e)).is_finite();
        self.tiles[tile] = Some(is_finite);
        is_finite
    }
}

/// Some queries of one head: `out[t] = sum over s of weights[t, s] v[s]`, and what backward needs of each. With
/// `with_lse`, each row of `out` has the log-sum-exp after its channels.
pub(super) struct ForwardHead<'a> {
    pub(super) work: &'a mut Forward,
    pub(super) out: RowsMut<'a, Uninit>,
    pub(super) stats: RowsMut<'a, RowStats>,
    pub(super) queries: Range<usize>,
    pub(super) q: Rows<'a>,
    pub(super) kv: [Rows<'a>; 2],
    pub(super) scoring: Scoring<'a>,
    pub(super) mask: HeadMask<'a>,
    pub(super) with_lse: bool,
}

impl WithSimd for ForwardHead<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { work, mut out, mut stats, queries, q, kv, scoring, mask, with_lse } = self;
        let Dims { s, d, e, .. } = work.dims;
        let (d_stride, e_stride) = (padded(d), padded(e));
        for queries in tiles(queries) {
            let rows = queries.len();
            q.copy(simd, queries.clone(), d, scoring.scale, &mut work.q, d_stride);
            let mut running = RunningSoftmax::new(scoring.sink);
            let mut is_first = true;
            for keys in tiles(mask.sequence.keys(mask.band, &queries, s)) {
                let Some(tile) = Tile::new(mask, queries.clone(), keys.clone()) else { continue };
                let is_finite = work.pack(simd, kv, keys.start / TILE);
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
                match is_finite {
                    true => product(simd, out, weights, v, rows, extent),
                    false => product_of_nonzero(out, weights, v, rows, extent),
                }
                is_first = false;
            }
            if is_first {
                work.out.fill(0.0);
            }
            for (row, query) in queries.enumerate() {
                let of_query = running.stats(row);
                stats.row(query, 1)[0] = of_query;
                out.write(query, &work.out[row * e_stride..][..e], of_query.inv_sum);
                if with_lse {
                    out.row(query, e + 1)[e].write(of_query.log_sum_exp());
                }
            }
        }
    }
}
