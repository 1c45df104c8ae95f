//! AdamW composed of candle's own operations, for any dtype and device.

use candle_core::{Result, Tensor, Var};

use super::{AdamWStep, Coefficients, Moments};

/// See [`super::adamw`]; the arguments have been checked. Computed in the dtype of the moments.
pub(super) fn adamw(var: &Var, gradient: &Tensor, moments: &mut Moments, step: &AdamWStep) -> Result<()> {
    let &AdamWStep { beta1, beta2, gradient_scale, cautious, .. } = step;
    let Coefficients { keep, rate, correction, eps } = Coefficients::new(step);
    let gradient = (gradient.to_dtype(moments.first.dtype())? * gradient_scale)?;
    moments.first = ((&moments.first * beta1)? + (&gradient * (1.0 - beta1))?)?;
    moments.second = ((&moments.second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
    let denominator = ((&moments.second * correction)?.sqrt()? + eps)?;
    let update = ((&moments.first * rate)? / denominator)?;
    cautious.apply_composed(var, update, &gradient, keep)
}
