//! The backward pass of one head.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::bias::BiasRows;
use super::pack::{Rows, RowsMut, Uninit};
use super::softmax::{RowStats, Scoring};
use super::softmax_backward::{RowGradients, softmax_tile_backward};
use super::tile::{HeadMask, Tile};
use super::{Dims, TILE, padded, tiles};
use crate::cpu::allocation::Buffer;
use crate::cpu::elementwise::zip_update;
use crate::cpu::micro_gemm::{Left, Right, Target, product, product_of_nonzero};
use crate::cpu::simd::sum_of;
use crate::cpu::transpose::transpose;

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
    /// The sequence and key-value head whose keys and values are packed.
    head: Option<[usize; 2]>,
    /// Of each tile of keys that is packed, the largest magnitudes of its keys and of its values.
    tiles: Vec<Option<[f32; 2]>>,
    k: Buffer,
    k_columns: Buffer,
    v_columns: Buffer,
    /// Values of a tile.
    rows: Buffer,
    pub(super) gradients: KvGradients,
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
            head: None,
            tiles: vec![None; s / TILE],
            k: Buffer::zeros(s * padded(d)),
            k_columns: Buffer::zeros(s * d),
            v_columns: Buffer::zeros(s * e),
            rows: Buffer::zeros(TILE * padded(e)),
            gradients: KvGradients { dk: Buffer::zeros(s * padded(d)), dv: Buffer::zeros(s * padded(e)) },
            q: Buffer::zeros(TILE * padded(d)),
            dq: Buffer::zeros(TILE * padded(d)),
            dout: Buffer::zeros(TILE * padded(e)),
            weights: Buffer::zeros(TILE * TILE),
            dscores: Buffer::zeros(TILE * TILE),
        }
    }

    /// Turns to a key-value head of a sequence, with gradients of zero.
    pub(super) fn turn_to(&mut self, head: [usize; 2]) {
        if self.head.replace(head) != Some(head) {
            self.tiles.fill(None);
        }
        self.gradients.dk.fill(0.0);
        self.gradients.dv.fill(0.0);
    }

    /// Packs a tile of keys and values, unless it is packed already. Returns their largest magnitudes.
    #[inline(always)]
    fn pack<S: Simd>(&mut self, simd: S, [k, v]: [Rows; 2], tile: usize) -> [f32; 2] {
        let Dims { s, d, e, .. } = self.dims;
        let keys = tile * TILE..s.min((tile + 1) * TILE);
        if let Some(magnitudes) = self.tiles[tile] {
            return magnitudes;
        }
        let rows = &mut self.k[keys.start * padded(d)..][..keys.len() * padded(d)];
        let of_keys = k.copy(simd, keys.clone(), d, 1.0, rows, padded(d));
        transpose(rows, padded(d), [keys.len(), d], &mut self.k_columns[keys.start * d..], TILE);
        let rows = &mut self.rows[..keys.len() * padded(e)];
        let of_values = v.copy(simd, keys.clone(), e, 1.0, rows, padded(e));
        transpose(rows, padded(e), [keys.len(), e], &mut self.v_columns[keys.start * e..], TILE);
        let magnitudes = [of_keys, of_values];
        self.tiles[tile] = Some(magnitudes);
        magnitudes
    }
}

/// The gradients of the keys and the values of a head.
pub(super) struct KvGradients {
    dk: Buffer,
    dv: Buffer,
}

impl KvGradients {
    /// Adds others to these.
    pub(super) fn add(&mut self, other: &Self) {
        for (sum, other) in [(&mut self.dk, &other.dk), (&mut self.dv, &other.dv)] {
            zip_update(sum, other, |sum, x| sum + x);
        }
    }

    /// Writes them to their places.
    pub(super) fn store(&self, Dims { s, d, e, .. }: Dims, mut dk: RowsMut<Uninit>, mut dv: RowsMut<Uninit>) {
        let rows = self.dk.chunks_exact(padded(d)).zip(self.dv.chunks_exact(padded(e)));
        for (key, (of_key, of_value)) in (0..s).zip(rows) {
            dk.write(key, &of_key[..d], 1.0);
            dv.write(key, &of_value[..e], 1.0);
        }
    }
}

/// Some queries of one head: their gradient, that of their bias, and their contribution to those of keys and values.
pub(super) struct BackwardHead<'a> {
    pub(super) work: &'a mut Backward,
    pub(super) dq: RowsMut<'a, Uninit>,
    pub(super) saved: Saved<'a>,
    pub(super) queries: Range<usize>,
    pub(super) q: Rows<'a>,
    pub(super) kv: [Rows<'a>; 2],
    pub(super) scoring: Scoring<'a>,
    pub(super) mask: HeadMask<'a>,
    pub(super) dbias: Option<BiasRows<'a>>,
}

impl WithSimd for BackwardHead<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { work, mut dq, saved, queries, q, kv, scoring, mask, mut dbias } = self;
        let Dims { s, d, e, .. } = work.dims;
        let (d_stride, e_stride) = (padded(d), padded(e));
        let mut means = [0.0; TILE];
        for queries in tiles(queries) {
            let rows = queries.len();
            let of_queries = q.copy(simd, queries.clone(), d, scoring.scale, &mut work.q, d_stride);
            let of_queries = scoring.scale.abs() * of_queries * d as f32;
            let of_douts = saved.dout.copy(simd, queries.clone(), e, 1.0, &mut work.dout, e_stride) * e as f32;
            for (mean, query) in means.iter_mut().zip(queries.clone()) {
                *mean = saved.mean(query, e);
            }
            let mut is_first = true;
            for keys in tiles(mask.sequence.keys(mask.band, &queries, s)) {
                let Some(tile) = Tile::new(mask, queries.clone(), keys.clone()) else { continue };
                let [of_keys, of_values] = work.pack(simd, kv, keys.start / TILE);
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
                let is_finite = are_tame([of_queries, of_keys]) && are_tame([of_douts, of_values]);
                let row_gradients = RowGradients { stats: saved.stats, means: &means, is_finite };
                let both = [&mut *work.weights, &mut *work.dscores];
                softmax_tile_backward(simd, both, row_gradients, &tile, scoring, dbias.as_mut());
                // Pass 3 again: dv = weights^T dout.
                let dv = Target { data: &mut work.gradients.dv[keys.start * e_stride..], stride: e_stride, adds: true };
                let weights = Left { data: &work.weights, row_stride: 1, k_stride: TILE };
                let dout = Right { data: &work.dout, stride: e_stride };
                let to_values = |key: usize| (e, tile.rows_of(key));
                // Pass 1 again: dq = scale dscores k, dk = dscores^T (scale q).
                let dq = Target { data: &mut work.dq, stride: d_stride, adds: !is_first };
                let dscores = Left { data: &work.dscores, row_stride: TILE, k_stride: 1 };
                let k = Right { data: &work.k[keys.start * d_stride..], stride: d_stride };
                let to_queries = |row: usize| (d, tile.columns_of(row));
                let dk = Target { data: &mut work.gradients.dk[keys.start * d_stride..], stride: d_stride, adds: true };
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
                dq.write(query, &row[..d], scoring.scale);
            }
        }
    }
}
