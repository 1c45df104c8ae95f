//! Vector instructions, chosen at run time.
//!
//! Kernels are plain loops over slices, marked `#[inline(always)]` and called through [`dispatch`], which compiles them
//! for AVX-512, for AVX2 with FMA and for the baseline, and runs the best version that the processor supports. The
//! environment variable `CANDLE_ATTENTION_SIMD` (`scalar`, `avx2` or `avx512`) selects another supported one.

use std::sync::OnceLock;

use pulp::{Arch, NullaryFnOnce, Simd, WithSimd};

/// Runs a kernel in the version for this processor.
#[inline]
pub(crate) fn dispatch<R>(kernel: impl FnMut() -> R) -> R {
    dispatch_vectors(Kernel(kernel))
}

/// Runs a kernel that uses vectors explicitly in the version for this processor.
#[inline]
pub(crate) fn dispatch_vectors<K: WithSimd>(kernel: K) -> K::Output {
    #[cfg(test)]
    if let Some(arch) = super::testing::forced_arch() {
        return arch.dispatch(kernel);
    }
    arch().dispatch(kernel)
}

/// Whether the version for this processor may use AVX-512 and its instructions for bf16.
pub(crate) fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return matches!(arch(), Arch::V4(_)) && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn arch() -> Arch {
    static ARCH: OnceLock<Arch> = OnceLock::new();
    *ARCH.get_or_init(choose)
}

/// A closure that is certain to be compiled into each version. pulp calls plain closures as `FnOnce`, through a shim
/// that the compiler generates without `#[inline(always)]` and compiles only once, for the baseline.
struct Kernel<F>(F);

impl<R, F: FnMut() -> R> NullaryFnOnce for Kernel<F> {
    type Output = R;

    #[inline(always)]
    fn call(mut self) -> R {
        (self.0)()
    }
}

fn choose() -> Arch {
    let wish = std::env::var("CANDLE_ATTENTION_SIMD").unwrap_or_default();
    match wish.as_str() {
        "scalar" => return Arch::Scalar,
        #[cfg(target_arch = "x86_64")]
        "avx2" => {
            if let Some(v3) = pulp::x86::V3::try_new() {
                return Arch::V3(v3);
            }
        }
        #[cfg(target_arch = "x86_64")]
        "avx512" => {
            if let Some(v4) = pulp::x86::V4::try_new() {
                return Arch::V4(v4);
            }
        }
        _ => {}
    }
    Arch::new()
}

/// Asks the processor to fetch the cache line of an address, wherever it leads: a hint without effect on results, for reads
/// that it does not foresee.
#[inline(always)]
pub(crate) fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction reads nothing, so it is defined for every address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Below this, results of [`exp`] are 0: they would not be normal numbers.
const LOWEST: f32 = -87.3;

/// ln 2 in two parts, the first with so few bits that an exponent times it is exact.
const LN_2_HI: f32 = 0.693_359_4;
const LN_2_LO: f32 = -2.121_944_4e-4;

/// The coefficients of the polynomial `p` in `e^r = p r^2 + r + 1`, the highest first.
const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_3e-1];

/// `e^x` to within two units in the last place: 0 below -87.3, capped at 3.4e38 above 88.3.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `e^r` by a polynomial (the coefficients of Cephes' `expf`), `2^n` by its
/// bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    let clamped = x.clamp(LOWEST, 88.3);
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let rounded = clamped * LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * LN_2_HI) - n * LN_2_LO;
    let mut p = EXP[0];
    for coefficient in &EXP[1..] {
        p = p * r + coefficient;
    }
    let e_r = (p * r) * r + r + 1.0;
    let two_n = f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < LOWEST { 0.0 } else { e_r * two_n }
}

/// [`exp`] of vectors of numbers up to 0, with fused multiply-adds.
#[inline(always)]
pub(crate) fn exp_of_negative<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Of -88, `n` below is -127, for which `2^n` becomes 0. NaN stays as it is.
    let is_low = simd.less_than_f32s(x, simd.splat_f32s(LOWEST));
    let x = simd.select_f32s(is_low, simd.splat_f32s(-88.0), x);
    // As in `exp`, but what is left in the lowest bits is already the exponent of a number.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    let rounded = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), simd.splat_f32s(ROUND));
    let n = simd.sub_f32s(rounded, simd.splat_f32s(ROUND));
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN_2_HI), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN_2_LO), r);
    let mut p = simd.splat_f32s(EXP[0]);
    for coefficient in &EXP[1..] {
        p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(*coefficient));
    }
    let e_r = simd.mul_add_e_f32s(simd.mul_f32s(p, r), r, simd.add_f32s(r, simd.splat_f32s(1.0)));
    let two_n = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    simd.mul_f32s(e_r, simd.transmute_f32s_u32s(two_n))
}

