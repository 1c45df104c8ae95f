//! Lines of Muon's formula, on slices.

use crate::cpu::elementwise::{zip_map, zip_update};

/// The average as it would be if the gradient came once more: `decay * average + weight * g`.
pub(super) fn ahead(average: &[f32], gradient: &[f32], decay: f32, weight: f32) -> Vec<f32> {
    zip_map(average, gradient, |average, g| decay * average + weight * g)
}

/// `w = keep w - rate u`.
pub(super) fn update(weights: &mut [f32], update: &[f32], keep: f32, rate: f32) {
    zip_update(weights, update, |weight, u| keep * weight - rate * u);
}
