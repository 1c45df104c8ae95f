//! The Gaussian error linear unit (Hendrycks and Gimpel 2016, arXiv:1606.08415), exact and approximate.
//!
//! Composed from `erf` and `tanh`, because the gradients of candle's own `gelu_erf` and `gelu` use constants
//! of six digits.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

use candle_core::{Result, Tensor};

/// `x * Phi(x) = x * (1 + erf(x / sqrt(2))) / 2`, element by element; any shape.
///
/// # Errors
/// If the dtype is not a floating-point one.
pub fn gelu_erf(xs: &Tensor) -> Result<Tensor> {
    let phi = (xs * FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5)?;
    xs * phi
}

/// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`, element by element; any shape.
///
/// # Errors
/// If the dtype is not a floating-point one.
pub fn gelu_tanh(xs: &Tensor) -> Result<Tensor> {
    let inner = (xs * xs.sqr()?.affine(0.044715, 1.0)?)?;
    let phi = (inner * FRAC_2_PI.sqrt())?.tanh()?.affine(0.5, 0.5)?;
    xs * phi
}
