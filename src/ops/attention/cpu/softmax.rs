//! From products to weights, for a tile of queries and keys.

use std::ops::Range;

use pulp::Simd;

use super::TILE;
use super::tile::Tile;
use crate::cpu::micro_gemm::{GROUP, ROWS};
use crate::cpu::random::DropoutFactors;
use crate::cpu::simd::{exp, exp_of_negative, tanh};

/// How scores and weights are computed in one head of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Scoring<'a> {
    /// The factor on the dot products.
    pub(super) scale: f32,
    /// `score = cap * tanh(score / cap)`.
    pub(super) softcap: Option<f32>,
    /// The logit of the attention sink.
    pub(super) sink: Option<f32>,
    /// The dropout factors on the weights, and the head's stream.
    pub(super) dropout: Option<(&'a DropoutFactors, u64)>,
}

/// For one query, `weights = exp(score - max) * inv_sum`. Two numbers are more exact than a single log-sum-exp, whose
/// rounding error grows with the scores.
#[derive(Clone, Copy, Default)]
pub(in super::super) struct RowStats {
    /// The highest score, or 0 if the query sees nothing.
    pub(super) max: f32,
    /// One over the sum of the exponentials, or 0 if the query sees nothing.
    pub(super) inv_sum: f32,
}

impl RowStats {
    /// The logarithm of the sum of the exponentials of the scores: minus infinity if the query sees nothing.
    pub(super) fn log_sum_exp(self) -> f32 {
        if self.inv_sum == 0.0 { f32::NEG_INFINITY } else { self.max - self.inv_sum.ln() }
    }
}

/// The running softmax of each query of a tile, over the tiles of keys so far.
pub(super) struct RunningSoftmax {
    /// The highest score.
    max: [f32; TILE],
    /// The sum of the exponentials, relative to it.
    sums: [f32; TILE],
    /// The factor that rescales the sums from before the last tile.
    pub(super) factors: [f32; TILE],
}

impl RunningSoftmax {
    /// Before the first tile: a sink is a score without a value.
    pub(super) fn new(sink: Option<f32>) -> Self {
        let sink = sink.filter(|sink| *sink != f32::NEG_INFINITY);
        let (max, sum) = sink.map_or((f32::NEG_INFINITY, 0.0), |sink| (sink, 1.0));
        Self { max: [max; TILE], sums: [sum; TILE], factors: [1.0; TILE] }
    }

    /// The statistics of a row after all keys.
    pub(super) fn stats(&self, row: usize) -> RowStats {
        match self.sums[row] {
            0.0 => RowStats::default(),
            sum => RowStats { max: self.max[row], inv_sum: 1.0 / sum },
        }
    }
}

/// A finite reference score: if nothing is visible so far, any gives exponentials of 0.
#[inline(always)]
fn finite(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// The columns of a tile, in groups.
pub(super) const COLUMNS: [[u32; GROUP]; TILE / GROUP] = {
    let mut columns = [[0; GROUP]; TILE / GROUP];
    let mut i = 0;
    while i < TILE {
        columns[i / GROUP][i % GROUP] = i as u32;
        i += 1;
    }
    columns
};

/// Turns the products of a query into scores, but for the band, which is returned.
#[inline(always)]
pub(super) fn score(products: &mut [[f32; GROUP]], tile: &Tile, query: usize, softcap: Option<f32>) -> RowBand {
    let products = products.as_flattened_mut();
    if let Some(cap) = softcap {
        products.iter_mut().for_each(|x| *x = cap * tanh(*x / cap));
    }
    let band = tile.band(query - tile.queries.start);
    tile.mask_scores(products, query, &band);
    RowBand(band)
}

/// The columns of a row that its query sees by the band. The scores in others, and in padding, are minus infinity.
pub(super) struct RowBand(pub(super) Range<usize>);

impl RowBand {
    #[inline(always)]
    pub(super) fn apply<S: Simd>(&self, simd: S, score: S::f32s, column: S::u32s) -> S::f32s {
        let (start, len) = (simd.splat_u32s(self.0.start as u32), simd.splat_u32s(self.0.len() as u32));
        let is_seen = simd.less_than_u32s(simd.sub_u32s(column, start), len);
        simd.select_f32s(is_seen, score, simd.splat_f32s(f32::NEG_INFINITY))
    }
}

/// Hides the scores outside the band, and returns the highest, at least `max`. NaN is ignored.
#[inline(always)]
fn highest<S: Simd>(simd: S, scores: &mut [[f32; GROUP]], band: &RowBand, max: f32) -> f32 {
    let mut highest = simd.splat_f32s(max);
    for (scores, columns) in scores.iter_mut().zip(&COLUMNS) {
        for (score, column) in S::as_mut_simd_f32s(scores).0.iter_mut().zip(S::as_simd_u32s(columns).0) {
            *score = band.apply(simd, *score, *column);
            highest = simd.max_f32s(*score, highest);
        }
    }
    simd.reduce_max_f32s(highest)
}

/// Replaces scores by exponentials relative to the highest, and returns their sum.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, scores: &mut [[f32; GROUP]], max: f32) -> f32 {
    let (max, mut sum) = (simd.splat_f32s(finite(max)), simd.splat_f32s(0.0));
    for scores in scores {
        for score in S::as_mut_simd_f32s(scores).0 {
            *score = exp_of_negative(simd, simd.sub_f32s(*score, max));
            sum = simd.add_f32s(sum, *score);
        }
    }
    simd.reduce_sum_f32s(sum)
}

