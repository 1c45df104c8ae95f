//! The activations: of one number, with the derivative, for the kernels; and of a tensor, composed of candle's own
//! operations, as the specification and for any dtype and device.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

use candle_core::{Result, Tensor};

use crate::cpu::simd::exp;

/// A function applied element by element.
pub(super) trait Activation: Send + Sync + 'static {
    /// `f(x)`.
    fn value(x: f32) -> f32;

    /// `f(x)` and `f'(x)`.
    fn value_and_slope(x: f32) -> (f32, f32);

    /// `f` of each element, with its exact gradient.
    fn reference(xs: &Tensor) -> Result<Tensor>;
}

/// `x Phi(x)`.
pub(super) struct GeluErf;

impl Activation for GeluErf {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * normal_distribution(x).0
    }

    /// `f' = Phi + x phi`.
    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let (phi, density) = normal_distribution(x);
        (x * phi, phi + x * density)
    }

    /// Not candle's own `gelu_erf`, whose gradient uses constants of six digits.
    fn reference(xs: &Tensor) -> Result<Tensor> {
        let phi = (xs * FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5)?;
        xs * phi
    }
}

/// The standard normal distribution `Phi(x)` and its density, with relative errors of at most 4e-7 plus the effect of
/// rounding `x^2`.
///
/// With `t = |x| / sqrt(2)`, `Phi(-|x|) = erfc(t) / 2 = exp(-x^2 / 2) u P(u) / 2`, where `u = 1 / (1 + t / 2)` and P is
/// the polynomial that `fit_normal_tail.py` fits, so one exponential serves both.
#[inline(always)]
fn normal_distribution(x: f32) -> (f32, f32) {
    /// `1 / sqrt(2 pi)`.
    const DENSITY_AT_0: f32 = 0.398_942_3;
    const HALF_T: f32 = 0.5 * std::f32::consts::FRAC_1_SQRT_2;
    let exponential = exp(-0.5 * x * x);
    let u = 1.0 / (1.0 + HALF_T * x.abs());
    let p = -0.059_069_216f32;
    let p = p * u + 0.284_576_18;
    let p = p * u - 0.487_202_3;
    let p = p * u + 0.278_069_8;
    let p = p * u - 0.026_627_384;
    let p = p * u + 0.202_687_56;
    let p = p * u + 0.243_103_6;
    let p = p * u + 0.282_375_34;
    let p = p * u + 0.282_086_4;
    let tail = 0.5 * exponential * u * p;
    (if x > 0.0 { 1.0 - tail } else { tail }, DENSITY_AT_0 * exponential)
}

/// `x sigma(2 u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`: `(1 + tanh(u)) / 2` is `sigma(2 u)`.
pub(super) struct GeluTanh;

impl GeluTanh {
    /// `2 sqrt(2 / pi)`.
    const SCALE: f32 = 1.595_769;
    const CUBIC: f32 = 0.044_715;
}

impl Activation for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        let x = floored(x);
        x * sigmoid(Self::SCALE * (x + Self::CUBIC * x * x * x)).0
    }

    /// `f' = sigma + x sigma (1 - sigma) 2 u'`.
    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        // Beyond 100 the sigmoid is 0 or 1, and the square might overflow.
        let x = floored(x);
        let near = x.clamp(-100.0, 100.0);
        let (s, rest) = sigmoid(Self::SCALE * (near + Self::CUBIC * near * near * near));
        let slope = Self::SCALE * (1.0 + 3.0 * Self::CUBIC * near * near);
        (x * s, s + near * s * rest * slope)
    }

    /// Not candle's own `gelu`, whose gradient uses constants of six digits.
    fn reference(xs: &Tensor) -> Result<Tensor> {
        let inner = (xs * xs.sqr()?.affine(0.044715, 1.0)?)?;
        let phi = (inner * FRAC_2_PI.sqrt())?.tanh()?.affine(0.5, 0.5)?;
        xs * phi
    }
}

/// `x sigma(x)`.
pub(super) struct Silu;

impl Activation for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        let x = floored(x);
        x * sigmoid(x).0
    }

    /// `f' = sigma (1 + x (1 - sigma))`.
    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let x = floored(x);
        let (s, rest) = sigmoid(x);
        (x * s, s * (1.0 + x * rest))
    }

    /// Not candle's own `silu`, whose gradient loses all precision for large inputs in a difference.
    fn reference(xs: &Tensor) -> Result<Tensor> {
        // Beyond 80 the exponential and its square might overflow; the sigmoid is 1 there, and 0 below -80.
        let sigma = (xs.clamp(-80.0, 80.0)?.neg()?.exp()? + 1.0)?.recip()?;
        let is_far = xs.lt(-80.0)?;
        is_far.where_cond(&xs.zeros_like()?.detach(), &(xs * sigma)?)
    }
}

