//! Sizes that grow over the first part of a run.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use candle_core::{Error, Result, bail};
use serde::{Deserialize, Serialize};

use super::TrainOptions;
use crate::text::BatchSampler;

/// A size that starts at `from` and grows by `from` at equal intervals, reaching its full value at step `steps`.
/// Written `FROM:STEPS`.
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
    /// The first step, counted from 0, of the full size.
    pub steps: u64,
}

impl Ramp {
    /// The size at a step, counted from 0, for a ramp that ends at `full`.
    pub fn size_at(&self, step: u64, full: usize) -> usize {
        if step >= self.steps || self.from == 0 {
            return full;
        }
        // Each size below the full one lasts equally long.
        let smaller_sizes = full.div_ceil(self.from).saturating_sub(1) as u128;
        let grown = u128::from(step) * smaller_sizes / u128::from(self.steps);
        (self.from * (grown as usize + 1)).min(full)
    }
}

impl FromStr for Ramp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once(':').and_then(|(from, steps)| Some((from.parse().ok()?, steps.parse().ok()?)));
        let (from, steps) = parts.ok_or_else(|| {
            // Not through `bail!`, whose backtrace would end up in the message of the option parser.
            Error::Msg(format!("expected a ramp of the form FROM:STEPS, such as 16:500, got {text}"))
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
    /// The sampler of a step's batch, counted from 0, for a model of this context length.
    pub fn sampler_at(&self, step: u64, context_len: usize) -> BatchSampler {
        let size = |ramp: Option<Ramp>, full| ramp.map_or(full, |ramp| ramp.size_at(step, full));
        BatchSampler {
            seed: self.seed,
            batch_size: size(self.batch_ramp, self.batch_size),
            context_len: size(self.context_ramp, context_len),
        }
    }

    /// Checks that the ramps start within the bounds of a model of this context length.
    pub(super) fn check_ramps(&self, context_len: usize) -> Result<()> {
        // With a single position the attention weight is always 1, and queries and keys have no gradient.
        let least = context_len.min(2);
        for (name, ramp, least, most) in [
            ("batch_ramp", self.batch_ramp, 1, self.batch_size),
            ("context_ramp", self.context_ramp, least, context_len),
        ] {
            if let Some(Ramp { from, .. }) = ramp.filter(|ramp| !(least..=most).contains(&ramp.from)) {
                bail!("train options: expected {name} to start from {least} to {most}, got {from}");
            }
        }
        Ok(())
    }

    /// The number of full batches that have as many tokens as the batches of these steps, counted from 0.
    pub fn full_batches(&self, steps: Range<u64>, context_len: usize) -> f64 {
        let end_of = |ramp: Option<Ramp>| ramp.map_or(0, |ramp| ramp.steps);
        let ramp_end =
            end_of(self.batch_ramp).max(end_of(self.context_ramp)).clamp(steps.start, steps.end.max(steps.start));
        let full = steps.end.saturating_sub(ramp_end) as f64;
        let growing = ramp_end - steps.start;
        // A ramp may be of any length, so a long one is sampled.
        let samples = growing.min(200);
        let fraction = |i: u64| {
            let step = steps.start + (u128::from(growing) * u128::from(2 * i + 1) / u128::from(2 * samples)) as u64;
            let BatchSampler { batch_size, context_len: now, .. } = self.sampler_at(step, context_len);
            (batch_size as f64 / self.batch_size as f64) * (now as f64 / context_len as f64)
        };
        let sum: f64 = (0..samples).map(fraction).sum();
        full + sum * growing as f64 / samples.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_grows_by_equal_steps_and_stays_whole() {
        let sizes = |ramp: &str, full: usize, steps: u64| -> Vec<usize> {
            let ramp: Ramp = ramp.parse().unwrap();
            (0..steps).map(|step| ramp.size_at(step, full)).collect()
        };
        assert_eq!(sizes("4:6", 12, 8), [4, 4, 4, 8, 8, 8, 12, 12]);
        assert_eq!(sizes("5:4", 12, 6), [5, 5, 10, 10, 12, 12]);
        assert_eq!(sizes("8:3", 12, 5), [8, 8, 8, 12, 12]);
        assert_eq!((sizes("12:3", 12, 2), sizes("3:0", 12, 2)), (vec![12; 2], vec![12; 2]));
        // More sizes than steps: some are skipped.
        assert_eq!(sizes("1:3", 7, 4), [1, 3, 5, 7]);
        assert_eq!(sizes("4:6", 0, 2), [0, 0]);
        assert_eq!(Ramp { from: 1, steps: u64::MAX }.size_at(u64::MAX - 1, usize::MAX), usize::MAX - 1);
    }

    #[test]
    fn a_malformed_ramp_is_refused() {
        for text in ["", "4", "4:", ":4", "4:x", "-1:3", "4:3:2"] {
            let error = text.parse::<Ramp>().unwrap_err().to_string();
            assert_eq!(error, format!("expected a ramp of the form FROM:STEPS, such as 16:500, got {text}"));
        }
        let ramp = Ramp { from: 4, steps: 6 };
        assert_eq!(serde_json::to_string(&ramp).unwrap(), "\"4:6\"");
        assert_eq!(serde_json::from_str::<Ramp>("\"4:6\"").unwrap(), ramp);
    }

    #[test]
    fn full_batches_are_counted_by_their_tokens() {
        let mean = |options: &TrainOptions| options.full_batches(0..options.steps, 8) / options.steps as f64;
        let options = TrainOptions { steps: 10, batch_size: 12, ..Default::default() };
        assert_eq!((mean(&options), options.full_batches(4..10, 8)), (1.0, 6.0));
        let ramp = TrainOptions { batch_ramp: Some(Ramp { from: 6, steps: 4 }), ..options };
        assert!((mean(&ramp) - 0.8).abs() < 1e-9);
        assert_eq!([0, 1, 4, 9, 10, 11].map(|start| ramp.full_batches(start..10, 8)), [8.0, 7.5, 6.0, 1.0, 0.0, 0.0]);
        let both = TrainOptions { context_ramp: Some(Ramp { from: 2, steps: 10 }), ..ramp };
        let steps = (0..10).map(|step| both.sampler_at(step, 8));
        let tokens: usize = steps.map(|sampler| sampler.batch_size * sampler.context_len).sum();
        assert!((mean(&both) - tokens as f64 / 960.0).abs() < 1e-9);
        // A ramp over more steps than are sampled, and one longer than the run.
        let long = TrainOptions { steps: 10_000, batch_ramp: Some(Ramp { from: 6, steps: 4000 }), ..options_of(12) };
        assert!((long.full_batches(1000..10_000, 8) - 7500.0).abs() < 10.0);
        let longer = TrainOptions { batch_ramp: Some(Ramp { from: 6, steps: u64::MAX }), ..options_of(12) };
        assert!((mean(&longer) - 0.5).abs() < 1e-9);
    }

    fn options_of(batch_size: usize) -> TrainOptions {
        TrainOptions { batch_size, ..Default::default() }
    }
}
