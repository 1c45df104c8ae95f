//! A linear layer with a chosen initialisation.

use candle_core::Result;
use candle_nn::{Init, Linear, VarBuilder};

/// `y = x W^T + b`: reads or creates `weight` (out, in), drawn from `init`, and with `bias` also `bias` (out), zeros.
///
/// # Errors
/// If the builder lacks a tensor or holds it in another shape.
pub fn linear(in_dim: usize, out_dim: usize, bias: bool, init: Init, vb: VarBuilder) -> Result<Linear> {
    let weight = vb.get_with_hints((out_dim, in_dim), "weight", init)?;
    let bias = if bias { Some(vb.get_with_hints(out_dim, "bias", candle_nn::init::ZERO)?) } else { None };
    Ok(Linear::new(weight, bias))
}
