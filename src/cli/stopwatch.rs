//! Where the time of a session went.

use std::fmt;
use std::time::{Duration, Instant};

use candle_attention::train::Event;

/// Adds up the time since the process began by what it was spent on.
pub struct Stopwatch {
    last: Instant,
    start_up: Duration,
    steps: Duration,
    validation: Duration,
    checkpoints: Duration,
}

impl Stopwatch {
    /// All time from `begun` to now was for starting up.
    pub fn new(begun: Instant) -> Self {
        let last = Instant::now();
        let zero = Duration::ZERO;
        Self { last, start_up: last - begun, steps: zero, validation: zero, checkpoints: zero }
    }

    /// The time since the event before went to this one.
    pub fn hear(&mut self, event: &Event) {
        let now = Instant::now();
        let part = match event {
            Event::Step(_) | Event::Skipped(_) | Event::Statistics(_) => &mut self.steps,
            Event::Validating { .. } | Event::Validation(_) => &mut self.validation,
            Event::Saved(_) | Event::BestLost(_) | Event::ChartsLost(_) => &mut self.checkpoints,
            Event::Failed(_) => &mut self.steps,
        };
        *part += now - self.last;
        self.last = now;
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
