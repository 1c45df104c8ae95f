//! From scores to weights and back, for a tile of queries and keys.

use super::TILE;
use super::bias::BiasRows;
use super::tile::Tile;
use crate::cpu::micro_gemm::{GROUP, ROWS};
use crate::cpu::random::DropoutFactors;
use crate::cpu::simd::{exp, max_of, sum_of, tanh};

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

/// Turns the products of a query into scores.
#[inline(always)]
fn score(products: &mut [f32], tile: &Tile, query: usize, softcap: Option<f32>) {
    if let Some(cap) = softcap {
        products.iter_mut().for_each(|x| *x = cap * tanh(*x / cap));
    }
    tile.mask_scores(products, query);
}

/// The factors of dropout, if any, for the first weights of a query.
#[inline(always)]
fn dropout(scoring: Scoring, tile: &Tile, query: usize, columns: usize) -> Option<[f32; TILE]> {
    let (factors, stream) = scoring.dropout?;
    let mut row = [0.0; TILE];
    factors.fill(stream, (query as u64) << 32 | tile.keys.start as u64, &mut row[..columns]);
    Some(row)
}

/// Forward: replaces products by exponentials relative to the highest score so far.
#[inline(always)]
pub(super) fn softmax_tile(scores: &mut [f32], running: &mut RunningSoftmax, tile: &Tile, scoring: Scoring) {
    let mut now = running.max;
    for (row, query) in tile.queries.clone().enumerate() {
        let scores = &mut scores[row * TILE..][..tile.computed(row)];
        score(scores, tile, query, scoring.softcap);
        now[row] = max_of(scores).max(now[row]);
    }
    for (row, now) in now.iter().enumerate() {
        running.factors[row] = exp(running.max[row] - finite(*now));
    }
    running.max = now;
    for (row, query) in tile.queries.clone().enumerate() {
        let scores = &mut scores[row * TILE..][..tile.computed(row)];
        let max = finite(now[row]);
        for group in scores.as_chunks_mut::<GROUP>().0 {
            group.iter_mut().for_each(|x| *x = exp(*x - max));
        }
        running.sums[row] = running.sums[row] * running.factors[row] + sum_of(scores, scores, |x, _| x);
        if let Some(factors) = dropout(scoring, tile, query, scores.len()) {
            multiply(scores, &factors);
        }
    }
}

/// What backward needs of the rows of a tile: their statistics, and the weighted means of the gradients of their
/// weights.
#[derive(Clone, Copy)]
pub(super) struct RowGradients<'a> {
    pub(super) stats: &'a [RowStats],
    pub(super) means: &'a [f32; TILE],
    /// Whether everything that the products of the tile were computed from is finite.
    pub(super) is_finite: bool,
}

/// Backward: replaces the products in `weights` by the weights, and dweights in `dscores` by the gradient of the
/// products: with `score = cap tanh(product / cap) + bias` and `weights = factors softmax(scores)`, that of the score is
/// `softmax (factors dweights - mean)`, which is added to `dbias`, and that of the product `1 - tanh(product / cap)^2`
/// times it.
#[inline(always)]
pub(super) fn softmax_tile_backward(
    [weights, dscores]: [&mut [f32]; 2],
    rows: RowGradients,
    tile: &Tile,
    scoring: Scoring,
    mut dbias: Option<&mut BiasRows>,
) {
    for (row, query) in tile.queries.clone().enumerate() {
        let computed = tile.computed(row);
        let (weights, dscores) = (&mut weights[row * TILE..][..computed], &mut dscores[row * TILE..][..computed]);
        let slopes = scoring.softcap.map(|cap| softcap_slopes(weights, cap));
        score(weights, tile, query, scoring.softcap);
        let factors = dropout(scoring, tile, query, computed);
        if let Some(factors) = &factors {
            multiply(dscores, factors);
        }
        let (stats, mean) = (rows.stats[query], rows.means[row]);
        // A hidden key gets nothing, though 0 times what is not finite is not 0.
        let scores = (!rows.is_finite || !stats.inv_sum.is_finite()).then(|| copy_of(weights));
        softmax_backward(dscores, weights, stats, mean);
        if let Some(scores) = &scores {
            clear_hidden([weights, dscores], scores);
        }
        if let Some(dbias) = &mut dbias {
            dbias.add(query, tile.keys.clone(), dscores);
        }
        if let Some(slopes) = &slopes {
            dscores.iter_mut().zip(slopes).for_each(|(x, slope)| *x = if *x == 0.0 { 0.0 } else { *x * slope });
        }
        if let Some(factors) = &factors {
            multiply(weights, factors);
        }
    }
}

/// The derivative of the soft cap at each product: `1 - tanh(product / cap)^2`.
#[inline(always)]
fn softcap_slopes(products: &[f32], cap: f32) -> [f32; TILE] {
    let mut slopes = [0.0; TILE];
    for (slope, product) in slopes.iter_mut().zip(products) {
        let capped = tanh(product / cap);
        *slope = 1.0 - capped * capped;
    }
    slopes
}

#[inline(always)]
fn multiply(xs: &mut [f32], factors: &[f32]) {
    xs.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
}

/// Replaces the scores in `weights` by the softmax, and its gradient in `dscores` by `softmax * (gradient - mean)`.
#[inline(always)]
fn softmax_backward(dscores: &mut [f32], weights: &mut [f32], RowStats { max, inv_sum }: RowStats, mean: f32) {
    let groups = dscores.as_chunks_mut::<GROUP>().0.iter_mut().zip(weights.as_chunks_mut::<GROUP>().0);
    for (dscores, weights) in groups {
        for (dscore, weight) in dscores.iter_mut().zip(weights) {
            *weight = exp(*weight - max) * inv_sum;
            *dscore = *weight * (*dscore - mean);
        }
    }
}

fn copy_of(scores: &[f32]) -> [f32; TILE] {
    let mut copy = [0.0; TILE];
    copy[..scores.len()].copy_from_slice(scores);
    copy
}

/// Sets what belongs to hidden keys, by their scores, to 0.
fn clear_hidden(rows: [&mut [f32]; 2], scores: &[f32]) {
    for row in rows {
        for (x, _) in row.iter_mut().zip(scores).filter(|(_, score)| **score == f32::NEG_INFINITY) {
            *x = 0.0;
        }
    }
}

const _: () = assert!(TILE.is_multiple_of(GROUP) && TILE.is_multiple_of(ROWS));
