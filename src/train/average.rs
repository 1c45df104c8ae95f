//! A moving average of the weights.
//!
//! ```text
//! average = average + (weight - average) / n
//! ```
//!
//! While `n` counts the updates it is their mean, and afterwards an exponential moving average. This is torch's
//! `AveragedModel` with an `avg_fn` that does so.

use candle_core::{Result, Var};

use crate::cpu::parallel::map;
use crate::nn::Parameters;
use crate::optim::moving_average;

/// The average of a model's weights.
pub(super) struct WeightAverage {
    /// The averaged weights, to build a model from.
    pub(super) parameters: Parameters,
    pub(super) vars: Vec<(String, Var)>,
}

impl WeightAverage {
    /// A copy of the current values.
    pub(super) fn new(vars: &[(String, Var)]) -> Result<Self> {
        let copies = vars.iter().map(|(name, var)| Ok((name.clone(), var.as_detached_tensor().copy()?)));
        let parameters = Parameters::restored(copies.collect::<Result<Vec<_>>>()?)?;
        Ok(Self { vars: parameters.vars(), parameters })
    }

    /// Moves the average by `1/n` of the way to the weights; 0 is as 1.
    pub(super) fn update(&mut self, vars: &[(String, Var)], n: u64) -> Result<()> {
        let decay = 1.0 - 1.0 / n.max(1) as f64;
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
    fn the_average_is_torchs() {
        let fixture = include_str!("../../tests/fixtures/recipes.json");
        let fixture = &serde_json::from_str::<Value>(fixture).unwrap()["average"];
        let rows = |name: &str| serde_json::from_value::<Vec<Vec<f64>>>(fixture[name].clone()).unwrap();
        let tensor = |row: &[f64]| Tensor::new(row, &Device::Cpu).unwrap();
        let var = Var::from_tensor(&tensor(&[9.0, 9.0, 9.0])).unwrap();
        let vars = [("weight".to_string(), var)];
        let mut average = WeightAverage::new(&vars).unwrap();
        let span = fixture["span"].as_u64().unwrap();
        assert_eq!((rows("weights").len(), span), (6, 4));
        for (n, (weights, expected)) in (1..).zip(rows("weights").iter().zip(rows("averages"))) {
            vars[0].1.set(&tensor(weights)).unwrap();
            average.update(&vars, n.min(span)).unwrap();
            for (got, expected) in average.vars[0].1.to_vec1::<f64>().unwrap().into_iter().zip(expected) {
                // Both sides round at each update.
                let allowed = 12.0 * f64::EPSILON * expected.abs().max(1.0);
                assert!((got - expected).abs() <= allowed, "{n} weights: {got}, expected {expected}");
            }
        }
    }
}
