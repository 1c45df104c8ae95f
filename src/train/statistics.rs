//! Norms of each tensor's weights, gradient and update at one step.

use candle_core::{Result, Tensor, Var};

use crate::cpu::sums::euclidean_norm;

/// Euclidean norms of one tensor at one step.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TensorStatistics {
    /// The name of the tensor.
    pub name: String,
    /// Of the weights before the update.
    pub weight_norm: f64,
    /// Of the gradient before clipping.
    pub gradient_norm: f64,
    /// Of the change of the weights, including weight decay.
    pub update_norm: f64,
}

/// Copies of the weights before an update.
pub(super) fn copies(vars: &[(String, Var)]) -> Result<Vec<Tensor>> {
    vars.iter().map(|(_, var)| var.as_detached_tensor().copy()).collect()
}

/// The statistics of an update, from the weights before it and the norms of the gradients.
pub(super) fn statistics(vars: &[(String, Var)], before: &[Tensor], norms: &[f64]) -> Result<Vec<TensorStatistics>> {
    let of = |i: usize| {
        let (name, var) = &vars[i];
        Ok(TensorStatistics {
            name: name.clone(),
            weight_norm: euclidean_norm(&before[i])?,
            gradient_norm: norms[i],
            update_norm: euclidean_norm(&(var.as_detached_tensor() - &before[i])?)?,
        })
    };
    (0..vars.len()).map(of).collect()
}
