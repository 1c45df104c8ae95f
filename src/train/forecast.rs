//! How long a run will take.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use candle_core::Result;

use super::Trainer;
use crate::evaluate::side_by_side;

/// The time that a run will take, from steps and batches of its validation that were made for that alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// What every run begins with: the first step, which is checked in two ways.
    pub first_step: Duration,
    /// Of each of the other steps, with a whole batch.
    pub step: Duration,
    /// Of each validation.
    pub validation: Duration,
    /// Of all steps and validations of the options.
    pub total: Duration,
}

/// The time that is spent to measure: this, and this part of what the run takes, up to so much.
const LEAST: Duration = Duration::from_millis(60);
const PART: f64 = 0.02;
const MOST: Duration = Duration::from_secs(4);

/// Steps of which one more is much.
const FEW: usize = 10;

impl Forecast {
    /// Measures on a trainer, of which nothing is left: one that is equal to the run's.
    ///
    /// # Errors
    /// Those of [`Trainer::train_step`] and [`Trainer::validate`].
    pub fn measure(mut trainer: Trainer) -> Result<Self> {
        // Steps of whole batches are measured, and a run's are this part of them on the average.
        let mean_batch = trainer.options.mean_batch(trainer.config().context_len);
        (trainer.options.batch_ramp, trainer.options.context_ramp) = (None, None);
        let first_step = timed(|| trainer.train_step())?;
        let mut steps = vec![];
        let mut spent = Duration::ZERO;
        let all = trainer.options().steps as usize;
        // Of a few long steps the first stands for all, though its checks take longer: another would be a good part of the run.
        let are_few = first_step > MOST && all < FEW;
        while !are_few && steps.len() < all && (steps.is_empty() || spent < worth(spent / steps.len() as u32, all)) {
            let step = timed(|| trainer.train_step())?;
            spent += step;
            steps.push(step);
        }
        let step = usual(steps).unwrap_or(first_step);
        let options = trainer.options();
        let validations = options.steps.div_ceil(options.eval_every);
        let validation = measure_validation(&mut trainer)?;
        let total =
            first_step + seconds(step, (all as f64 - 1.0) * mean_batch) + seconds(validation, validations as f64);
        Ok(Self { first_step, step, validation, total })
    }
}

/// What a step takes, from the times of the first ones. The third of them at the front warms the caches; from the rest it is
/// the lower quartile, as bursts of other work on the machine fill much of so short a time, but little of a run's.
fn usual(steps: Vec<Duration>) -> Option<Duration> {
    let mut warm = steps[steps.len() / 3..].to_vec();
    warm.sort();
    warm.get(warm.len() / 4).copied()
}

/// What it is worth to spend on measuring what so many times takes `each`.
fn worth(each: Duration, times: usize) -> Duration {
    seconds(each, times as f64 * PART).clamp(LEAST, MOST)
}

/// So many times as long.
fn seconds(each: Duration, times: f64) -> Duration {
    Duration::try_from_secs_f64(each.as_secs_f64() * times).unwrap_or(Duration::MAX)
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<Duration> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed())
}

/// The time of a validation, from its first batches.
fn measure_validation(trainer: &mut Trainer) -> Result<Duration> {
    if trainer.corpus().validation.is_empty() {
        return Ok(Duration::ZERO);
    }
    let batches = trainer.validation_batches();
    // Batches are computed in groups; what has passed when the first of a group is asked for is the time of whole groups.
    let (group, begun) = (side_by_side(), Instant::now());
    let (mut asked, mut measured) = (0, None);
    let whole = trainer.validate_while(&mut || {
        let done = asked;
        asked += 1;
        let elapsed = begun.elapsed();
        if done == 0 || done % group > 0 || elapsed < worth(elapsed / done as u32, batches) {
            return ControlFlow::Continue(());
        }
        measured = Some(seconds(elapsed, batches as f64 / done as f64));
        ControlFlow::Break(())
    })?;
    Ok(measured.filter(|_| whole.is_none()).unwrap_or(begun.elapsed()))
}
