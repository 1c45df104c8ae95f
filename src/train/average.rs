//! The exponential moving average of the weights.
//!
//! ```text
//! average = weight                                  after the first update
//! average = decay average + (1 - decay) weight      after each later one
//! ```
//!
//! That is torch's `AveragedModel` with `get_ema_multi_avg_fn(decay)`, updated after every step.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};

use super::fit;
use crate::nn::Parameters;
use crate::ops;

/// The names, in a checkpoint, of the weights in training beside the average, which is the model.
const RAW: &str = "weight.";

/// The average of a model's weights.
pub(super) struct WeightAverage {
    parameters: Parameters,
    vars: Vec<(String, Var)>,
    decay: f64,
}

impl WeightAverage {
    /// Starts from these values.
    pub(super) fn new(vars: &[(String, Var)], decay: f64) -> Result<Self> {
        let copies = vars.iter().map(|(name, var)| Ok((name.clone(), var.as_detached_tensor().copy()?)));
        let parameters = Parameters::restored(copies.collect::<Result<Vec<_>>>()?)?;
        Ok(Self { vars: parameters.vars(), parameters, decay })
    }

    /// The averaged weights, to build a model of.
    pub(super) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Takes note of the weights after the update number `update`, counted from 1.
    pub(super) fn update(&mut self, vars: &[(String, Var)], update: u64) -> Result<()> {
        let decay = if update == 1 { 0.0 } else { self.decay };
        let mut results: Vec<_> = self.vars.iter().zip(vars).map(|pair| (pair, Ok(()))).collect();
        ops::for_each(&mut results, |_, (((_, average), (_, var)), result)| {
            *result = ops::moving_average(average, var, decay);
        });
        results.into_iter().try_for_each(|(_, result)| result)
    }

    /// Puts saved values back.
    ///
    /// # Errors
    /// If some are missing, left over or misshapen: all of them are listed, and nothing is changed.
    pub(super) fn restore(&self, weights: &BTreeMap<String, Tensor>) -> Result<()> {
        let expected: Vec<_> = self.vars.iter().map(|(name, var)| (name.clone(), var.dims().to_vec())).collect();
        fit::check("average of the weights", weights, &expected)?;
        self.vars.iter().zip(weights.values()).try_for_each(|((_, var), tensor)| var.set(tensor))
    }
}

/// The weights in training, under the names that they have in a checkpoint beside the average.
pub(super) fn raw_weights(vars: &[(String, Var)]) -> impl Iterator<Item = (String, Tensor)> {
    vars.iter().map(|(name, var)| (format!("{RAW}{name}"), var.as_detached_tensor()))
}

/// Takes the weights in training out of what a checkpoint holds beside the average.
///
/// # Errors
/// If they are not those `expected`, by name and shape: all that are missing, left over or misshapen are listed.
pub(super) fn take_raw_weights(
    moments: &mut BTreeMap<String, Tensor>,
    expected: &[(String, Vec<usize>)],
) -> Result<BTreeMap<String, Tensor>> {
    let raw: Vec<String> = moments.keys().filter(|key| key.starts_with(RAW)).cloned().collect();
    let raw = raw.into_iter().filter_map(|key| Some((key[RAW.len()..].to_string(), moments.remove(&key)?))).collect();
    fit::check("weights in training, beside their average", &raw, expected)?;
    Ok(raw)
}
