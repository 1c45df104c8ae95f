//! Progress on standard error: a bar on a terminal, plain lines elsewhere.

use std::fmt;
use std::time::{Duration, Instant};

use candle_attention::text::{Stage, TextProgress};
use candle_attention::train::{Event, Trainer};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use super::terminal::{note, plain, takes_bars};

/// Where the time of a session goes.
pub struct Times {
    last: Instant,
    steps: u64,
    stepping: Duration,
    validating: Duration,
    saving: Duration,
}

impl Times {
    /// From now on.
    pub fn new() -> Self {
        Self {
            last: Instant::now(),
            steps: 0,
            stepping: Duration::ZERO,
            validating: Duration::ZERO,
            saving: Duration::ZERO,
        }
    }

    /// Takes note of an event, and of the time since the last one.
    pub fn record(&mut self, event: &Event) {
        let passed = self.last.elapsed();
        self.last = Instant::now();
        self.steps += u64::from(matches!(event, Event::Step(_)));
        *match event {
            Event::Step(_) => &mut self.stepping,
            Event::Validating { .. } | Event::Validation(_) => &mut self.validating,
            _ => &mut self.saving,
        } += passed;
    }

    /// The time of a step, in seconds.
    pub fn step(&self) -> f64 {
        self.stepping.as_secs_f64() / self.steps as f64
    }

    /// The seconds that so many more steps take, with all that comes between them.
    fn left(&self, steps: u64) -> f64 {
        (self.stepping + self.validating + self.saving).as_secs_f64() / self.steps.max(1) as f64 * steps as f64
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [steps, validation, checkpoints] =
            [self.stepping, self.validating, self.saving].map(|time| time.as_secs_f64());
        write!(f, "{steps:.2} s for steps, {validation:.2} for validation, {checkpoints:.2} for checkpoints")
    }
}

