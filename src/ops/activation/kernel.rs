//! Activations and gated products and their gradients, on slices.

use super::functions::Activation;
use crate::cpu::elementwise::{map_to_two, zip_map};
use crate::cpu::parallel::{CHUNK, for_each_chunk_pair};
use crate::cpu::simd::dispatch;

/// `y = f(x)`.
pub(super) fn forward<A: Activation>(xs: &[f32]) -> Vec<f32> {
    zip_map(
        xs,
        xs,
        #[inline(always)]
        |x, _| A::value(x),
    )
}

/// `y = f(x)` and `f'(x)`, which share most of their arithmetic.
pub(super) fn forward_with_slopes<A: Activation>(xs: &[f32]) -> (Vec<f32>, Vec<f32>) {
    map_to_two(
        xs,
        #[inline(always)]
        |x| A::value_and_slope(x),
    )
}

/// `dx = dy f'(x)`, as `y = f(x)`.
pub(super) fn backward<A: Activation>(xs: &[f32], dys: &[f32]) -> Vec<f32> {
    zip_map(
        xs,
        dys,
        #[inline(always)]
        |x, dy| dy * A::value_and_slope(x).1,
    )
}

/// The same from `f'(x)`.
pub(super) fn backward_by_slopes(slopes: &[f32], dys: &[f32]) -> Vec<f32> {
    zip_map(slopes, dys, |slope, dy| dy * slope)
}

/// `y = f(gate) up`.
pub(super) fn gated_forward<A: Activation>(gate: &[f32], up: &[f32]) -> Vec<f32> {
    zip_map(
        gate,
        up,
        #[inline(always)]
        |gate, up| A::value(gate) * up,
    )
}

/// `y = f(x)`, or `y = f(x) up`, on this thread.
#[cfg(feature = "lm")]
pub(super) fn on_slices<A: Activation>(ys: &mut [f32], xs: &[f32], up: Option<&[f32]>) {
    dispatch(
        #[inline(always)]
        || match up {
            None => ys.iter_mut().zip(xs).for_each(|(y, x)| *y = A::value(*x)),
            Some(up) => ys.iter_mut().zip(xs).zip(up).for_each(|((y, x), up)| *y = A::value(*x) * up),
        },
    );
}

/// `dgate = dy f'(gate) up` and `dup = dy f(gate)`, as `y = f(gate) up`.
pub(super) fn gated_backward<A: Activation>([dgate, dup]: [&mut [f32]; 2], gate: &[f32], up: &[f32], dys: &[f32]) {
    for_each_chunk_pair((dgate, CHUNK), (dup, CHUNK), |i, dgate, dup| {
        let (gate, up, dys) = (&gate[i * CHUNK..], &up[i * CHUNK..], &dys[i * CHUNK..]);
        dispatch(
            #[inline(always)]
            || {
                let inputs = gate.iter().zip(up).zip(dys);
                for ((dgate, dup), ((gate, up), dy)) in dgate.iter_mut().zip(dup.iter_mut()).zip(inputs) {
                    let (value, slope) = A::value_and_slope(*gate);
                    *dgate = dy * slope * up;
                    *dup = dy * value;
                }
            },
        );
    });
}
