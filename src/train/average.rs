//! The exponential moving average of the weights.
//!
//! ```text
//! average = weight                                       after the first update
//! average = average + (1 - decay) (weight - average)     after each later one
//! ```
//!
//! This is torch's `AveragedModel` with `get_ema_multi_avg_fn(decay)`, updated after every step.

use candle_core::{Result, Var};

use crate::cpu::parallel::map;
use crate::nn::Parameters;
use crate::optim::moving_average;

/// The average of a model's weights.
pub(super) struct WeightAverage {
    /// The averaged weights, to build a model from.
    pub(super) parameters: Parameters,
    pub(super) vars: Vec<(String, Var)>,
    decay: f64,
}

impl WeightAverage {
    /// An average that starts at the current values.
    pub(super) fn new(vars: &[(String, Var)], decay: f64) -> Result<Self> {
        let copies = vars.iter().map(|(name, var)| Ok((name.clone(), var.as_detached_tensor().copy()?)));
        let parameters = Parameters::restored(copies.collect::<Result<Vec<_>>>()?)?;
        Ok(Self { vars: parameters.vars(), parameters, decay })
    }

    /// Adds the weights after update number `update`, counted from 1.
    pub(super) fn update(&mut self, vars: &[(String, Var)], update: u64) -> Result<()> {
        let decay = if update == 1 { 0.0 } else { self.decay };
        let results = map(vars.len(), |i| moving_average(&self.vars[i].1, &vars[i].1, decay));
        results.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use serde_json::Value;

    /// `tests/fixtures/recipes.py` asks torch's own `AveragedModel`.
    #[test]
    fn a_moving_average_is_torchs() {
        let fixture = include_str!("../../tests/fixtures/recipes.json");
        let fixture = &serde_json::from_str::<Value>(fixture).unwrap()["moving_average"];
        let rows = |name: &str| serde_json::from_value::<Vec<Vec<f64>>>(fixture[name].clone()).unwrap();
        let tensor = |row: &[f64]| Tensor::new(row, &Device::Cpu).unwrap();
        let var = Var::from_tensor(&tensor(&[9.0, 9.0, 9.0])).unwrap();
        let vars = [("weight".to_string(), var)];
        let mut average = WeightAverage::new(&vars, fixture["decay"].as_f64().unwrap()).unwrap();
        assert_eq!(rows("weights").len(), 6);
        for (update, (weights, expected)) in (1..).zip(rows("weights").iter().zip(rows("averages"))) {
            vars[0].1.set(&tensor(weights)).unwrap();
            average.update(&vars, update).unwrap();
            for (got, expected) in average.vars[0].1.to_vec1::<f64>().unwrap().into_iter().zip(expected) {
                // Both sides round at each update.
                let allowed = 12.0 * f64::EPSILON * expected.abs().max(1.0);
                assert!((got - expected).abs() <= allowed, "update {update}: {got}, expected {expected}");
            }
        }
    }
}
