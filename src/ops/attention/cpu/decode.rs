//! A single query per head, as in each step of decoding: keys and values are read in place, because copying them into
//! the layouts of tile products would take longer than the rest. Only without gradients: backward recomputes the scores
//! by tiles, which round differently.

use pulp::{Simd, WithSimd};

use super::pack::Rows;
use super::parallel::{Heads, Sizes, View};
use super::softmax::{RowStats, RunningSoftmax, Scoring, softmax_tile};
use super::tile::{HeadMask, Tile};
use super::{Dims, TILE, tiles};
use crate::cpu::few_rows::products;
use crate::cpu::parallel::{for_each_chunk, sequential};
use crate::cpu::simd::dispatch_vectors;

/// The output (B, 1, H, E), with the log-sum-exp in a further channel if wanted.
pub(super) fn forward(views: [View; 3], heads: &Heads, sizes: Sizes) -> Vec<f32> {
    let mut out = vec![0.0; sizes.b * sizes.h * sizes.out_width(heads)];
    forward_into(&mut out, views, heads, sizes);
    out
}

/// The same, added to zeros.
pub(in super::super) fn forward_into(out: &mut [f32], [q, k, v]: [View; 3], heads: &Heads, sizes: Sizes) {
    /// Multiplications worth handing to a thread.
    const WORTH_SPLITTING: usize = 1 << 18;
    let Sizes { b, h, g, dims } = sizes;
    let width = sizes.out_width(heads);
    let mut run = || {
        for_each_chunk(out, width, |i, out| {
            let (b_i, h_i) = (i / h, i % h);
            let g_i = h_i * g / h;
            let (k, v) = (k.rows(b_i, g_i), v.rows(b_i, g_i));
            let q = q.rows(b_i, h_i).row(0, dims.d);
            let stats = head(&mut out[..dims.e], q, [k, v], heads.scoring(b_i, h_i), heads.mask(b_i, h_i), dims);
            if let Some(lse) = out.get_mut(dims.e) {
                *lse = stats.log_sum_exp();
            }
        });
    };
    if b * h * dims.s * (dims.d + dims.e) < WORTH_SPLITTING { sequential(run) } else { run() }
}

/// Processes a head: adds `sum over s of weights[s] v[s]` to `out`, which holds zeros.
fn head(
    out: &mut [f32],
    q: &[f32],
    [k, v]: [Rows; 2],
    scoring: Scoring,
    mask: HeadMask,
    Dims { s, e, .. }: Dims,
) -> RowStats {
    let mut running = RunningSoftmax::new(scoring.sink);
    for keys in tiles(mask.sequence.keys(mask.band, &(0..1), s)) {
        let Some(tile) = Tile::new(mask, 0..1, keys.clone()) else { continue };
        let seen = tile.columns_of(0);
        if seen.is_empty() {
            continue;
        }
        // Pass 1: scores.
        let mut scores = [0.0; TILE];
        products(&mut scores[..seen.end], q, &k.data[keys.start * k.stride..], k.stride);
        // Pass 2: exponentials, relative to the highest score so far; earlier sums are rescaled.
        dispatch_vectors(Softmax { scores: &mut scores, running: &mut running, tile: &tile, scoring });
        // Pass 3: the weighted sum of the values.
        let first = (keys.start + seen.start) * v.stride;
        let (weights, values) = (&scores[seen], Rows { data: &v.data[first..], ..v });
        dispatch_vectors(WeightedSum { out, factor: running.factors[0], weights, values });
    }
    let stats = running.stats(0);
    out[..e].iter_mut().for_each(|x| *x *= stats.inv_sum);
    stats
}

/// [`softmax_tile`] of one row of products.
struct Softmax<'a> {
    scores: &'a mut [f32; TILE],
    running: &'a mut RunningSoftmax,
    tile: &'a Tile<'a>,
    scoring: Scoring<'a>,
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { scores, running, tile, scoring } = self;
        scores.iter_mut().for_each(|score| *score *= scoring.scale);
        softmax_tile(simd, scores, running, tile, scoring);
    }
}

/// `out = factor out + sum over s of weights[s] values[s]`, where values of weight 0 have no effect.
struct WeightedSum<'a> {
    out: &'a mut [f32],
    factor: f32,
    weights: &'a [f32],
    values: Rows<'a>,
}

impl WithSimd for WeightedSum<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        /// Vectors of channels at a time.
        const N: usize = 4;
        let Self { out, factor, weights, values } = self;
        let e = out.len();
        let (vectors, rest) = S::as_mut_simd_f32s(out);
        let factors = simd.splat_f32s(factor);
        for (i, out) in vectors.chunks_mut(N).enumerate() {
            let first = i * N * S::F32_LANES;
            let mut sums = [simd.splat_f32s(0.0); N];
            for (sum, out) in sums.iter_mut().zip(&*out) {
                *sum = simd.mul_f32s(*out, factors);
            }
            for (s, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
                let (row, weight) = (&values.row(s, e)[first..], simd.splat_f32s(*weight));
                for (sum, value) in sums.iter_mut().zip(S::as_simd_f32s(row).0) {
                    *sum = simd.mul_add_e_f32s(weight, *value, *sum);
                }
            }
            out.copy_from_slice(&sums[..out.len()]);
        }
        let first = e - rest.len();
        rest.iter_mut().for_each(|x| *x *= factor);
        for (s, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
            rest.iter_mut().zip(&values.row(s, e)[first..]).for_each(|(x, value)| *x += weight * value);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::cpu::testing::{in_each_version, randn};
    use crate::ops::{AttentionOptions, Mask, attention};
    use candle_core::{DType, Device, Tensor};

    /// Between keys that are seen, in whole vectors of channels and in the rest.
    #[test]
    fn what_a_single_query_may_not_see_has_no_effect() {
        let (s, d) = (70, 83);
        let [q, k, v] = [1, s, s].map(|t| randn(t as u64, &[1, t, 1, d]).to_dtype(DType::F32).unwrap());
        let is_seen: Vec<u8> = (0..s).map(|key| u8::from(key % 3 != 1)).collect();
        let allowed = Tensor::from_vec(is_seen.clone(), (1, 1, 1, s), &Device::Cpu).unwrap();
        let options =
            AttentionOptions { mask: Mask { allowed: Some(allowed), ..Mask::causal() }, ..Default::default() };
        let of = |hidden: f32| {
            let rows: Vec<f32> = is_seen.iter().map(|x| if *x == 0 { hidden } else { 0.0 }).collect();
            let hidden = Tensor::from_vec(rows, (1, s, 1, 1), &Device::Cpu).unwrap();
            let [k, v] = [&k, &v].map(|x| x.broadcast_add(&hidden).unwrap());
            let out = attention(&q, &k, &v, &options).unwrap();
            out.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for (version, (as_it_is, hidden)) in in_each_version(|| (of(0.0), of(f32::NAN))) {
            assert!(as_it_is.iter().all(|x| x.is_finite()) && as_it_is == hidden, "{version}");
        }
    }
}
