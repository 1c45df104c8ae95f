//! The exponential moving average of the weights.
//!
//! ```text
//! average = weight                                       after the first update
//! average = average + (1 - decay) (weight - average)     after each later one
//! ```
//!
//! This is torch's `AveragedModel` with `get_ema_multi_avg_fn(decay)`, updated after every step.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};

use super::fit;
use crate::nn::Parameters;
use crate::ops;

/// Prefix of the names of the weights in training in a checkpoint, whose own weights are the average.
const RAW: &str = "weight.";

/// The average of a model's weights.
pub(super) struct WeightAverage {
    parameters: Parameters,
    vars: Vec<(String, Var)>,
    decay: f64,
}

impl WeightAverage {
    /// An average that starts at the current values.
    pub(super) fn new(vars: &[(String, Var)], decay: f64) -> Result<Self> {
        let copies = vars.iter().map(|(name, var)| Ok((name.clone(), var.as_detached_tensor().copy()?)));
        let parameters = Parameters::restored(copies.collect::<Result<Vec<_>>>()?)?;
        Ok(Self { vars: parameters.vars(), parameters, decay })
    }

    /// The averaged weights by name.
    pub(super) fn vars(&self) -> &[(String, Var)] {
        &self.vars
    }

    /// The averaged weights, to build a model from.
    pub(super) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Adds the weights after update number `update`, counted from 1.
    pub(super) fn update(&mut self, vars: &[(String, Var)], update: u64) -> Result<()> {
        let decay = if update == 1 { 0.0 } else { self.decay };
        let mut results: Vec<_> = self.vars.iter().zip(vars).map(|pair| (pair, Ok(()))).collect();
        ops::for_each(&mut results, |_, (((_, average), (_, var)), result)| {
            *result = ops::moving_average(average, var, decay);
        });
        results.into_iter().try_for_each(|(_, result)| result)
    }

    /// Restores saved values.
    ///
    /// # Errors
    /// If any are missing, unexpected or misshapen: all of these are listed, and nothing is changed.
    pub(super) fn restore(&self, weights: &BTreeMap<String, Tensor>) -> Result<()> {
        let expected: Vec<_> = self.vars.iter().map(|(name, var)| (name.clone(), var.dims().to_vec())).collect();
        fit::check("average of the weights", weights, &expected)?;
        self.vars.iter().zip(weights.values()).try_for_each(|((_, var), tensor)| var.set(tensor))
    }
}

/// The weights in training, under the names they have in a checkpoint beside the average.
pub(super) fn raw_weights(vars: &[(String, Var)]) -> impl Iterator<Item = (String, Tensor)> {
    vars.iter().map(|(name, var)| (format!("{RAW}{name}"), var.as_detached_tensor()))
}

/// Takes the weights in training out of the optimizer tensors of a checkpoint.
///
/// # Errors
/// If names or shapes are not the `expected` ones: all that are missing, unexpected or misshapen are listed.
pub(super) fn take_raw_weights(
    moments: &mut BTreeMap<String, Tensor>,
    expected: &[(String, Vec<usize>)],
) -> Result<BTreeMap<String, Tensor>> {
    let raw: Vec<String> = moments.keys().filter(|key| key.starts_with(RAW)).cloned().collect();
    let raw = raw.into_iter().filter_map(|key| Some((key[RAW.len()..].to_string(), moments.remove(&key)?))).collect();
    fit::check("weights in training, beside their average", &raw, expected)?;
    Ok(raw)
}
