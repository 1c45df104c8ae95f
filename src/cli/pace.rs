//! How long a run still takes.

use std::time::Duration;

use candle_attention::train::{Event, TrainOptions};

/// The time of steps and of validations, measured separately.
pub struct Pace {
    options: TrainOptions,
    context_len: usize,
    validates: bool,
    /// The steps of this session in full batches, which those of a ramp are not, and their time.
    batches: f64,
    spent: Duration,
    /// One validation, once its time is known or expected.
    validation: Option<Duration>,
    validating: Duration,
}

impl Pace {
    /// For a run of a model of this context length; `validates` if it has a validation text.
    pub fn new(options: &TrainOptions, context_len: usize, validates: bool) -> Self {
        Self {
            options: options.clone(),
            context_len,
            validates,
            batches: 0.0,
            spent: Duration::ZERO,
            validation: None,
            validating: Duration::ZERO,
        }
    }

    /// Sets the time that a validation is expected to take, until one was made.
    pub fn expect(&mut self, validation: Duration) {
        self.validation = Some(validation);
    }

    /// Takes note of an event and the time since the previous one.
    pub fn record(&mut self, event: &Event, passed: Duration) {
        match event {
            Event::Step(report) => self.record_step(report.step, passed),
            Event::Skipped(bad) => self.record_step(bad.step, passed),
            Event::Validating { done: 0, .. } => self.validating = Duration::ZERO,
            Event::Validating { .. } => self.validating += passed,
            Event::Validation(_) => self.validation = Some(self.validating + passed),
            Event::Statistics(_) | Event::Saved(_) | Event::BestLost(_) | Event::ChartsLost(_) | Event::Failed(_) => {}
        }
    }

    fn record_step(&mut self, step: u64, passed: Duration) {
        self.batches += self.options.full_batches(step.saturating_sub(1)..step, self.context_len);
        self.spent += passed;
    }

    /// The time that the steps of this session took.
    pub fn spent(&self) -> Duration {
        self.spent
    }

    /// The time left after `step` steps, including the validation that may follow the last of them.
    pub fn left(&self, step: u64) -> Duration {
        let &TrainOptions { steps, eval_every, .. } = &self.options;
        let per_batch = if self.batches > 0.0 { self.spent.as_secs_f64() / self.batches } else { 0.0 };
        let batches = self.options.full_batches(step..steps, self.context_len);
        let validations = match self.validates {
            true => steps.div_ceil(eval_every).saturating_sub(step.saturating_sub(1) / eval_every),
            false => 0,
        };
        let validation = self.validation.unwrap_or_default().as_secs_f64();
        let left = per_batch * batches + validation * validations as f64;
        Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_attention::train::StepReport;

    fn record_steps(pace: &mut Pace, steps: std::ops::RangeInclusive<u64>, seconds: u64) {
        for step in steps {
            let report = StepReport { step, loss: 2.0, learning_rate: 1e-3, gradient_norm: 1.0, tokens: 8 };
            pace.record(&Event::Step(&report), Duration::from_secs(seconds));
        }
    }

    #[test]
    fn validations_count_towards_the_time_left() {
        let options = TrainOptions { steps: 100, eval_every: 30, ..Default::default() };
        let mut pace = Pace::new(&options, 8, true);
        record_steps(&mut pace, 1..=10, 2);
        assert_eq!((pace.left(10), pace.spent()), (Duration::from_secs(180), Duration::from_secs(20)));
        // After steps 30, 60, 90 and 100.
        pace.expect(Duration::from_secs(7));
        assert_eq!(pace.left(10), Duration::from_secs(180 + 4 * 7));
        assert_eq!(pace.left(30), Duration::from_secs(140 + 4 * 7));
        assert_eq!(pace.left(31), Duration::from_secs(138 + 3 * 7));
        assert_eq!(pace.left(91), Duration::from_secs(18 + 7));
        assert_eq!(pace.left(100), Duration::from_secs(7));
        let mut without = Pace::new(&options, 8, false);
        without.expect(Duration::from_secs(7));
        assert_eq!(without.left(10), Duration::ZERO);
    }

    #[test]
    fn steps_of_a_ramp_are_smaller() {
        // Batches of 6 sequences for 40 steps, then of 12.
        let ramp = "6:40".parse().ok();
        let options = TrainOptions { steps: 100, batch_size: 12, batch_ramp: ramp, ..Default::default() };
        let mut pace = Pace::new(&options, 8, false);
        record_steps(&mut pace, 1..=10, 2);
        assert_eq!(pace.left(10), Duration::from_secs(30 * 2 + 60 * 4));
    }

    #[test]
    fn a_long_run_has_a_time_left() {
        let options = TrainOptions { steps: u64::MAX, eval_every: 1, ..Default::default() };
        let mut pace = Pace::new(&options, 8, true);
        pace.expect(Duration::MAX);
        record_steps(&mut pace, 1..=1, 1_000_000);
        assert_eq!(pace.left(1), Duration::MAX);
    }
}