/// A time in words.
pub fn rounded(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 9.95 => format!("{seconds:.1} s"),
        seconds if seconds < 119.5 => format!("{seconds:.0} s"),
        seconds if seconds < 7170.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

/// A bar on a terminal, or elsewhere a line once in a while.
struct Bar {
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Bar {
    /// A bar that appears now, or a first line in ten seconds.
    fn new(template: &str) -> Self {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = takes_bars().then(|| ProgressBar::new(0).with_style(style));
        Self { bar, last_line: Instant::now() }
    }

    /// Shows that `done` of `total` is done.
    fn show(&mut self, done: u64, total: u64, state: &str) {
        const BETWEEN_LINES: Duration = Duration::from_secs(10);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(plain(state));
        } else if self.last_line.elapsed() >= BETWEEN_LINES {
            note(state);
            self.last_line = Instant::now();
        }
    }

    /// Shows a line, above the bar.
    fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(plain(line)),
            None => note(line),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}

/// Shows the progress of passes over texts.
pub fn text_progress() -> impl FnMut(TextProgress) {
    let mut pass = Pass::default();
    move |TextProgress { stage, done, total, .. }| match stage {
        Stage::Merging => note(&format!("learning a BPE: at most {} merges", HumanCount(total))),
        Stage::Reading => pass.show("reading", done, total, "MB"),
        Stage::Counting => pass.show("learning a BPE: counting words", done, total, "MB"),
        Stage::Checking => pass.show("checking ids", done, total, "M"),
        _ => pass.show("encoding", done, total, "MB"),
    }
}

/// A pass over a text, which is shown if it takes long.
#[derive(Default)]
pub struct Pass {
    name: &'static str,
    started: Option<Instant>,
    bar: Option<Bar>,
}

impl Pass {
    /// Shows that `done` of `total` is done, in millions; `unit` is the name of a million.
    pub fn show(&mut self, name: &'static str, done: u64, total: u64, unit: &str) {
        const LONG: Duration = Duration::from_millis(500);
        if self.name != name {
            *self = Self { name, started: Some(Instant::now()), bar: None };
        }
        let elapsed = self.started.map_or(Duration::ZERO, |started| started.elapsed());
        if elapsed < LONG {
            return;
        }
        let rate = done as f64 / elapsed.as_secs_f64() / 1e6;
        let left = (total - done) as f64 / 1e6 / rate;
        let (done_millions, millions) = (done / 1_000_000, total / 1_000_000);
        let state = format!("{name}: {done_millions} of {millions} {unit}, {rate:.1} {unit}/s, {left:.0} s left");
        self.bar.get_or_insert_with(|| Bar::new("{bar:30} {wide_msg}")).show(done, total, &state);
        if done == total {
            self.bar = None;
        }
    }
}

/// Shows the progress of a run.
pub struct Progress {
    bar: Bar,
    pub times: Times,
    step: u64,
    steps: u64,
    started: Instant,
    is_estimated: bool,
    tokens: u64,
    /// The loss, smoothed over about twenty steps.
    loss: Option<f64>,
    /// Bits per byte of a loss of 1.
    bits: f64,
}

impl Progress {
    /// For a run that starts or goes on now.
    pub fn new(trainer: &Trainer) -> Self {
        Self {
            bar: Bar::new("{bar:30} {pos}/{len}  {wide_msg}"),
            times: Times::new(),
            step: trainer.steps_done(),
            steps: trainer.options().steps,
            started: Instant::now(),
            is_estimated: false,
            tokens: 0,
            loss: None,
            bits: trainer.training_bits_per_byte(1.0),
        }
    }

    /// Shows an event.
    pub fn show(&mut self, event: &Event) {
        self.times.record(event);
        match event {
            Event::Step(report) => {
                (self.step, self.steps) = (report.step, report.steps);
                self.tokens += report.tokens as u64;
                let loss = self.loss.map_or(report.loss, |loss| loss + 0.05 * (report.loss - loss));
                self.loss = Some(loss);
                let rate = self.tokens as f64 / self.times.stepping.as_secs_f64();
                self.estimate();
                let bits = self.bits * loss;
                self.show_state(&format!("loss {loss:.4}  {bits:.4} bits/byte  {rate:.0} tokens/s"));
            }
            Event::Validating { done, total } => self.show_state(&format!("validating: {done} of {total} tokens")),
            Event::Validation(report) => {
                let best = if report.is_best { "  (best so far)" } else { "" };
                self.bar.line(&format!(
                    "step {}/{}  validation loss {:.4}  {:.4} bits/byte{best}",
                    report.step, self.steps, report.loss, report.bits_per_byte
                ));
            }
            _ => {}
        }
    }

    /// Shows a line, whose making counts as nothing that a run does.
    pub fn line(&mut self, line: &str) {
        self.bar.line(line);
        self.times.last = Instant::now();
    }

    /// After the first second says once how long the run will take.
    fn estimate(&mut self) {
        const MEASURED: Duration = Duration::from_secs(1);
        if !self.is_estimated && self.started.elapsed() >= MEASURED {
            self.is_estimated = true;
            let step = 1e3 * self.times.step();
            if let Some(left) = self.left() {
                self.bar.line(&format!("time: about {left} left ({step:.1} ms per step)"));
            }
        }
    }

    /// The time of the steps that are left, if there are any.
    fn left(&self) -> Option<String> {
        let steps = self.steps.saturating_sub(self.step);
        (steps > 0).then(|| rounded(self.times.left(steps)))
    }

    fn show_state(&mut self, state: &str) {
        let (step, steps) = (self.step, self.steps);
        let left = self.left().map_or(String::new(), |left| format!("  {left} left"));
        let step_of = if self.bar.bar.is_some() { String::new() } else { format!("step {step}/{steps}  ") };
        self.bar.show(step, steps, &format!("{step_of}{state}{left}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_that_is_hardly_rounded() {
        for (seconds, expected) in [
            (0.002, "0.0 s"),
            (8.36, "8.4 s"),
            (9.96, "10 s"),
            (61.4, "61 s"),
            (119.6, "2 min"),
            (1140.0, "19 min"),
            (7180.0, "2.0 h"),
            (1e6, "277.8 h"),
        ] {
            assert_eq!(rounded(seconds), expected);
        }
        // Never more than a quarter off, from a fifth of a second on.
        for seconds in (0..160).map(|i| 0.2 * 1.1f64.powi(i)) {
            let shown = rounded(seconds);
            let (number, unit) = shown.split_once(' ').unwrap();
            let unit = [("s", 1.0), ("min", 60.0), ("h", 3600.0)].iter().find(|(name, _)| *name == unit).unwrap().1;
            let shown: f64 = number.parse::<f64>().unwrap() * unit;
            assert!((shown / seconds - 1.0).abs() <= 0.25, "{seconds}: {number} {unit}");
        }
    }

    #[test]
    fn what_is_left_takes_as_long_as_what_was_done() {
        let seconds = Duration::from_secs;
        let times =
            Times { steps: 10, stepping: seconds(20), validating: seconds(7), saving: seconds(3), ..Times::new() };
        assert_eq!((times.step(), times.left(40), times.left(0)), (2.0, 120.0, 0.0));
        // A session may begin with a validation.
        assert_eq!(Times::new().left(40), 0.0);
        assert_eq!(times.to_string(), "20.00 s for steps, 7.00 for validation, 3.00 for checkpoints");
    }

    #[test]
    fn time_is_counted_for_the_event_that_ends_it() {
        let mut times = Times::new();
        let mut after = |event: Event| {
            times.last -= Duration::from_secs(100);
            times.record(&event);
            let seconds = [times.stepping, times.validating, times.saving].map(|time| time.as_secs() / 100);
            (times.steps, seconds)
        };
        assert_eq!(after(Event::Validating { done: 1, total: 2 }), (0, [0, 1, 0]));
        assert_eq!(after(Event::Validating { done: 2, total: 2 }), (0, [0, 2, 0]));
        assert_eq!(after(Event::Saved(1)), (0, [0, 2, 1]));
    }
}
