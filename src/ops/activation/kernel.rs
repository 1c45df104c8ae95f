//! Activations and gated products and their gradients, on slices.

use super::functions::Activation;
use crate::ops::parallel::{for_each_chunk, for_each_chunk_pair};
use crate::ops::simd::dispatch;

/// Elements a piece of work: enough to be worth handing to a thread.
const CHUNK: usize = 16 * 1024;

/// `y = f(x)`.
pub(super) fn forward<A: Activation>(ys: &mut [f32], xs: &[f32]) {
    map(
        ys,
        xs,
        xs,
        #[inline(always)]
        |x, _| A::value(x),
    );
}

/// `dx = dy f'(x)`, as `y = f(x)`.
pub(super) fn backward<A: Activation>(dxs: &mut [f32], xs: &[f32], dys: &[f32]) {
    map(
        dxs,
        xs,
        dys,
        #[inline(always)]
        |x, dy| dy * A::value_and_slope(x).1,
    );
}

/// `y = f(gate) up`.
pub(super) fn gated_forward<A: Activation>(ys: &mut [f32], gate: &[f32], up: &[f32]) {
    map(
        ys,
        gate,
        up,
        #[inline(always)]
        |gate, up| A::value(gate) * up,
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
