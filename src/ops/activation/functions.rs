//! The activations, each of one number (with its slope) for the kernels, and of a tensor, composed of candle's own
//! operations: the specification, for any dtype and device.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

use candle_core::{Result, Tensor};

use crate::ops::simd::{erf, exp};

/// A function that is applied element by element.
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
        x * (0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2))
    }

    /// `f' = Phi + x phi`.
    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        /// `1 / sqrt(2 pi)`.
        const DENSITY_AT_0: f32 = 0.398_942_3;
        let phi = 0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2);
        (x * phi, phi + x * DENSITY_AT_0 * exp(-0.5 * x * x))
    }

    /// The gradient of candle's own `gelu_erf` uses constants of six digits.
    fn reference(xs: &Tensor) -> Result<Tensor> {
        let phi = (xs * FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5)?;
        xs * phi
    }
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
        x * sigmoid(Self::SCALE * (x + Self::CUBIC * x * x * x)).0
    }

    /// `f' = sigma + x sigma (1 - sigma) 2 u'`.
    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        // The sigmoid has long been 0 or 1, and the square does not overflow.
        let near = x.clamp(-100.0, 100.0);
        let (s, rest) = sigmoid(Self::SCALE * (near + Self::CUBIC * near * near * near));
        let slope = Self::SCALE * (1.0 + 3.0 * Self::CUBIC * near * near);
        (x * s, s + near * s * rest * slope)
    }

    /// The gradient of candle's own `gelu` uses constants of six digits.
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
        x * sigmoid(x).0
    }

    /// `f' = sigma (1 + x (1 - sigma))`.
    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let (s, rest) = sigmoid(x);
        (x * s, s * (1.0 + x * rest))
    }

    /// The gradient of candle's own `silu` takes a difference that leaves nothing of large inputs.
    fn reference(xs: &Tensor) -> Result<Tensor> {
        // Further out nothing changes, but the exponential and its square would overflow.
        let sigma = (xs.clamp(-80.0, 80.0)?.neg()?.exp()? + 1.0)?.recip()?;
        xs * sigma
    }
}

/// `max(x, 0)`, of slope 0 at 0.
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

    /// The gradient of candle's own `relu` is 1 at 0.
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

/// `sigma(x) = 1 / (1 + e^-x)`, and `1 - sigma(x)` without taking a difference.
#[inline(always)]
fn sigmoid(x: f32) -> (f32, f32) {
    let e = exp(-x);
    let sigma = 1.0 / (1.0 + e);
    (sigma, e * sigma)
}
