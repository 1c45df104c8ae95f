//! From products to the gradients of scores, for a tile of queries and keys.

use pulp::Simd;

use super::TILE;
use super::bias::BiasRows;
use super::softmax::{COLUMNS, RowBand, RowStats, Scoring, dropout, groups_of, multiply, score};
use super::tile::Tile;
use crate::cpu::micro_gemm::GROUP;
use crate::cpu::simd::{exp_of_negative, tanh};

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
pub(super) fn softmax_tile_backward<S: Simd>(
    simd: S,
    [weights, dscores]: [&mut [f32]; 2],
    saved: RowGradients,
    tile: &Tile,
    scoring: Scoring,
    mut dbias: Option<&mut BiasRows>,
) {
    for (row, query) in tile.queries.clone().enumerate() {
        let rows = [groups_of(weights, row), groups_of(dscores, row)];
        let saved = (saved.stats[query], saved.means[row], saved.is_finite);
        let dbias = dbias.as_deref_mut();
        match tile.computed(row) / GROUP {
            0 => {}
            1 => softmax_row_backward::<S, 1>(simd, rows, saved, tile, query, scoring, dbias),
            2 => softmax_row_backward::<S, 2>(simd, rows, saved, tile, query, scoring, dbias),
            3 => softmax_row_backward::<S, 3>(simd, rows, saved, tile, query, scoring, dbias),
            _ => softmax_row_backward::<S, 4>(simd, rows, saved, tile, query, scoring, dbias),
        }
    }
}

/// A row of a tile, of which `N` groups of columns are computed.
#[inline(always)]
fn softmax_row_backward<S: Simd, const N: usize>(
    simd: S,
    [weights, dscores]: [&mut [[f32; GROUP]]; 2],
    (stats, mean, is_finite): (RowStats, f32, bool),
    tile: &Tile,
    query: usize,
    scoring: Scoring,
    dbias: Option<&mut BiasRows>,
) {
    let (weights, dscores) = (&mut weights[..N], &mut dscores[..N]);
    let slopes = scoring.softcap.map(|cap| softcap_slopes(weights.as_flattened(), cap));
    let band = score(weights, tile, query, scoring.softcap);
    let factors = dropout(scoring, tile, query, N * GROUP);
    if let Some(factors) = &factors {
        multiply(dscores.as_flattened_mut(), factors);
    }
    // A hidden key gets nothing, though 0 times what is not finite is not 0.
    let scores =
        (!is_finite || !stats.inv_sum.is_finite() || !mean.is_finite()).then(|| copy_of(weights.as_flattened(), &band));
    softmax_backward(simd, dscores, weights, &band, (stats, mean));
    let (weights, dscores) = (weights.as_flattened_mut(), dscores.as_flattened_mut());
    if let Some(scores) = &scores {
        clear_hidden([weights, dscores], scores);
    }
    if let Some(dbias) = dbias {
        dbias.add(query, tile.keys.clone(), dscores);
    }
    if let Some(slopes) = &slopes {
        dscores.iter_mut().zip(slopes).for_each(|(x, slope)| *x = if *x == 0.0 { 0.0 } else { *x * slope });
    }
    if let Some(factors) = &factors {
        multiply(weights, factors);
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

/// Replaces the scores in `weights` by the softmax, and its gradient in `dscores` by `softmax * (gradient - mean)`.
#[inline(always)]
fn softmax_backward<S: Simd>(
    simd: S,
    dscores: &mut [[f32; GROUP]],
    weights: &mut [[f32; GROUP]],
    band: &RowBand,
    (stats, mean): (RowStats, f32),
) {
    let (max, inv_sum) = (simd.splat_f32s(stats.max), simd.splat_f32s(stats.inv_sum));
    let mean = simd.splat_f32s(mean);
    for ((dscores, weights), columns) in dscores.iter_mut().zip(weights).zip(&COLUMNS) {
        let (dscores, weights) = (S::as_mut_simd_f32s(dscores).0, S::as_mut_simd_f32s(weights).0);
        for ((dscore, weight), column) in dscores.iter_mut().zip(weights).zip(S::as_simd_u32s(columns).0) {
            // Not stored first: a store of some lanes would delay the load.
            let score = band.apply(simd, *weight, *column);
            *weight = simd.mul_f32s(exp_of_negative(simd, simd.sub_f32s(score, max)), inv_sum);
            *dscore = simd.mul_f32s(*weight, simd.sub_f32s(*dscore, mean));
        }
    }
}

/// A copy of the scores of a row, those outside the band hidden.
fn copy_of(scores: &[f32], RowBand(band): &RowBand) -> [f32; TILE] {
    let mut copy = [f32::NEG_INFINITY; TILE];
    copy[band.clone()].copy_from_slice(&scores[band.clone()]);
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
