//! How long a run still takes.

use std::time::{Duration, Instant};

use candle_attention::train::{Event, TrainOptions};

/// The time of steps and of validations, each by itself.
pub struct Pace {
    steps: u64,
    /// Steps between two validations, where there are any.
    eval_every: Option<u64>,
    last: Instant,
    /// Steps made in this session, and the time they took.
    made: u64,
    spent: Duration,
    /// Of one validation, once it is known or expected.
    validation: Option<Duration>,
    validating: Duration,
}

impl Pace {
    /// Of a run of these options; with `validates`, one that has a text to validate on.
    pub fn new(options: &TrainOptions, validates: bool) -> Self {
        Self {
            steps: options.steps,
            eval_every: validates.then_some(options.eval_every),
            last: Instant::now(),
            made: 0,
            spent: Duration::ZERO,
            validation: None,
            validating: Duration::ZERO,
        }
    }

    /// What a validation is expected to take, until there was one.
    pub fn expect(&mut self, validation: Duration) {
        self.validation = Some(validation);
    }

    /// Takes note of what the time since the event before went to.
    pub fn hear(&mut self, event: &Event) {
        let passed = self.last.elapsed();
        self.last += passed;
        match event {
            Event::Step(_) | Event::Skipped(_) => {
                self.made += 1;
                self.spent += passed;
            }
            Event::Validating { done: 0, .. } => self.validating = Duration::ZERO,
            Event::Validating { .. } => self.validating += passed,
            Event::Validation(_) => self.validation = Some(self.validating + passed),
            Event::Statistics(_) | Event::Saved(_) | Event::BestLost(_) | Event::ChartsLost(_) | Event::Failed(_) => {}
        }
    }

    /// The time that the steps of this session took.
    pub fn spent(&self) -> Duration {
        self.spent
    }

    /// What is left to do once `step` steps are made, the validation that may follow the last of them included.
    pub fn left(&self, step: u64) -> Duration {
        let steps = self.spent.div_f64(self.made.max(1) as f64).mul_f64(self.steps.saturating_sub(step) as f64);
        let validations =
            self.eval_every.map_or(0, |every| self.steps.div_ceil(every) - step.saturating_sub(1) / every);
        steps + self.validation.unwrap_or_default().mul_f64(validations as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_counts_validations() {
        let options = TrainOptions { steps: 100, eval_every: 30, ..Default::default() };
        let mut pace = Pace::new(&options, true);
        (pace.made, pace.spent) = (10, Duration::from_secs(20));
        assert_eq!(pace.left(10), Duration::from_secs(180));
        // After the steps 30, 60, 90 and 100.
        pace.expect(Duration::from_secs(7));
        assert_eq!(pace.left(10), Duration::from_secs(180 + 4 * 7));
        assert_eq!(pace.left(30), Duration::from_secs(140 + 4 * 7));
        assert_eq!(pace.left(31), Duration::from_secs(138 + 3 * 7));
        assert_eq!(pace.left(91), Duration::from_secs(18 + 7));
        assert_eq!(pace.left(100), Duration::from_secs(7));
        let mut without = Pace::new(&options, false);
        without.expect(Duration::from_secs(7));
        assert_eq!(without.left(10), Duration::ZERO);
    }
}
