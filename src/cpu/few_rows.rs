//! Linear layers on a few rows, `y = x W^T + b`, as in each step of decoding.
//!
//! The time is that of reading W, so it is read once and in order, whatever the number of rows, and its rows are divided
//! among threads. Several layers with one input make one job. Each output is a sum of its own, which depends neither on
//! the other rows nor on the number of threads.

use pulp::{Simd, WithSimd};

use super::parallel::{for_each_chunk, threads};
use super::simd::{dispatch_vectors, prefetch, sum_of};

/// The maximum of rows for which this is faster than a general product.
pub(crate) const MAX_ROWS: usize = 8;

/// A linear layer: a weight W (N, K) by rows, and a bias (N), or an empty one.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
}

impl<'a> Layer<'a> {
    /// Some of the outputs.
    fn part(self, first: usize, outputs: usize, k: usize) -> Self {
        let bias = if self.bias.is_empty() { self.bias } else { &self.bias[first..][..outputs] };
        Self { weight: &self.weight[first * k..][..outputs * k], bias }
    }
}

/// Writes to `out` (rows, N), or with `adds` adds to it, `x W^T + b` for `rows` rows `xs` (rows, K) of at least one
/// channel; with several layers, N counts the outputs of all, side by side.
pub(crate) fn linear(out: &mut [f32], adds: bool, xs: &[f32], rows: usize, layers: &[Layer]) {
    if out.is_empty() {
        return;
    }
    let n = out.len() / rows;
    let weights: usize = layers.iter().map(|layer| layer.weight.len()).sum();
    assert!(weights * rows == n * xs.len() && out.len() == n * rows, "the sizes of layers do not agree");
    if rows == 1 {
        return divide(out, adds, xs, 1, layers);
    }
    let mut columns = vec![0.0; out.len()]; // (N, rows)
    divide(&mut columns, false, xs, rows, layers);
    for (row, out) in out.chunks_exact_mut(n).enumerate() {
        for (out, column) in out.iter_mut().zip(columns.chunks_exact(rows)) {
            *out = if adds { *out + column[row] } else { column[row] };
        }
    }
}

/// Divides the outputs (N, rows) among threads.
fn divide(columns: &mut [f32], adds: bool, xs: &[f32], rows: usize, layers: &[Layer]) {
    /// Bytes of W worth handing to a thread.
    const PIECE: usize = 64 * 1024;
    let (n, k) = (columns.len() / rows, xs.len() / rows);
    // Up to four for each thread, so that all finish at about the same time.
    let pieces = match n * k * size_of::<f32>() / PIECE / threads() {
        0 => 1,
        each => each.min(4) * threads(),
    };
    let len = n.div_ceil(pieces).next_multiple_of(BLOCK);
    for_each_chunk(columns, len * rows, |i, columns| {
        // The outputs of the layers in turn, from output `first` of the next one on.
        let (mut first, mut left) = (i * len, columns);
        for layer in layers {
            let outputs = layer.weight.len() / k;
            let here = outputs.saturating_sub(first).min(left.len() / rows);
            let (out, others) = left.split_at_mut(here * rows);
            let Layer { weight, bias } = layer.part(first.min(outputs), here, k);
            dispatch_vectors(Product { out, adds, xs, rows, weight, stride: k, bias });
            (first, left) = (first.saturating_sub(outputs), others);
        }
    });
}

/// `out[i] = x . w[i]` for rows w of as many channels as `x`, `stride` apart, on this thread.
pub(crate) fn products(out: &mut [f32], x: &[f32], rows: &[f32], stride: usize) {
    dispatch_vectors(Product { out, adds: false, xs: x, rows: 1, weight: rows, stride, bias: &[] });
}

/// Rows of W at a time.
const BLOCK: usize = 4;

struct Product<'a> {
    /// (N, rows)
    out: &'a mut [f32],
    adds: bool,
    xs: &'a [f32],
    rows: usize,
    /// Its rows are `stride` apart.
    weight: &'a [f32],
    stride: usize,
    bias: &'a [f32],
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let n = self.out.len() / self.rows;
        if S::F32_LANES == 1 {
            // In sixteen running sums, as vectors have them: one would be less exact.
            let (k, rows) = (self.xs.len() / self.rows, self.rows);
            for (output, row) in (0..n).flat_map(|output| (0..rows).map(move |row| (output, row))) {
                let (w, x) = (&self.weight[output * self.stride..][..k], &self.xs[row * k..][..k]);
                let sum = sum_of(w, x, |w, x| w * x);
                self.store((output, row), sum);
            }
            return;
        }
        let whole = n / BLOCK * BLOCK;
        for first in (0..whole).step_by(BLOCK) {
            self.outputs::<S, BLOCK>(simd, first);
        }
        for first in whole..n {
            self.outputs::<S, 1>(simd, first);
        }
    }
}

