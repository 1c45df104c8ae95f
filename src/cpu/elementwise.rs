//! Loops over slices, element by element.

use super::parallel::{CHUNK, for_each_chunk};
use super::simd::dispatch;

/// `f(a[i], b[i])` for slices of one length, in a new vector that is not filled with zeros first.
#[inline(always)]
pub(crate) fn zip_map(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    assert_eq!(a.len(), b.len(), "element by element takes slices of one length");
    let mut out = Vec::with_capacity(a.len());
    for_each_chunk(&mut out.spare_capacity_mut()[..a.len()], CHUNK, |i, out| {
        let (a, b) = (&a[i * CHUNK..][..out.len()], &b[i * CHUNK..][..out.len()]);
        dispatch(
            #[inline(always)]
            || {
                for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                    out.write(f(*a, *b));
                }
            },
        );
    });
    // SAFETY: the chunks cover the first `a.len()` elements, and each chunk was written to its end: `a` and `b` are as
    // long as it is.
    unsafe { out.set_len(a.len()) };
    out
}

/// `out[i] = f(out[i], a[i])` for slices of one length.
#[inline(always)]
pub(crate) fn zip_update(out: &mut [f32], a: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    assert_eq!(out.len(), a.len(), "element by element takes slices of one length");
    for_each_chunk(out, CHUNK, |i, out| {
        let a = &a[i * CHUNK..][..out.len()];
        dispatch(
            #[inline(always)]
            || out.iter_mut().zip(a).for_each(|(out, a)| *out = f(*out, *a)),
        );
    });
}

/// `average = decay * average + weight * a`.
pub(crate) fn move_average(average: &mut [f32], a: &[f32], decay: f32, weight: f32) {
    zip_update(average, a, |average, a| decay * average + weight * a);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_written() {
        for n in [0, 1, 31, CHUNK, 2 * CHUNK + 7] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(zip_map(&a, &a, |a, b| a + b), a.iter().map(|a| 2.0 * a).collect::<Vec<_>>());
            let mut out = a.clone();
            zip_update(&mut out, &a, |out, a| 3.0 * out - a);
            assert_eq!(out, a.iter().map(|a| 2.0 * a).collect::<Vec<_>>());
        }
    }
}
