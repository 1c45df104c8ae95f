//! Layer and root-mean-square normalisation of rows, with gradients, on slices.

use crate::cpu::parallel::{CHUNK, for_each_chunk, for_each_chunk_pair};
use crate::cpu::simd::{dispatch, sum_of};
use crate::cpu::sums::sum_rows;

/// What a row is normalised by.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// Its mean and standard deviation.
    Layer,
    /// Its root mean square.
    Rms,
}

/// For one row: the mean (0 for [`Kind::Rms`]) and the factor that normalises it.
#[derive(Clone, Copy, Default)]
pub(super) struct Statistics {
    mean: f32,
    factor: f32,
}

/// Rows per chunk.
fn rows_together(c: usize) -> usize {
    (CHUNK / c).max(1)
}

/// `y = (x - mean) * factor * weight + bias`, row by row; an empty bias means none.
pub(super) fn forward(
    ys: &mut [f32],
    statistics: &mut [Statistics],
    xs: &[f32],
    weight: &[f32],
    bias: &[f32],
    kind: Kind,
    eps: f32,
) {
    let c = weight.len().max(1);
    let together = rows_together(c);
    for_each_chunk_pair((ys, together * c), (statistics, together), |piece, ys, statistics| {
        let xs = &xs[piece * together * c..];
        dispatch(
            #[inline(always)]
            || {
                for (row, x) in statistics.iter_mut().zip(xs.chunks_exact(c)) {
                    let mean = if kind == Kind::Layer { sum_of(x, x, |x, _| x) / c as f32 } else { 0.0 };
                    let variance = sum_of(x, x, |x, _| (x - mean) * (x - mean)) / c as f32;
                    *row = Statistics { mean, factor: 1.0 / (variance + eps).sqrt() };
                }
                for ((y, x), row) in ys.chunks_exact_mut(c).zip(xs.chunks_exact(c)).zip(&*statistics) {
                    for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
                        *y = (x - row.mean) * row.factor * weight;
                    }
                    for (y, bias) in y.iter_mut().zip(bias) {
                        *y += bias;
                    }
                }
            },
        );
    });
}

/// With `n = (x - mean) * factor` and `dn = dy * weight`,
/// `dx = factor * (dn - mean(dn) - n * mean(dn * n))`, without `mean(dn)` for [`Kind::Rms`];
/// returns `dweight = sum over rows of dy * n` and `dbias = sum over rows of dy`.
pub(super) fn backward(
    dxs: &mut [f32],
    dys: &[f32],
    xs: &[f32],
    weight: &[f32],
    statistics: &[Statistics],
    kind: Kind,
) -> (Vec<f32>, Vec<f32>) {
    let c = weight.len().max(1);
    let together = rows_together(c);
    for_each_chunk(dxs, together * c, |piece, dxs| {
        let first = piece * together;
        let (dys, xs, statistics) = (&dys[first * c..], &xs[first * c..], &statistics[first..]);
        dispatch(
            #[inline(always)]
            || {
                let rows = dxs.chunks_exact_mut(c).zip(dys.chunks_exact(c)).zip(xs.chunks_exact(c)).zip(statistics);
                for (((dx, dy), x), row) in rows {
                    backward_row(dx, dy, x, weight, *row, kind);
                }
            },
        );
    });

    let rows = xs.len() / c;
    let mut dweight = sum_rows(
        rows,
        2 * c,
        #[inline(always)]
        |row, sums| {
            let (dy, x, row) = (&dys[row * c..][..c], &xs[row * c..][..c], statistics[row]);
            let (dweight, dbias) = sums.split_at_mut(c);
            for (((dweight, dbias), dy), x) in dweight.iter_mut().zip(dbias).zip(dy).zip(x) {
                *dweight += dy * (x - row.mean) * row.factor;
                *dbias += dy;
            }
        },
    );
    let dbias = dweight.split_off(c);
    (dweight, dbias)
}

#[inline(always)]
fn backward_row(dx: &mut [f32], dy: &[f32], x: &[f32], weight: &[f32], row: Statistics, kind: Kind) {
    let c = weight.len() as f32;
    // First `dn`, in place of `dx`.
    for ((dx, dy), weight) in dx.iter_mut().zip(dy).zip(weight) {
        *dx = dy * weight;
    }
    let mean_dn = if kind == Kind::Layer { sum_of(dx, dx, |dn, _| dn) / c } else { 0.0 };
    let mean_dn_n = sum_of(dx, x, |dn, x| dn * (x - row.mean)) * row.factor / c;
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = row.factor * (*dx - mean_dn - (x - row.mean) * row.factor * mean_dn_n);
    }
}
