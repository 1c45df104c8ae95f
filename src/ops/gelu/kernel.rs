//! GELU and its gradient, on slices.

use crate::ops::parallel::for_each_chunk;
use crate::ops::simd::{dispatch, erf, exp};

const SQRT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// `1 / sqrt(2 pi)`.
const DENSITY_AT_0: f32 = 0.398_942_3;
/// `2 sqrt(2 / pi)`.
const TANH_SCALE: f32 = 1.595_769;
const TANH_CUBIC: f32 = 0.044_715;

/// Elements a piece of work: enough to be worth handing to a thread.
const CHUNK: usize = 16 * 1024;

/// `y = x Phi(x)`.
pub(super) fn forward_erf(ys: &mut [f32], xs: &[f32]) {
    map(
        ys,
        xs,
        xs,
        #[inline(always)]
        |x, _| x * (0.5 + 0.5 * erf(x * SQRT_HALF)),
    );
}

/// `dx = dy (Phi(x) + x phi(x))`, as `y = x Phi(x)`.
pub(super) fn backward_erf(dxs: &mut [f32], xs: &[f32], dys: &[f32]) {
    map(
        dxs,
        xs,
        dys,
        #[inline(always)]
        |x, dy| {
            let density = DENSITY_AT_0 * exp(-0.5 * x * x);
            dy * (0.5 + 0.5 * erf(x * SQRT_HALF) + x * density)
        },
    );
}

/// `y = x sigma(2 u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`: `(1 + tanh(u)) / 2` is `sigma(2 u)`.
pub(super) fn forward_tanh(ys: &mut [f32], xs: &[f32]) {
    map(
        ys,
        xs,
        xs,
        #[inline(always)]
        |x, _| x * sigmoid(TANH_SCALE * (x + TANH_CUBIC * x * x * x)),
    );
}

/// `dx = dy (sigma + x sigma (1 - sigma) 2 u')`, as `y = x sigma(2 u)`.
pub(super) fn backward_tanh(dxs: &mut [f32], xs: &[f32], dys: &[f32]) {
    map(
        dxs,
        xs,
        dys,
        #[inline(always)]
        |x, dy| {
            let s = sigmoid(TANH_SCALE * (x + TANH_CUBIC * x * x * x));
            let slope = TANH_SCALE * (1.0 + 3.0 * TANH_CUBIC * x * x);
            dy * (s + x * s * (1.0 - s) * slope)
        },
    );
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `out[i] = f(a[i], b[i])`.
#[inline(always)]
fn map(out: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    for_each_chunk(out, CHUNK, |i, out| {
        let (a, b) = (&a[i * CHUNK..], &b[i * CHUNK..]);
        dispatch(
            #[inline(always)]
            || {
                for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                    *out = f(*a, *b);
                }
            },
        );
    });
}
