//! Progress of a run on standard error: a bar on a terminal, plain lines elsewhere.

use std::time::{Duration, Instant};

use candle_attention::train::{Best, Event, TrainOptions};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::pace::Pace;
use super::stopwatch::Stopwatch;
use super::terminal::{note, plain, takes_bars};

/// The time between two plain lines.
const QUIET: Duration = Duration::from_secs(10);

/// Shows the progress of a run.
pub struct Progress {
    bar: Option<ProgressBar>,
    steps: u64,
    step: u64,
    stopwatch: Stopwatch,
    pace: Pace,
    last_line: Option<Instant>,
    tokens: u64,
    /// The loss, smoothed over about twenty steps.
    loss: Option<f64>,
}

impl Progress {
    /// For a run that continues from step `step`, in a process that started at `begun`; `validates` if it has a
    /// validation text.
    pub fn new(options: &TrainOptions, context_len: usize, step: u64, validates: bool, begun: Instant) -> Self {
        let bar = takes_bars().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {wide_msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(options.steps).with_style(style).with_position(step)
        });
        let (stopwatch, pace) = (Stopwatch::new(begun), Pace::new(options, context_len, validates));
        Self { bar, steps: options.steps, step, stopwatch, pace, last_line: None, tokens: 0, loss: None }
    }

    /// Sets the time that a validation is expected to take, until one was made.
    pub fn expect_validation(&mut self, time: Duration) {
        self.pace.expect(time);
    }

    /// Where the time went.
    pub fn stopwatch(&self) -> &Stopwatch {
        &self.stopwatch
    }

    /// Shows an event.
    pub fn show(&mut self, event: &Event) {
        let passed = self.stopwatch.record(event);
        self.pace.record(event, passed);
        match event {
            Event::Step(report) => {
                self.step = report.step;
                self.tokens += report.tokens as u64;
                let loss = self.loss.map_or(report.loss, |loss| loss + 0.05 * (report.loss - loss));
                self.loss = Some(loss);
                let rate = self.tokens as f64 / self.pace.spent().as_secs_f64();
                self.show_state(&format!("loss {loss:.4}  {rate:.0} tokens/s"));
            }
            Event::Validating { done, batches } => self.show_state(&format!("validating: {done} of {batches} batches")),
            Event::Validation(report) => {
                let best = if report.is_best { "  (best so far)" } else { "" };
                self.line(&format!(
                    "step {}/{}  validation loss {:.4}  {:.4} bits/byte{best}",
                    report.step, self.steps, report.validation_loss, report.validation_bits_per_byte
                ));
            }
            Event::Skipped(bad) => self.line(&format!("skipped {bad}")),
            Event::Statistics(_) | Event::Saved(_) | Event::Failed(_) => {}
            Event::BestLost(best) => self.line(&lost_best(best)),
            Event::ChartsLost(error) => {
                let error = error.to_string();
                let error = error.lines().next().unwrap_or_default();
                self.line(&format!("no loss plot and no TensorBoard events from here on: {error}"));
            }
        }
    }

    /// Shows the state next to the bar or, once in a while, on a line.
    fn show_state(&mut self, state: &str) {
        let left = self.pace.left(self.step);
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{state}  {:#} left", HumanDuration(left)));
            bar.set_position(self.step);
        } else if self.last_line.is_none_or(|last| last.elapsed() >= QUIET) {
            self.line(&format!("step {}/{}  {state}  {:.0} s left", self.step, self.steps, left.as_secs_f64()));
            self.last_line = Some(Instant::now());
        }
    }

    /// Shows a line, above the bar.
    pub fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(plain(line)),
            None => note(line),
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Says that the weights of the best model are lost.
pub fn lost_best(best: &Best) -> String {
    format!(
        "the weights of the best model (step {}, validation loss {:.4}) are lost: the current ones take their place",
        best.step, best.validation_loss
    )
}