/// The factors of dropout, if any, for the first weights of a query.
#[inline(always)]
pub(super) fn dropout(scoring: Scoring, tile: &Tile, query: usize, columns: usize) -> Option<[f32; TILE]> {
    let (factors, stream) = scoring.dropout?;
    let mut row = [0.0; TILE];
    factors.fill(stream, (query as u64) << 32 | tile.keys.start as u64, &mut row[..columns]);
    Some(row)
}

/// Forward: replaces products by exponentials relative to the highest score so far.
#[inline(always)]
pub(super) fn softmax_tile<S: Simd>(
    simd: S,
    scores: &mut [f32],
    running: &mut RunningSoftmax,
    tile: &Tile,
    scoring: Scoring,
) {
    let (mut max, mut sums) = (running.max, [0.0; TILE]);
    for (first, scores) in (0..tile.queries.len()).step_by(ROWS).zip(scores.chunks_mut(ROWS * TILE)) {
        let rows = first..tile.queries.len().min(first + ROWS);
        let (max, sums) = (&mut max[rows.clone()], &mut sums[rows.clone()]);
        // In versions for each number of groups, so that loops over them are unrolled.
        match tile.computed(first) / GROUP {
            0 => {}
            1 => softmax_rows::<S, 1>(simd, scores, rows, [max, sums], tile, scoring),
            2 => softmax_rows::<S, 2>(simd, scores, rows, [max, sums], tile, scoring),
            3 => softmax_rows::<S, 3>(simd, scores, rows, [max, sums], tile, scoring),
            _ => softmax_rows::<S, 4>(simd, scores, rows, [max, sums], tile, scoring),
        }
    }
    for row in 0..tile.queries.len().next_multiple_of(GROUP) {
        running.factors[row] = exp(running.max[row] - finite(max[row]));
        running.sums[row] = running.sums[row] * running.factors[row] + sums[row];
    }
    running.max = max;
}

/// Some rows of a tile, of which `N` groups of columns are computed, with the highest score so far and the sum of the
/// exponentials of each.
#[inline(always)]
fn softmax_rows<S: Simd, const N: usize>(
    simd: S,
    scores: &mut [f32],
    rows: Range<usize>,
    [max, sums]: [&mut [f32]; 2],
    tile: &Tile,
    scoring: Scoring,
) {
    let query = tile.queries.start + rows.start;
    // Row after row, so that a processor can work on several at once.
    for (i, max) in max.iter_mut().enumerate() {
        let scores = &mut groups_of(scores, i)[..N];
        let band = score(scores, tile, query + i, scoring.softcap);
        *max = highest(simd, scores, &band, *max);
    }
    for (i, (max, sum)) in max.iter().zip(sums).enumerate() {
        let scores = &mut groups_of(scores, i)[..N];
        *sum = exponentials(simd, scores, *max);
        if let Some(factors) = dropout(scoring, tile, query + i, N * GROUP) {
            multiply(scores.as_flattened_mut(), &factors);
        }
    }
}

/// The groups of columns of a row.
#[inline(always)]
pub(super) fn groups_of(rows: &mut [f32], row: usize) -> &mut [[f32; GROUP]] {
    rows[row * TILE..][..TILE].as_chunks_mut().0
}

#[inline(always)]
pub(super) fn multiply(xs: &mut [f32], factors: &[f32]) {
    xs.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
}

const _: () = assert!(TILE.is_multiple_of(GROUP) && TILE.is_multiple_of(ROWS));
