//! Shows the progress of longer work on texts: a bar on a terminal, plain lines elsewhere.

use std::time::{Duration, Instant};

use candle_attention::text::TextProgress;
use indicatif::{ProgressBar, ProgressStyle};

use super::terminal::{note, takes_bars};

/// The time before the first plain line, and between two of them.
const TIME_BETWEEN_LINES: Duration = Duration::from_secs(10);

/// The time before a bar is shown.
const TIME_WITHOUT_BAR: Duration = Duration::from_millis(500);

/// Shows the progress of reading and encoding texts.
pub fn text_progress() -> impl FnMut(TextProgress) {
    let mut stage = Stage::new("");
    move |progress| match progress {
        TextProgress::Reading { done, total } => stage.show("reading", done, total, "MB"),
        TextProgress::Counting { done, total } => stage.show("learning a BPE: counting words", done, total, "MB"),
        TextProgress::Merging { merges, seconds } => {
            stage = Stage::new("");
            match seconds {
                0 => note(&format!("learning a BPE: {merges} merges")),
                _ if seconds % TIME_BETWEEN_LINES.as_secs() == 0 => {
                    note(&format!("learning a BPE: {merges} merges, {seconds} s so far"));
                }
                _ => {}
            }
        }
        TextProgress::Encoding { done, total } => stage.show("encoding", done, total, "MB"),
        TextProgress::Checking { done, total } => stage.show("checking ids", done, total, "M"),
    }
}

/// One pass over the texts.
pub struct Stage {
    name: &'static str,
    begun: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Stage {
    /// A pass that starts now.
    pub fn new(name: &'static str) -> Self {
        Self { name, begun: Instant::now(), last_line: Instant::now(), bar: None }
    }

    /// Shows that `done` of `total` is done, in millions; `unit` is the name of a million.
    pub fn show(&mut self, name: &'static str, done: u64, total: u64, unit: &str) {
        if self.name != name {
            self.finish();
            *self = Self::new(name);
        }
        let elapsed = self.begun.elapsed();
        let rate = done as f64 / elapsed.as_secs_f64() / 1e6;
        if self.bar.is_none() && elapsed > TIME_WITHOUT_BAR && takes_bars() {
            self.bar = Some(bar(name, total));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(format!("{} of {} {unit}, {rate:.1} {unit}/s", done / 1_000_000, total / 1_000_000));
        } else if self.last_line.elapsed() >= TIME_BETWEEN_LINES {
            let left = (total - done) as f64 / 1e6 / rate;
            note(&format!(
                "{name}: {} of {} {unit}, {rate:.1} {unit}/s, {left:.0} s left",
                done / 1_000_000,
                total / 1_000_000
            ));
            self.last_line = Instant::now();
        }
        if done == total {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.finish();
    }
}

fn bar(name: &'static str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix}  {bar:30} {msg}  {eta} left");
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_prefix(name)
}
