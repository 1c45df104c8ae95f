//! Sizes that grow over the first part of a run.

use std::fmt;
use std::str::FromStr;

use candle_core::{Error, Result, bail};
use serde::{Deserialize, Serialize};

use super::TrainOptions;
use crate::text::BatchSampler;

/// A size that begins at `from` and grows by `from` at equal distances, so that it is whole from step `steps` on. Written
/// `FROM:STEPS`.
///
/// ```
/// use candle_attention::train::Ramp;
///
/// let ramp: Ramp = "16:300".parse()?;
/// assert_eq!([0, 99, 100, 200, 300].map(|step| ramp.size_at(step, 64)), [16, 16, 32, 48, 64]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ramp {
    /// The size at the first step.
    pub from: usize,
    /// The first step, counted from 0, of the whole size.
    pub steps: u64,
}

impl Ramp {
    /// The size at a step, counted from 0, of what is `whole` at last.
    pub fn size_at(&self, step: u64, whole: usize) -> usize {
        if step >= self.steps || self.from == 0 {
            return whole;
        }
        // Each size below the whole one is there for as many steps.
        let smaller_sizes = whole.div_ceil(self.from).saturating_sub(1) as u128;
        let grown = u128::from(step) * smaller_sizes / u128::from(self.steps);
        (self.from * (grown as usize + 1)).min(whole)
    }
}

impl FromStr for Ramp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once(':').and_then(|(from, steps)| Some((from.parse().ok()?, steps.parse().ok()?)));
        let (from, steps) = parts.ok_or_else(|| {
            // Made without a backtrace, which would stand in the message of whoever reads options.
            Error::Msg(format!("expected a ramp of the form FROM:STEPS, as 16:500, got {text}"))
        })?;
        Ok(Self { from, steps })
    }
}

impl TryFrom<String> for Ramp {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Ramp> for String {
    fn from(ramp: Ramp) -> Self {
        ramp.to_string()
    }
}

impl fmt::Display for Ramp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.from, self.steps)
    }
}

impl TrainOptions {
    /// What draws the batch of a step, counted from 0, for a model of this context length.
    pub fn sampler_at(&self, step: u64, context_len: usize) -> BatchSampler {
        let size = |ramp: Option<Ramp>, whole| ramp.map_or(whole, |ramp| ramp.size_at(step, whole));
        BatchSampler {
            seed: self.seed,
            batch_size: size(self.batch_ramp, self.batch_size),
            context_len: size(self.context_ramp, context_len),
        }
    }

    /// Refuses ramps that begin too small or too large for a model of this context length.
    pub(super) fn check_ramps(&self, context_len: usize) -> Result<()> {
        // With one position there is one weight, always 1, and queries and keys would have no gradient.
        let least = context_len.min(2);
        for (name, ramp, least, most) in [
            ("batch_ramp", self.batch_ramp, 1, self.batch_size),
            ("context_ramp", self.context_ramp, least, context_len),
        ] {
            if let Some(Ramp { from, .. }) = ramp.filter(|ramp| !(least..=most).contains(&ramp.from)) {
                bail!("train options: expected {name} to begin from {least} to {most}, got {from}");
            }
        }
        Ok(())
    }

    /// The part of a whole batch that a step has on the average, above 0 and at most 1.
    pub fn mean_batch(&self, context_len: usize) -> f64 {
        if self.batch_ramp.is_none() && self.context_ramp.is_none() {
            return 1.0;
        }
        // Of so many steps; runs may be of any length.
        const SAMPLES: u128 = 1000;
        let share = |i: u128| {
            let step = (u128::from(self.steps) * (2 * i + 1) / (2 * SAMPLES)) as u64;
            let BatchSampler { batch_size, context_len: now, .. } = self.sampler_at(step, context_len);
            (batch_size as f64 / self.batch_size as f64) * (now as f64 / context_len as f64)
        };
        (0..SAMPLES).map(share).sum::<f64>() / SAMPLES as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_grows_by_equal_steps_and_stays_whole() {
        let sizes = |ramp: &str, whole: usize, steps: u64| -> Vec<usize> {
            let ramp: Ramp = ramp.parse().unwrap();
            (0..steps).map(|step| ramp.size_at(step, whole)).collect()
        };
        assert_eq!(sizes("4:6", 12, 8), [4, 4, 4, 8, 8, 8, 12, 12]);
        assert_eq!(sizes("5:4", 12, 6), [5, 5, 10, 10, 12, 12]);
        assert_eq!(sizes("8:3", 12, 5), [8, 8, 8, 12, 12]);
        assert_eq!((sizes("12:3", 12, 2), sizes("3:0", 12, 2)), (vec![12; 2], vec![12; 2]));
        // More sizes than steps: some are left out.
        assert_eq!(sizes("1:3", 7, 4), [1, 3, 5, 7]);
        assert_eq!(sizes("4:6", 0, 2), [0, 0]);
        assert_eq!(Ramp { from: 1, steps: u64::MAX }.size_at(u64::MAX - 1, usize::MAX), usize::MAX - 1);
    }

    #[test]
    fn what_is_no_ramp_is_named() {
        for text in ["", "4", "4:", ":4", "4:x", "-1:3", "4:3:2"] {
            let error = text.parse::<Ramp>().unwrap_err().to_string();
            assert_eq!(error, format!("expected a ramp of the form FROM:STEPS, as 16:500, got {text}"));
        }
        let ramp = Ramp { from: 4, steps: 6 };
        assert_eq!(serde_json::to_string(&ramp).unwrap(), "\"4:6\"");
        assert_eq!(serde_json::from_str::<Ramp>("\"4:6\"").unwrap(), ramp);
    }

    #[test]
    fn the_mean_batch_is_that_of_the_steps() {
        let options = TrainOptions { steps: 10, batch_size: 12, ..Default::default() };
        assert_eq!(options.mean_batch(8), 1.0);
        let ramps = TrainOptions { batch_ramp: Some(Ramp { from: 6, steps: 4 }), ..options };
        assert!((ramps.mean_batch(8) - 0.8).abs() < 2e-3);
        let both = TrainOptions { context_ramp: Some(Ramp { from: 2, steps: 10 }), ..ramps };
        let steps = (0..10).map(|step| both.sampler_at(step, 8));
        let tokens: usize = steps.map(|sampler| sampler.batch_size * sampler.context_len).sum();
        assert!((both.mean_batch(8) - tokens as f64 / 960.0).abs() < 2e-3);
    }
}
