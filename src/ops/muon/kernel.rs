//! Muon's lines, on slices.

use crate::ops::elementwise::zip_map;
use crate::ops::simd::dispatch;

/// `mean = decay * mean + weight * g`.
pub(super) fn average(mean: &mut [f32], gradient: &[f32], decay: f32, weight: f32) {
    dispatch(
        #[inline(always)]
        || mean.iter_mut().zip(gradient).for_each(|(mean, g)| *mean = decay * *mean + weight * g),
    );
}

/// The mean as it will be if the gradient stays: `decay * mean + weight * g`.
pub(super) fn ahead(mean: &[f32], gradient: &[f32], decay: f32, weight: f32) -> Vec<f32> {
    zip_map(mean, gradient, |mean, g| decay * mean + weight * g)
}

/// `w = keep w - rate u`.
pub(super) fn update(weights: &mut [f32], update: &[f32], keep: f32, rate: f32) {
    dispatch(
        #[inline(always)]
        || weights.iter_mut().zip(update).for_each(|(weight, u)| *weight = keep * *weight - rate * u),
    );
}
