//! Muon's formula, on slices.

use super::{MuonStep, orthogonal, rate};
use crate::cpu::elementwise::{zip_map, zip_update};

/// The first line.
pub(super) fn move_buffer(momentum_buffer: &mut [f32], gradient: &[f32], step: &MuonStep) {
    let (decay, part) = decay_and_part(step);
    zip_update(momentum_buffer, gradient, |m, g| decay * m + part * g);
}

/// The other lines, for weights (rows, cols).
pub(super) fn update(
    weights: &mut [f32],
    momentum_buffer: &[f32],
    gradient: &[f32],
    step: &MuonStep,
    shape: (usize, usize),
) {
    let &MuonStep { learning_rate, weight_decay, cautious, .. } = step;
    let (decay, part) = decay_and_part(step);
    let mut update = zip_map(momentum_buffer, gradient, |m, g| decay * m + part * g);
    orthogonal::orthogonalize(&mut update, shape);
    let (keep, rate) = ((1.0 - learning_rate * weight_decay) as f32, rate(step, shape) as f32);
    if cautious.is_on() {
        update.iter_mut().for_each(|u| *u *= rate);
        cautious.apply(weights, &mut update, gradient, keep);
    } else {
        zip_update(weights, &update, |weight, u| keep * weight - rate * u);
    }
}

/// The factors on the buffer and on the gradient.
fn decay_and_part(step: &MuonStep) -> (f32, f32) {
    (step.momentum as f32, ((1.0 - step.momentum) * step.gradient_scale) as f32)
}
