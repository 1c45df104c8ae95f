//! Rotation of pairs of channels, on slices.

use super::RotaryPairs;
use crate::cpu::parallel::{CHUNK, for_each_chunk};
use crate::cpu::simd::dispatch;

/// Sizes: positions, heads, channels.
#[derive(Clone, Copy)]
pub(super) struct Dims {
    pub(super) t: usize,
    pub(super) h: usize,
    pub(super) d: usize,
}

/// The heads of all positions: (B, T, H, D) with any strides but the last, which is 1.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    pub(super) data: &'a [f32],
    pub(super) strides: [usize; 3],
}

/// The cosines and sines of the angles: (T, D/2), or (B, T, D/2).
#[derive(Clone, Copy)]
pub(super) struct Angles<'a> {
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
}

/// `(a, b)` becomes `(a cos - b sin, b cos + a sin)`; with the sines negated, its own inverse and gradient.
pub(super) fn rotate(ys: &mut [f32], xs: Heads, angles: Angles, pairs: RotaryPairs, dims: Dims) {
    let Dims { t, h, d } = dims;
    let together = (CHUNK / (h * d)).max(1);
    let rows = angles.cos.len() / (d / 2);
    for_each_chunk(ys, together * h * d, |piece, ys| {
        for (i, ys) in ys.chunks_exact_mut(h * d).enumerate() {
            let position = piece * together + i; // counted through all sequences
            let (b_i, t_i) = (position / t, position % t);
            let row = position % rows;
            let row = row * d / 2..(row + 1) * d / 2;
            let angles = Angles { cos: &angles.cos[row.clone()], sin: &angles.sin[row] };
            let first = b_i * xs.strides[0] + t_i * xs.strides[1];
            dispatch(
                #[inline(always)]
                || {
                    for (h_i, y) in ys.chunks_exact_mut(d).enumerate() {
                        let x = &xs.data[first + h_i * xs.strides[2]..][..d];
                        match pairs {
                            RotaryPairs::Halves => rotate_halves(y, x, angles),
                            RotaryPairs::Neighbours => rotate_neighbours(y, x, angles),
                        }
                    }
                },
            );
        }
    });
}

#[inline(always)]
fn rotate_halves(y: &mut [f32], x: &[f32], Angles { cos, sin }: Angles) {
    let (y_a, y_b) = y.split_at_mut(cos.len());
    let (x_a, x_b) = x.split_at(cos.len());
    for ((y, (a, b)), (cos, sin)) in y_a.iter_mut().zip(x_a.iter().zip(x_b)).zip(cos.iter().zip(sin)) {
        *y = a * cos - b * sin;
    }
    for ((y, (a, b)), (cos, sin)) in y_b.iter_mut().zip(x_a.iter().zip(x_b)).zip(cos.iter().zip(sin)) {
        *y = b * cos + a * sin;
    }
}

#[inline(always)]
fn rotate_neighbours(y: &mut [f32], x: &[f32], Angles { cos, sin }: Angles) {
    let pairs = y.chunks_exact_mut(2).zip(x.chunks_exact(2));
    for ((y, x), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
        y[0] = x[0] * cos - x[1] * sin;
        y[1] = x[1] * cos + x[0] * sin;
    }
}