impl Product<'_> {
    /// Computes `N` outputs of all rows of the input.
    #[inline(always)]
    fn outputs<S: Simd, const N: usize>(&mut self, simd: S, first: usize) {
        let mut row = 0;
        while row < self.rows {
            // As many sums as fit into registers.
            row += match (S::F32_LANES, self.rows - row) {
                (16, 4..) => self.block::<S, N, 4>(simd, first, row),
                (_, 2..) => self.block::<S, N, 2>(simd, first, row),
                (_, _) => self.block::<S, N, 1>(simd, first, row),
            };
        }
    }

    /// Computes `N` outputs of `M` rows of the input, and returns `M`. Each is added up in as many running sums as a
    /// vector has lanes.
    #[inline(always)]
    fn block<S: Simd, const N: usize, const M: usize>(&mut self, simd: S, first: usize, row: usize) -> usize {
        let (k, stride) = (self.xs.len() / self.rows, self.stride);
        let (weight, xs) = (&self.weight[first * stride..], &self.xs[row * k..]);
        let vectors = k / S::F32_LANES;
        let mut w: [&[S::f32s]; N] = [&[]; N];
        let mut x: [&[S::f32s]; M] = [&[]; M];
        for n in 0..N {
            w[n] = &S::as_simd_f32s(&weight[n * stride..][..k]).0[..vectors];
        }
        for m in 0..M {
            x[m] = &S::as_simd_f32s(&xs[m * k..][..k]).0[..vectors];
        }
        let mut sums = [[simd.splat_f32s(0.0); M]; N];
        for i in 0..vectors {
            for n in 0..N {
                // The next blocks, in the order in which they lie in memory.
                prefetch(weight.as_ptr().wrapping_add((i * N + n) * S::F32_LANES + AHEAD));
                for m in 0..M {
                    sums[n][m] = simd.mul_add_e_f32s(w[n][i], x[m][i], sums[n][m]);
                }
            }
        }
        let rest = vectors * S::F32_LANES;
        if rest < k {
            for n in 0..N {
                let w = simd.partial_load_f32s(&weight[n * stride..][rest..k]);
                for m in 0..M {
                    sums[n][m] = simd.mul_add_e_f32s(w, simd.partial_load_f32s(&xs[m * k..][rest..k]), sums[n][m]);
                }
            }
        }
        // All at once, so that they need not leave the registers.
        let mut totals = [[0.0; M]; N];
        for n in 0..N {
            for m in 0..M {
                totals[n][m] = simd.reduce_sum_f32s(sums[n][m]);
            }
        }
        for (n, totals) in totals.into_iter().enumerate() {
            for (m, total) in totals.into_iter().enumerate() {
                self.store((first + n, row + m), total);
            }
        }
        M
    }

    #[inline(always)]
    fn store(&mut self, (output, row): (usize, usize), sum: f32) {
        let sum = if self.bias.is_empty() { sum } else { sum + self.bias[output] };
        let out = &mut self.out[output * self.rows + row];
        *out = if self.adds { *out + sum } else { sum };
    }
}

/// How far ahead W is fetched, in elements: a page, beyond which the processor does not fetch by itself.
const AHEAD: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::parallel::sequential;
    use crate::cpu::testing::{in_each_version, randn};
    use candle_core::DType;

    fn values(seed: u64, len: usize) -> Vec<f32> {
        randn(seed, &[len]).to_dtype(DType::F32).unwrap().to_vec1().unwrap()
    }

    /// Against `f64`, with as many rounding errors as a sum of K terms can have; two layers of one input, the second
    /// without a bias.
    #[test]
    fn outputs_lie_side_by_side_and_are_added_up_in_every_version() {
        for (rows, k, n) in [(1, 1, 1), (1, 131, 67), (2, 64, 5), (3, 33, 4), (5, 16, 7), (8, 131, 67), (7, 300, 401)] {
            let (xs, before) = (values(1, rows * k), values(2, rows * (n + 3)));
            let (weights, bias) = ([values(3, n * k), values(4, 3 * k)], values(5, n));
            let layers = [Layer { weight: &weights[0], bias: &bias }, Layer { weight: &weights[1], bias: &[] }];
            for adds in [false, true] {
                let run = || {
                    let mut out = before.clone();
                    linear(&mut out, adds, &xs, rows, &layers);
                    out
                };
                for (version, out) in in_each_version(run) {
                    for (i, got) in out.iter().enumerate() {
                        let (row, output) = (i / (n + 3), i % (n + 3));
                        let weight = if output < n {
                            &weights[0][output * k..][..k]
                        } else {
                            &weights[1][(output - n) * k..][..k]
                        };
                        let terms = weight.iter().zip(&xs[row * k..]).map(|(w, x)| f64::from(*w) * f64::from(*x));
                        let bias = if output < n { f64::from(bias[output]) } else { 0.0 };
                        let start = bias + if adds { f64::from(before[i]) } else { 0.0 };
                        let (sum, size) =
                            terms.fold((start, 2.0 * start.abs()), |(sum, size), x| (sum + x, size + x.abs()));
                        let error = (f64::from(*got) - sum).abs();
                        let allowed = (k + 2) as f64 * f64::from(f32::EPSILON) * (size + bias.abs());
                        assert!(error <= allowed, "{version}, {rows} {k} {n}, {i}: got {got}, expected {sum}");
                    }
                }
            }
        }
    }

    /// Whether alone or with others, and on any number of threads.
    #[test]
    fn a_row_has_the_same_bits_wherever_it_is() {
        let (k, n) = (300, 1009);
        let (xs, weight, bias) = (values(1, MAX_ROWS * k), values(2, n * k), values(3, n));
        let run = |rows: usize| {
            let mut out = vec![0.0; rows * n];
            linear(&mut out, false, &xs[..rows * k], rows, &[Layer { weight: &weight, bias: &bias }]);
            out
        };
        let all = sequential(|| run(MAX_ROWS));
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for rows in 1..=MAX_ROWS {
                assert!(pool.install(|| run(rows)) == all[..rows * n], "{rows} rows, {threads} threads");
            }
        }
    }
}
