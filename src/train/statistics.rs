//! Norms of each tensor's weights, gradient and update at one step.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};
use serde::Serialize;

use crate::ops;

/// Norms of every trainable tensor at one step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StatisticsReport {
    /// Steps done, including this one.
    pub step: u64,
    /// By the name of the tensor.
    pub statistics: BTreeMap<String, TensorStatistics>,
}

/// Euclidean norms of one tensor at one step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TensorStatistics {
    /// Of the weights before the update.
    pub weight_norm: f64,
    /// Of the gradient before clipping.
    pub gradient_norm: f64,
    /// Of the change of the weights, including weight decay.
    pub update_norm: f64,
    /// The update's norm divided by the weights', unless that is zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_ratio: Option<f64>,
}

/// The weights before an update.
pub(super) struct Before(Vec<Tensor>);

impl Before {
    pub(super) fn new(vars: &[(String, Var)]) -> Result<Self> {
        Ok(Self(vars.iter().map(|(_, var)| var.as_detached_tensor().copy()).collect::<Result<_>>()?))
    }

    /// The statistics of step `step`, whose gradients had these norms.
    pub(super) fn report(self, step: u64, vars: &[(String, Var)], norms: &[f64]) -> Result<StatisticsReport> {
        let of = |before: &Tensor, var: &Var, gradient_norm: f64| -> Result<TensorStatistics> {
            let weight_norm = ops::euclidean_norm(before)?;
            let update_norm = ops::euclidean_norm(&(var.as_detached_tensor() - before)?)?;
            let update_ratio = (weight_norm > 0.0).then(|| update_norm / weight_norm);
            Ok(TensorStatistics { weight_norm, gradient_norm, update_norm, update_ratio })
        };
        let tensors = vars.iter().zip(&self.0).zip(norms);
        let named = tensors.map(|(((name, var), before), norm)| Ok((name.clone(), of(before, var, *norm)?)));
        Ok(StatisticsReport { step, statistics: named.collect::<Result<_>>()? })
    }
}