/// `tanh(x)` to within three units in the last place: near 0 by the polynomial of Cephes' `tanhf`, elsewhere
/// `1 - 2 / (e^2x + 1)`.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let s = x * x;
    let near = -5.704_988_7e-3f32;
    let near = near * s + 2.063_908_8e-2;
    let near = near * s - 5.373_971_5e-2;
    let near = near * s + 1.333_144_2e-1;
    let near = near * s - 3.333_328e-1;
    let near = near * s * x + x;
    let t = x.abs();
    let far = (1.0 - 2.0 / (exp(2.0 * t) + 1.0)).copysign(x);
    if t > 0.625 { far } else { near }
}

/// The number of running sums and maxima: the same operations in the same order in every version.
const LANES: usize = 16;

/// The sum of `f(a[i], b[i])`, in sixteen running sums.
#[inline(always)]
pub(crate) fn sum_of(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += f(a[lane], b[lane]);
        }
    }
    let rest = a_rest.len().min(b_rest.len());
    if rest > 0 {
        let (a, b) = (padded(&a_rest[..rest]), padded(&b_rest[..rest]));
        for lane in 0..LANES {
            sums[lane] += if lane < rest { f(a[lane], b[lane]) } else { 0.0 };
        }
    }
    across(sums, |a, b| a + b)
}

/// The highest element, or minus infinity if there is none. NaN is ignored.
#[inline(always)]
pub(crate) fn max_of(xs: &[f32]) -> f32 {
    let higher = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = xs.as_chunks::<LANES>();
    let mut highest = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            highest[lane] = higher(highest[lane], chunk[lane]);
        }
    }
    rest.iter().fold(across(highest, higher), |highest, x| higher(highest, *x))
}

/// A slice with fewer elements than lanes, padded with zeros.
#[inline(always)]
fn padded(xs: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..xs.len()].copy_from_slice(xs);
    lanes
}

/// Reduces all lanes to one by halving. Written out, because a loop would keep the lanes in memory, and with them the
/// loop that filled them.
#[inline(always)]
fn across(lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|lane| f(lanes[lane], lanes[lane + 8]));
    let four: [f32; 4] = std::array::from_fn(|lane| f(eight[lane], eight[lane + 4]));
    f(f(four[0], four[2]), f(four[1], four[3]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_is_within_three_units_in_the_last_place() {
        for i in -100_000..=100_000 {
            let x = i as f32 * 1e-4 + 1e-7;
            let (got, expected) = (f64::from(tanh(x)), f64::from(x).tanh());
            assert!((got / expected - 1.0).abs() < 3.6e-7, "tanh({x}) = {got}, expected {expected}");
        }
        assert_eq!((tanh(0.0), tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (0.0, 1.0, -1.0));
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3;
            let (got, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / expected - 1.0).abs() < 2.4e-7, "exp({x}) = {got}, expected {expected}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::INFINITY) > 1e38);
        assert!(exp(f32::NAN).is_nan());
    }

    /// Of vectors of 16 numbers.
    struct Exponentials<'a>(&'a mut [f32]);

    impl WithSimd for Exponentials<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for x in S::as_mut_simd_f32s(self.0).0 {
                *x = exp_of_negative(simd, *x);
            }
        }
    }

    #[test]
    fn exp_of_negative_is_within_two_units_in_the_last_place_in_each_version() {
        let xs: Vec<f32> = (0..87_296).map(|i| i as f32 * -1e-3).collect();
        let special = [f32::NEG_INFINITY, f32::MIN, -1e5, -88.0, -87.31, -0.0, f32::NAN];
        for (name, (got, of_special)) in crate::cpu::testing::in_each_version(|| {
            let (mut got, mut of_special) = (xs.clone(), [0.0; 16]);
            of_special[..special.len()].copy_from_slice(&special);
            dispatch_vectors(Exponentials(&mut got));
            dispatch_vectors(Exponentials(&mut of_special));
            (got, of_special)
        }) {
            for (x, got) in xs.iter().zip(got) {
                let expected = f64::from(*x).exp();
                assert!((f64::from(got) / expected - 1.0).abs() < 2.4e-7, "{name}: {x}: {got}, expected {expected}");
            }
            assert_eq!(of_special[..6], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0], "{name}");
            assert!(of_special[6].is_nan(), "{name}");
        }
    }
}
