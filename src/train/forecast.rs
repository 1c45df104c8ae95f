//! How long a run will take.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use candle_core::{Result, bail};

use super::{StepOutcome, TrainOptions, Trainer};
use crate::evaluate::side_by_side;

/// The expected time of a run, extrapolated from steps and validation batches made only to measure them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// The first step, whose gradients are checked as well.
    pub first_step: Duration,
    /// Each later step on a full batch.
    pub step: Duration,
    /// Each validation.
    pub validation: Duration,
    /// All steps and validations of the run.
    pub total: Duration,
}

/// Measuring takes this fraction of the time that is forecast, within these bounds.
const MEASURED_FRACTION: f64 = 0.02;
const MIN_MEASURING: Duration = Duration::from_millis(60);
const MAX_MEASURING: Duration = Duration::from_secs(4);

impl Forecast {
    /// Measures with a trainer equal to the run's, which is used up.
    ///
    /// # Errors
    /// Those of [`Trainer::next_step`] and [`Trainer::validate`], and a bad step that may not be skipped.
    pub fn measure(mut trainer: Trainer) -> Result<Self> {
        let (options, context_len) = (trainer.options.clone(), trainer.config().context_len);
        // Steps on full batches are measured; the ramps count when these are added up.
        (trainer.options.batch_ramp, trainer.options.context_ramp) = (None, None);
        let first_step = timed(|| step(&mut trainer))?;
        let (later_steps, mut times, mut spent) = (options.steps.saturating_sub(1), vec![], Duration::ZERO);
        while (times.len() as u64) < later_steps && (times.is_empty() || spent < budget(&times, spent, later_steps)) {
            let time = timed(|| step(&mut trainer))?;
            spent += time;
            times.push(time);
        }
        let typical_step = typical(times).unwrap_or(first_step);
        let validation = measure_validation(&mut trainer)?;
        let total = total(first_step, typical_step, validation, &options, context_len);
        Ok(Self { first_step, step: typical_step, validation, total })
    }
}

/// Makes a step, or skips it as the run would.
fn step(trainer: &mut Trainer) -> Result<()> {
    match trainer.next_step()? {
        StepOutcome::Failed(bad) => bail!("{bad}"),
        StepOutcome::Done(_) | StepOutcome::Skipped(_) => Ok(()),
    }
}

/// The time of all steps, those of ramps by the size of their batches, and of all validations.
fn total(
    first_step: Duration,
    step: Duration,
    validation: Duration,
    options: &TrainOptions,
    context_len: usize,
) -> Duration {
    let [first_step, step, validation] = [first_step, step, validation].map(|part| part.as_secs_f64());
    let first_batch = options.full_batches(0..1, context_len);
    let later_batches = options.full_batches(1..options.steps.max(1), context_len);
    let validations = options.steps.div_ceil(options.eval_every.max(1));
    saturating(first_step * first_batch + step * later_batches + validation * validations as f64)
}

/// The time of a step, from those of the first ones: the interquartile mean of the last two thirds. Caches warm up in
/// the first third, and a burst of other work on the machine, which is a large part of so short a measurement, is cut
/// off. Unlike a lower quantile, the mean is right about the sum of many steps.
fn typical(times: Vec<Duration>) -> Option<Duration> {
    let mut warm = times[times.len() / 3..].to_vec();
    warm.sort();
    let cut = warm.len() / 4;
    let middle = &warm[cut..warm.len() - cut];
    let sum: Duration = middle.iter().sum();
    sum.checked_div(middle.len() as u32)
}

/// The time to spend on measuring `all` units of work, `times` of which took `spent`.
fn budget(times: &[Duration], spent: Duration, all: u64) -> Duration {
    measuring(spent.as_secs_f64() / times.len().max(1) as f64 * all as f64)
}

/// The time to spend on measuring work of this many seconds.
fn measuring(seconds: f64) -> Duration {
    saturating(seconds * MEASURED_FRACTION).clamp(MIN_MEASURING, MAX_MEASURING)
}

fn saturating(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<Duration> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed())
}

/// The time of a validation, extrapolated from its first batches.
fn measure_validation(trainer: &mut Trainer) -> Result<Duration> {
    if trainer.corpus().validation.is_empty() {
        return Ok(Duration::ZERO);
    }
    let batches = trainer.validation_batches();
    // Batches are computed in groups, so only the time at the start of a group is that of whole batches.
    let (group, begun) = (side_by_side(), Instant::now());
    let (mut started, mut measured) = (0, None);
    let whole = trainer.validate_while(&mut || {
        let done = started;
        started += 1;
        let elapsed = begun.elapsed();
        let expected = elapsed.as_secs_f64() * batches as f64 / done.max(1) as f64;
        if done == 0 || done % group > 0 || elapsed < measuring(expected) {
            return ControlFlow::Continue(());
        }
        measured = Some(saturating(expected));
        ControlFlow::Break(())
    })?;
    Ok(measured.filter(|_| whole.is_none()).unwrap_or(begun.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT_LEN: usize = 8;

    fn seconds(first_step: u64, step: u64, validation: u64, options: &TrainOptions) -> f64 {
        let [first_step, step, validation] = [first_step, step, validation].map(Duration::from_secs);
        total(first_step, step, validation, options, CONTEXT_LEN).as_secs_f64()
    }

    #[test]
    fn the_total_counts_steps_and_validations() {
        // Validations after steps 4, 8 and 10.
        let options = TrainOptions { steps: 10, eval_every: 4, ..Default::default() };
        assert_eq!(seconds(5, 2, 7, &options), 5.0 + 9.0 * 2.0 + 3.0 * 7.0);
        assert_eq!(seconds(5, 2, 0, &options), 5.0 + 9.0 * 2.0);
        assert_eq!(seconds(5, 2, 7, &TrainOptions { eval_every: 5, ..options.clone() }), 5.0 + 9.0 * 2.0 + 2.0 * 7.0);
        assert_eq!(seconds(5, 2, 7, &TrainOptions { steps: 1, ..options }), 5.0 + 7.0);
    }

    #[test]
    fn steps_on_a_ramp_count_by_their_batches() {
        // Batches of 3, 3, 3, 3, 3, 6, 6, ... sequences.
        let ramp = "3:5".parse().ok();
        let options = TrainOptions { steps: 10, batch_size: 6, batch_ramp: ramp, eval_every: 10, ..Default::default() };
        assert_eq!(seconds(4, 2, 1, &options), 4.0 / 2.0 + (4.0 * 0.5 + 5.0) * 2.0 + 1.0);
    }

    #[test]
    fn a_run_of_any_length_has_a_total() {
        let options = TrainOptions { steps: u64::MAX, eval_every: 1, ..Default::default() };
        assert_eq!(total(Duration::MAX, Duration::MAX, Duration::MAX, &options, CONTEXT_LEN), Duration::MAX);
    }

    #[test]
    fn a_burst_does_not_change_the_typical_step() {
        let times = |milliseconds: &[u64]| milliseconds.iter().copied().map(Duration::from_millis).collect();
        assert_eq!(typical(times(&[])), None);
        assert_eq!(typical(times(&[90])), Some(Duration::from_millis(90)));
        assert_eq!(typical(times(&[90, 30, 50])), Some(Duration::from_millis(40)));
        // The first two are warm-up; of the others the fastest and the slowest are cut off.
        assert_eq!(typical(times(&[90, 80, 500, 10, 12, 16])), Some(Duration::from_millis(14)));
    }
}
