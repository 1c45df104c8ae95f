//! A single query per head, as in each step of decoding: keys and values are read in place, because copying them into
//! the layouts of tile products would take longer than the rest. Only without gradients: backward recomputes the scores
//! by tiles, which round differently.

use super::pack::Rows;
use super::parallel::{Heads, Sizes, View};
use super::softmax::{RowStats, RunningSoftmax, Scoring, softmax_tile};
use super::tile::{HeadMask, Tile};
use super::{Dims, TILE, tiles};
use crate::cpu::parallel::{for_each_chunk, sequential};
use crate::cpu::simd::{dispatch, sum_of};

/// The output (B, 1, H, E), with the log-sum-exp in a further channel if wanted.
pub(super) fn forward(views: [View; 3], heads: &Heads, sizes: Sizes) -> Vec<f32> {
    let mut out = vec![0.0; sizes.b * sizes.h * sizes.out_width(heads)];
    forward_into(&mut out, views, heads, sizes);
    out
}

/// The same, into a slice.
pub(in super::super) fn forward_into(out: &mut [f32], [q, k, v]: [View; 3], heads: &Heads, sizes: Sizes) {
    /// Multiplications that take as long as waking a thread.
    const WORTH_SPLITTING: usize = 1 << 18;
    let Sizes { b, h, g, dims } = sizes;
    let width = sizes.out_width(heads);
    out.fill(0.0);
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
    Dims { s, d, e, .. }: Dims,
) -> RowStats {
    dispatch(
        #[inline(always)]
        || {
            let mut running = RunningSoftmax::new(scoring.sink);
            for keys in tiles(mask.sequence.keys(mask.band, &(0..1), s)) {
                let Some(tile) = Tile::new(mask, 0..1, keys.clone()) else { continue };
                let seen = tile.columns_of(0);
                // Pass 1: scores.
                let mut scores = [0.0; TILE];
                for (score, key) in scores.iter_mut().zip(keys.clone()).take(seen.end) {
                    *score = scoring.scale * sum_of(q, k.row(key, d), |q, k| q * k);
                }
                // Pass 2: exponentials, relative to the highest score so far; earlier sums are rescaled.
                softmax_tile(&mut scores, &mut running, &tile, scoring);
                out.iter_mut().for_each(|x| *x *= running.factors[0]);
                // Pass 3: the weighted sum of the values.
                for column in seen.filter(|column| scores[*column] != 0.0) {
                    for (out, v) in out.iter_mut().zip(v.row(keys.start + column, e)) {
                        *out += scores[column] * v;
                    }
                }
            }
            let stats = running.stats(0);
            out.iter_mut().for_each(|x| *x *= stats.inv_sum);
            stats
        },
    )
}
