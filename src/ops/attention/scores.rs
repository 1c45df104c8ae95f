//! From scores to weights and back, for a tile of queries and keys.

use std::ops::Range;

use super::visible::Visible;
use crate::cpu::block_product::{GROUP, ROWS};
use crate::cpu::random::DropoutFactors;
use crate::cpu::simd::{exp, max_of, sum_of, tanh};

/// Queries, and keys, in a tile: its scores stay in the L1 cache.
pub(super) const TILE: usize = 64;

/// How scores and weights are computed in one head of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Scoring<'a> {
    /// The factor on the dot products.
    pub(super) scale: f32,
    /// `score = cap * tanh(score / cap)`.
    pub(super) softcap: Option<f32>,
    /// The dropout factors on the weights, and the head's stream.
    pub(super) dropout: Option<(&'a DropoutFactors, u64)>,
}

/// For one query, `weights = exp(score - highest) * factor`. Two numbers are more exact than a single log-sum-exp,
/// whose rounding error grows with the scores.
#[derive(Clone, Copy, Default)]
pub(super) struct Softmax {
    /// The highest score, or 0 if the query sees nothing.
    highest: f32,
    /// One over the sum of the exponentials, or 0 if the query sees nothing.
    pub(super) factor: f32,
}

/// The running softmax of each query of a tile, over the tiles of keys so far.
pub(super) struct Online {
    /// The highest score.
    highest: [f32; TILE],
    /// The sum of the exponentials, relative to it.
    sums: [f32; TILE],
    /// The factor that rescales the sums from before the last tile.
    pub(super) factors: [f32; TILE],
}

impl Online {
    pub(super) fn new() -> Self {
        Self { highest: [f32::NEG_INFINITY; TILE], sums: [0.0; TILE], factors: [1.0; TILE] }
    }

    /// The softmax of a row after all keys.
    pub(super) fn softmax(&self, row: usize) -> Softmax {
        match self.sums[row] {
            0.0 => Softmax::default(),
            sum => Softmax { highest: self.highest[row], factor: 1.0 / sum },
        }
    }
}

/// A finite reference score: if nothing is allowed so far, any gives exponentials of 0.
#[inline(always)]
fn finite(highest: f32) -> f32 {
    if highest == f32::NEG_INFINITY { 0.0 } else { highest }
}

/// A tile of queries and keys.
pub(super) struct Tile<'a, V> {
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
    pub(super) scoring: Scoring<'a>,
    pub(super) visible: &'a V,
}

impl<V: Visible> Tile<'_, V> {
    /// The number of keys, from the first, that covers all that the block of queries starting at a row sees.
    #[inline(always)]
    pub(super) fn reach(&self, row: usize) -> usize {
        let last = (self.queries.start + row + ROWS - 1).min(self.queries.end - 1);
        self.visible.reach(last, &self.keys)
    }

    /// The first row of the first block of queries that sees the key of a column or a later one.
    #[inline(always)]
    pub(super) fn first_row(&self, column: usize) -> usize {
        let rows = self.queries.len();
        (0..rows).step_by(ROWS).find(|&row| self.reach(row) > column).unwrap_or(rows)
    }

    /// The columns of a row that are computed.
    #[inline(always)]
    fn columns(&self, row: usize) -> Range<usize> {
        let columns = self.reach(row / ROWS * ROWS).next_multiple_of(GROUP);
        row * TILE..row * TILE + columns
    }

    /// Turns products into scores.
    #[inline(always)]
    fn score(&self, products: &mut [f32], query: usize) {
        if let Some(cap) = self.scoring.softcap {
            products.iter_mut().for_each(|x| *x = cap * tanh(*x / cap));
        }
        self.visible.hide(products, query, &self.keys);
    }

    /// The factors of dropout, if any, for the weights of a query.
    #[inline(always)]
    fn dropout(&self, query: usize, columns: usize) -> Option<[f32; TILE]> {
        let (factors, stream) = self.scoring.dropout?;
        let mut row = [0.0; TILE];
        factors.fill(stream, (query as u64) << 32 | self.keys.start as u64, &mut row[..columns]);
        Some(row)
    }

    /// Forward: replaces products by exponentials relative to the highest score so far.
    #[inline(always)]
    pub(super) fn weigh_online(&self, scores: &mut [f32], online: &mut Online) {
        let mut now = online.highest;
        for (row, query) in self.queries.clone().enumerate() {
            let scores = &mut scores[self.columns(row)];
            self.score(scores, query);
            now[row] = max_of(scores).max(now[row]);
        }
        for (row, now) in now.iter().enumerate() {
            online.factors[row] = exp(online.highest[row] - finite(*now));
        }
        online.highest = now;
        for (row, query) in self.queries.clone().enumerate() {
            let scores = &mut scores[self.columns(row)];
            let highest = finite(now[row]);
            for group in scores.as_chunks_mut::<GROUP>().0 {
                group.iter_mut().for_each(|x| *x = exp(*x - highest));
            }
            online.sums[row] = online.sums[row] * online.factors[row] + sum_of(scores, scores, |x, _| x);
            if let Some(factors) = self.dropout(query, scores.len()) {
                multiply(scores, &factors);
            }
        }
    }

    /// Backward: replaces the products in `weights` by the weights, and dweights in `dscores` by the gradient of the
    /// products: with `score = cap tanh(product / cap)` and `weights = factors softmax(scores)`, it is `softmax
    /// (factors dweights - dot) (1 - (score / cap)^2)`.
    #[inline(always)]
    pub(super) fn weigh_again(
        &self,
        weights: &mut [f32],
        dscores: &mut [f32],
        softmax: &[Softmax],
        dots: &[f32; TILE],
    ) {
        for (row, query) in self.queries.clone().enumerate() {
            let columns = self.columns(row);
            let (weights, dscores) = (&mut weights[columns.clone()], &mut dscores[columns]);
            let slopes = self.slopes(weights);
            self.score(weights, query);
            let factors = self.dropout(query, weights.len());
            if let Some(factors) = &factors {
                multiply(dscores, factors);
            }
            softmax_backward(dscores, weights, softmax[query], dots[row]);
            if let Some(slopes) = &slopes {
                multiply(dscores, slopes);
            }
            if let Some(factors) = &factors {
                multiply(weights, factors);
            }
        }
    }

    /// The derivative of the soft cap, if any, at each product: `1 - tanh(product / cap)^2`.
    #[inline(always)]
    fn slopes(&self, products: &[f32]) -> Option<[f32; TILE]> {
        let cap = self.scoring.softcap?;
        let mut slopes = [0.0; TILE];
        for (slope, product) in slopes.iter_mut().zip(products) {
            let capped = tanh(product / cap);
            *slope = 1.0 - capped * capped;
        }
        Some(slopes)
    }
}

#[inline(always)]
fn multiply(xs: &mut [f32], factors: &[f32]) {
    xs.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
}

/// Replaces the scores in `weights` by the softmax, and its gradient in `dscores` by `softmax * (gradient - dot)`.
#[inline(always)]
fn softmax_backward(dscores: &mut [f32], weights: &mut [f32], Softmax { highest, factor }: Softmax, dot: f32) {
    let groups = dscores.as_chunks_mut::<GROUP>().0.iter_mut().zip(weights.as_chunks_mut::<GROUP>().0);
    for (dscores, weights) in groups {
        for (dscore, weight) in dscores.iter_mut().zip(weights) {
            *weight = exp(*weight - highest) * factor;
            *dscore = *weight * (*dscore - dot);
        }
    }
}
