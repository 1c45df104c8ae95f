//! AdamW's formula, on slices.

use super::AdamWStep;
use crate::cpu::parallel::{CHUNK, for_each};
use crate::cpu::simd::dispatch;

/// Elements at once.
const LANES: usize = 16;

/// How the moments follow the gradient.
#[derive(Clone, Copy)]
pub(super) struct Averages {
    scale: f32,
    decays: [f32; 2],
    /// Of the gradient, scaled, and of its square.
    parts: [f32; 2],
}

impl Averages {
    pub(super) fn new(step: &AdamWStep) -> Self {
        let &AdamWStep { beta1, beta2, gradient_scale: scale, .. } = step;
        Self {
            scale: scale as f32,
            decays: [beta1 as f32, beta2 as f32],
            parts: [((1.0 - beta1) * scale) as f32, (1.0 - beta2) as f32],
        }
    }

    /// The next moments. Scaling comes before squaring, so that a clipped gradient does not overflow.
    #[inline(always)]
    fn follow(&self, [m, v]: [f32; 2], g: f32) -> [f32; 2] {
        let scaled = self.scale * g;
        [self.decays[0] * m + self.parts[0] * g, self.decays[1] * v + self.parts[1] * (scaled * scaled)]
    }
}

/// The coefficients of the update.
#[derive(Clone, Copy)]
pub(super) struct Coefficients {
    pub(super) keep: f32,
    pub(super) rate: f32,
    pub(super) correction: f32,
    pub(super) eps: f32,
}

impl Coefficients {
    /// `rate m / (sqrt(correction v) + eps)`.
    #[inline(always)]
    fn update(&self, [m, v]: [f32; 2]) -> f32 {
        self.rate * m / ((self.correction * v).sqrt() + self.eps)
    }
}

/// Moments and weights, in one pass: `w = keep w - update`.
pub(super) fn step(
    weights: &mut [f32],
    moments: [&mut [f32]; 2],
    gradient: &[f32],
    averages: Averages,
    coefficients: Coefficients,
) {
    pass(
        weights,
        moments,
        gradient,
        #[inline(always)]
        |weight, moments, g| {
            let moments = averages.follow(moments, g);
            (coefficients.keep * weight - coefficients.update(moments), moments)
        },
    );
}

/// Moments, and the update alone.
pub(super) fn update(
    moments: [&mut [f32]; 2],
    gradient: &[f32],
    averages: Averages,
    coefficients: Coefficients,
) -> Vec<f32> {
    let mut update = vec![0.0; gradient.len()];
    pass(
        &mut update,
        moments,
        gradient,
        #[inline(always)]
        |_, moments, g| {
            let moments = averages.follow(moments, g);
            (coefficients.update(moments), moments)
        },
    );
    update
}

/// Replaces each weight and its moments by what `f` makes of them and the gradient.
#[inline(always)]
fn pass(
    weights: &mut [f32],
    [first, second]: [&mut [f32]; 2],
    gradient: &[f32],
    f: impl Fn(f32, [f32; 2], f32) -> (f32, [f32; 2]) + Sync,
) {
    let moments = first.chunks_mut(CHUNK).zip(second.chunks_mut(CHUNK));
    let chunks = weights.chunks_mut(CHUNK).zip(moments).zip(gradient.chunks(CHUNK));
    for_each(chunks, |((weights, (first, second)), gradient)| {
        dispatch(
            #[inline(always)]
            || {
                let (weights, w_rest) = weights.as_chunks_mut::<LANES>();
                let (first, m_rest) = first.as_chunks_mut::<LANES>();
                let (second, v_rest) = second.as_chunks_mut::<LANES>();
                let (gradient, g_rest) = gradient.as_chunks::<LANES>();
                // Copies that cannot overlap, or the compiler would not use vectors.
                for ((weight, (m, v)), g) in weights.iter_mut().zip(first.iter_mut().zip(second)).zip(gradient) {
                    let (mut new_weight, mut new_m, mut new_v) = (*weight, *m, *v);
                    for i in 0..LANES {
                        (new_weight[i], [new_m[i], new_v[i]]) = f(weight[i], [m[i], v[i]], g[i]);
                    }
                    (*weight, *m, *v) = (new_weight, new_m, new_v);
                }
                for ((weight, (m, v)), g) in w_rest.iter_mut().zip(m_rest.iter_mut().zip(v_rest)).zip(g_rest) {
                    (*weight, [*m, *v]) = f(*weight, [*m, *v], *g);
                }
            },
        );
    });
}
