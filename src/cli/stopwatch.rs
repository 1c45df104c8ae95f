//! Where the time of a session went.

use std::fmt;
use std::time::{Duration, Instant};

use candle_attention::train::Event;

/// The time since the process started, by what it was spent on.
pub struct Stopwatch {
    last: Instant,
    start_up: Duration,
    steps: Duration,
    validation: Duration,
    checkpoints: Duration,
}

impl Stopwatch {
    /// Counts the time from `begun` to now as start-up.
    pub fn new(begun: Instant) -> Self {
        Self::started_at(Instant::now(), begun)
    }

    fn started_at(now: Instant, begun: Instant) -> Self {
        let zero = Duration::ZERO;
        let start_up = now.saturating_duration_since(begun);
        Self { last: now, start_up, steps: zero, validation: zero, checkpoints: zero }
    }

    /// Assigns the time since the previous event to this one, and returns it.
    pub fn record(&mut self, event: &Event) -> Duration {
        self.record_at(Instant::now(), event)
    }

    fn record_at(&mut self, now: Instant, event: &Event) -> Duration {
        let part = match event {
            Event::Step(_) | Event::Skipped(_) | Event::Statistics(_) => &mut self.steps,
            Event::Validating { .. } | Event::Validation(_) => &mut self.validation,
            Event::Saved(_) | Event::BestLost(_) | Event::ChartsLost(_) => &mut self.checkpoints,
            Event::Failed(_) => &mut self.steps,
        };
        let passed = now.saturating_duration_since(self.last);
        *part += passed;
        self.last = now;
        passed
    }
}

impl fmt::Display for Stopwatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start_up, steps, validation, checkpoints, .. } = self;
        let total = (*start_up + *steps + *validation + *checkpoints).as_secs_f64();
        let [start_up, steps, validation, checkpoints] =
            [start_up, steps, validation, checkpoints].map(Duration::as_secs_f64);
        write!(
            f,
            "{total:.2} s since the start: {start_up:.2} start-up, {steps:.2} steps, {validation:.2} validation, \
             {checkpoints:.2} checkpoints"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_attention::train::{StepReport, ValidationReport};

    #[test]
    fn time_is_assigned_to_the_event_that_ends_it() {
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let mut stopwatch = Stopwatch::started_at(at(2), begun);
        let step = StepReport { step: 1, loss: 2.0, learning_rate: 1e-3, gradient_norm: 1.0, tokens: 8 };
        let validation =
            ValidationReport { step: 1, validation_loss: 2.0, validation_bits_per_byte: 3.0, is_best: true };
        let events = [
            (at(5), Event::Step(&step)),
            (at(6), Event::Validating { done: 0, batches: 1 }),
            (at(10), Event::Validation(&validation)),
            (at(15), Event::Saved(1)),
            (at(21), Event::Step(&step)),
        ];
        let passed = events.map(|(now, event)| stopwatch.record_at(now, &event).as_secs());
        assert_eq!(passed, [3, 1, 4, 5, 6]);
        assert_eq!(
            stopwatch.to_string(),
            "21.00 s since the start: 2.00 start-up, 9.00 steps, 5.00 validation, 5.00 checkpoints"
        );
    }
}
