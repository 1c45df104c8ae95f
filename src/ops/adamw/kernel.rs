//! AdamW's three lines, on slices.

use crate::ops::elementwise::zip_map;
use crate::ops::parallel::for_each_chunk;
use crate::ops::simd::dispatch;

/// Elements a piece of work: enough to be worth handing to a thread.
const CHUNK: usize = 32 * 1024;

/// `average = decay * average + weight * g`.
pub(super) fn average(average: &mut [f32], gradient: &[f32], decay: f32, weight: f32) {
    for_each_chunk(average, CHUNK, |i, average| {
        dispatch(
            #[inline(always)]
            || {
                for (average, g) in average.iter_mut().zip(&gradient[i * CHUNK..]) {
                    *average = decay * *average + weight * g;
                }
            },
        );
    });
}

/// `average = decay * average + weight * (scale g)^2`: scaled first, so that a gradient that is clipped does not overflow.
pub(super) fn average_of_squares(average: &mut [f32], gradient: &[f32], scale: f32, decay: f32, weight: f32) {
    for_each_chunk(average, CHUNK, |i, average| {
        dispatch(
            #[inline(always)]
            || {
                for (average, g) in average.iter_mut().zip(&gradient[i * CHUNK..]) {
                    let g = scale * g;
                    *average = decay * *average + weight * (g * g);
                }
            },
        );
    });
}

/// See [`update`].
#[derive(Clone, Copy)]
pub(super) struct Coefficients {
    pub(super) keep: f32,
    pub(super) rate: f32,
    pub(super) root: f32,
    pub(super) eps: f32,
}

/// `rate m / (sqrt(root v) + eps)`.
pub(super) fn update_alone(first: &[f32], second: &[f32], coefficients: Coefficients) -> Vec<f32> {
    let Coefficients { rate, root, eps, .. } = coefficients;
    zip_map(first, second, |m, v| rate * m / ((root * v).sqrt() + eps))
}

/// `w = keep w - rate m / (sqrt(root v) + eps)`.
pub(super) fn update(weights: &mut [f32], first: &[f32], second: &[f32], coefficients: Coefficients) {
    let Coefficients { keep, rate, root, eps } = coefficients;
    for_each_chunk(weights, CHUNK, |i, weights| {
        let (first, second) = (&first[i * CHUNK..], &second[i * CHUNK..]);
        dispatch(
            #[inline(always)]
            || {
                for ((weight, m), v) in weights.iter_mut().zip(first).zip(second) {
                    *weight = keep * *weight - rate * m / ((root * v).sqrt() + eps);
                }
            },
        );
    });
}