/// `x sigma(1.702 x)`.
pub(super) struct QuickGelu;

impl QuickGelu {
    const SCALE: f32 = 1.702;
}

impl Activation for QuickGelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        Silu::value(Self::SCALE * x) / Self::SCALE
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let (y, slope) = Silu::value_and_slope(Self::SCALE * x);
        (y / Self::SCALE, slope)
    }

    fn reference(xs: &Tensor) -> Result<Tensor> {
        Silu::reference(&(xs * 1.702)?)? / 1.702
    }
}

/// `max(x, 0)`, with derivative 0 at 0.
pub(super) struct Relu;

impl Activation for Relu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        if x <= 0.0 { 0.0 } else { x }
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        (Self::value(x), if x <= 0.0 { 0.0 } else { 1.0 })
    }

    /// Not candle's own `relu`, whose gradient is 1 at 0.
    fn reference(xs: &Tensor) -> Result<Tensor> {
        xs.le(0.0)?.where_cond(&xs.zeros_like()?.detach(), xs)
    }
}

/// `max(x, 0)^2`.
pub(super) struct ReluSquared;

impl Activation for ReluSquared {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        Relu::value(x) * Relu::value(x)
    }

    /// `f' = 2 max(x, 0)`.
    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let x = Relu::value(x);
        (x * x, 2.0 * x)
    }

    fn reference(xs: &Tensor) -> Result<Tensor> {
        Relu::reference(xs)?.sqr()
    }
}

/// `x`, but at least -100, where the sigmoid is practically 0: the product with a much larger `x` would not be.
#[inline(always)]
fn floored(x: f32) -> f32 {
    if x < -100.0 { -100.0 } else { x }
}

/// `sigma(x) = 1 / (1 + e^-x)`, and `1 - sigma(x)` computed without a difference.
#[inline(always)]
fn sigmoid(x: f32) -> (f32, f32) {
    let e = exp(-x);
    let sigma = 1.0 / (1.0 + e);
    (sigma, e * sigma)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_distribution_is_within_its_bound() {
        for i in -130_000..=130_000 {
            let x = i as f32 * 1e-4;
            // From candle's erfc in f64.
            let expected = 0.5 * candle_core::cpu::erf::erfc_f64(-f64::from(x) * FRAC_1_SQRT_2);
            let (phi, density) = normal_distribution(x);
            // The rounding error of x^2 / 2 grows with it in the exponent.
            let bound = 4e-7 + 1.2e-7 * f64::from(x * x / 2.0).min(if x > 0.0 { 0.0 } else { f64::INFINITY });
            assert!((f64::from(phi) / expected - 1.0).abs() < bound, "Phi({x}) = {phi}, expected {expected}");
            let expected = (-0.5 * f64::from(x).powi(2)).exp() / (2.0 * std::f64::consts::PI).sqrt();
            assert!((f64::from(density) / expected - 1.0).abs() < 4e-7 + 1.2e-7 * f64::from(x * x / 2.0));
        }
        assert!(normal_distribution(f32::NAN).0.is_nan());
        assert_eq!(normal_distribution(f32::INFINITY), (1.0, 0.0));
        assert_eq!(normal_distribution(f32::NEG_INFINITY), (0.0, 0.0));
    }

    #[test]
    fn nothing_is_left_far_below_zero() {
        for x in [-101.0, -1e10, -1e38, f32::MIN] {
            let values = [Silu::value(x), GeluTanh::value(x), GeluErf::value(x)];
            let slopes = [Silu::value_and_slope(x), GeluTanh::value_and_slope(x), GeluErf::value_and_slope(x)];
            assert!(values.iter().all(|y| y.abs() < 1e-36), "{x}: {values:?}");
            assert!(slopes.iter().all(|(y, slope)| y.abs() < 1e-36 && slope.abs() < 1e-30), "{x}: {slopes:?}");
        }
        let x = Tensor::new(-1e38f64, &candle_core::Device::Cpu).unwrap();
        assert_eq!(Silu::reference(&x).unwrap().to_scalar::<f64>().unwrap(), 0.0);
    }
}
