//! A single query per head, as in each step of decoding: keys and values are read in place, because copying them into
//! the layouts of tile products would take longer than the rest. Only without gradients: backward recomputes the scores
//! by tiles, which round differently.

use super::heads::{Heads, View};
use super::kernel::Dims;
use super::layout::Sizes;
use super::rows::{Rows, tiles};
use super::scores::{Online, Scoring, Softmax, TILE, Tile};
use super::visible::Visible;
use crate::cpu::parallel::{for_each_chunk_pair, sequential};
use crate::cpu::simd::{dispatch, sum_of};

/// The output (B, 1, H, E), and the softmax of each query (B, H, 1).
pub(super) fn forward([q, k, v]: [View; 3], heads: &impl Heads, sizes: Sizes) -> (Vec<f32>, Vec<Softmax>) {
    /// Multiplications that take as long as waking a thread.
    const WORTH_SPLITTING: usize = 1 << 18;
    let Sizes { b, h, g, head: dims } = sizes;
    let (mut out, mut softmax) = (vec![0.0; b * h * dims.e], vec![Softmax::default(); b * h]);
    let mut run = || {
        for_each_chunk_pair((&mut out, dims.e), (&mut softmax, 1), |i, out, softmax| {
            let (b_i, h_i) = (i / h, i % h);
            let g_i = h_i * g / h;
            let (k, v) = (k.rows(b_i, g_i), v.rows(b_i, g_i));
            let q = q.rows(b_i, h_i).row(0, dims.d);
            softmax[0] = head(out, q, [k, v], heads.scoring(b_i, h_i), &heads.visible(b_i, h_i), dims);
        });
    };
    if b * h * dims.s * (dims.d + dims.e) < WORTH_SPLITTING {
        sequential(run)
    } else {
        run()
    }
    (out, softmax)
}

/// Processes a head: adds `sum over s of weights[s] v[s]` to `out`, which holds zeros.
fn head<V: Visible>(
    out: &mut [f32],
    q: &[f32],
    [k, v]: [Rows; 2],
    scoring: Scoring,
    visible: &V,
    Dims { s, d, e, .. }: Dims,
) -> Softmax {
    dispatch(
        #[inline(always)]
        || {
            let mut online = Online::new();
            for keys in tiles(visible.keys(&(0..1), s)) {
                let tile = Tile { queries: 0..1, keys: keys.clone(), scoring, visible };
                let seen = tile.reach(0);
                // Pass 1: scores.
                let mut scores = [0.0; TILE];
                for (score, key) in scores.iter_mut().zip(keys.clone()).take(seen) {
                    *score = scoring.scale * sum_of(q, k.row(key, d), |q, k| q * k);
                }
                // Pass 2: exponentials, relative to the highest score so far; earlier sums are rescaled.
                tile.weigh_online(&mut scores, &mut online);
                out.iter_mut().for_each(|x| *x *= online.factors[0]);
                // Pass 3: the weighted sum of the values.
                for (weight, key) in scores.iter().zip(keys).take(seen) {
                    for (out, v) in out.iter_mut().zip(v.row(key, e)) {
                        *out += weight * v;
                    }
                }
            }
            let softmax = online.softmax(0);
            out.iter_mut().for_each(|x| *x *= softmax.factor);
            softmax
        },
    )
}
