//! How a run is followed: a bar on a terminal, plain lines elsewhere, both on standard error.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use candle_attention::train::Event;
use indicatif::{ProgressBar, ProgressStyle};

use super::terminal::plain;

/// The time between two plain lines.
const QUIET: Duration = Duration::from_secs(10);

/// Follows a run of `steps` steps.
pub struct Progress {
    bar: Option<ProgressBar>,
    steps: u64,
    begun: Instant,
    begun_at: Option<u64>,
    last_line: Option<Instant>,
    tokens: u64,
    /// The loss, smoothed over some twenty steps.
    loss: Option<f64>,
}

impl Progress {
    /// From step `step` on.
    pub fn new(steps: u64, step: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = "{bar:30} {pos}/{len}  {msg}  {eta} left";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(steps).with_style(style).with_position(step);
            bar.reset_eta();
            bar
        });
        Self { bar, steps, begun: Instant::now(), begun_at: None, last_line: None, tokens: 0, loss: None }
    }

    /// Shows what happened.
    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Step(report) => {
                let before = *self.begun_at.get_or_insert(report.step - 1);
                self.tokens += report.tokens as u64;
                self.loss = Some(self.loss.map_or(report.loss, |loss| loss + 0.05 * (report.loss - loss)));
                let elapsed = self.begun.elapsed().as_secs_f64();
                let rate = self.tokens as f64 / elapsed;
                let state = format!("loss {:.4}  {rate:.0} tokens/s", self.loss.unwrap_or(report.loss));
                if let Some(bar) = &self.bar {
                    bar.set_message(state);
                    bar.set_position(report.step);
                } else if report.step == before + 1 || self.last_line.is_none_or(|last| last.elapsed() >= QUIET) {
                    let left = elapsed / (report.step - before) as f64 * (self.steps - report.step) as f64;
                    self.line(&format!("step {}/{}  {state}  {left:.0} s left", report.step, self.steps));
                    self.last_line = Some(Instant::now());
                }
            }
            Event::Validation(report) => {
                let best = if report.is_best { "  (best so far)" } else { "" };
                self.line(&format!(
                    "step {}/{}  validation loss {:.4}  {:.4} bits/byte{best}",
                    report.step, self.steps, report.validation_loss, report.validation_bits_per_byte
                ));
            }
            Event::Skipped(bad) => self.line(&format!("skipped {bad}")),
            Event::Validating | Event::Statistics(_) | Event::Saved(_) => {}
            Event::ChartsLost(error) => {
                let error = error.to_string();
                let error = error.lines().next().unwrap_or_default();
                self.line(&format!("no loss plot and no TensorBoard events from here on: {error}"));
            }
        }
    }

    /// Shows a line of its own, above the bar.
    pub fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(plain(line)),
            None => note(line),
        }
    }

    /// Leaves the terminal clean.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line on standard error; who does not read it misses nothing that counts.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", plain(line));
}
