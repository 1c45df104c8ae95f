//! The three lines of AdamW's formula, on slices.

use crate::cpu::elementwise::{zip_map, zip_update};
use crate::cpu::parallel::for_each_chunk;
use crate::cpu::simd::dispatch;

/// Elements per chunk: enough to be worth handing to a thread.
const CHUNK: usize = 32 * 1024;

/// `average = decay * average + weight * (scale g)^2`. Scaling comes first, so that a clipped gradient does not
/// overflow.
pub(super) fn average_of_squares(average: &mut [f32], gradient: &[f32], scale: f32, decay: f32, weight: f32) {
    zip_update(average, gradient, |average, g| {
        let g = scale * g;
        decay * average + weight * (g * g)
    });
}

/// The coefficients of [`update`].
#[derive(Clone, Copy)]
pub(super) struct Coefficients {
    pub(super) keep: f32,
    pub(super) rate: f32,
    pub(super) correction: f32,
    pub(super) eps: f32,
}

/// `rate m / (sqrt(correction v) + eps)`.
pub(super) fn update_of(first: &[f32], second: &[f32], coefficients: Coefficients) -> Vec<f32> {
    let Coefficients { rate, correction, eps, .. } = coefficients;
    zip_map(first, second, |m, v| rate * m / ((correction * v).sqrt() + eps))
}

/// `w = keep w - rate m / (sqrt(correction v) + eps)`.
pub(super) fn update(weights: &mut [f32], first: &[f32], second: &[f32], coefficients: Coefficients) {
    let Coefficients { keep, rate, correction, eps } = coefficients;
    for_each_chunk(weights, CHUNK, |i, weights| {
        let (first, second) = (&first[i * CHUNK..], &second[i * CHUNK..]);
        dispatch(
            #[inline(always)]
            || {
                for ((weight, m), v) in weights.iter_mut().zip(first).zip(second) {
                    *weight = keep * *weight - rate * m / ((correction * v).sqrt() + eps);
                }
            },
        );
    });
}
