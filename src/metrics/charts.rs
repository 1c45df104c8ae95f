//! The event file and the loss plot, updated while the metrics are written.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use candle_core::{Error, Result};

use super::history::History;
use super::line::{Line, lines};
use super::plot;
use super::tensorboard::EventFile;
use crate::errors::bare;
use crate::files;

const EVENTS: &str = "tensorboard";
/// The name of the loss plot.
pub const PLOT: &str = "loss.svg";

/// The event file and the loss plot of a run in training. Neither is worth stopping for: an error ends the charts and
/// not the run, and can be asked for.
#[derive(Default)]
pub struct Charts {
    open: Option<Open>,
    error: Option<Error>,
}

struct Open {
    events: EventFile,
    history: History,
    plot: PathBuf,
    /// When the run would have begun if it had never been stopped, in seconds since 1970.
    begun: f64,
}

impl Charts {
    /// Starts a session after `seconds` of training: rewrites the charts in the folder `training` from the file
    /// `metrics`.
    pub fn begin(training: &Path, metrics: &Path, seconds: f64) -> Self {
        match Open::new(training, metrics, seconds) {
            Ok(open) => Self { open: Some(open), error: None },
            Err(error) => Self { open: None, error: Some(error) },
        }
    }

    /// Adds a line that has been written to the metrics.
    pub fn add(&mut self, line: &[u8]) {
        self.attempt(|open| Line::parse(line).map_or(Ok(()), |line| open.add(&line)));
    }

    /// Brings the files up to date.
    pub fn save(&mut self) {
        self.attempt(Open::save);
    }

    /// The error that has ended the charts, reported once.
    pub fn take_error(&mut self) -> Option<Error> {
        self.error.take()
    }

    fn attempt(&mut self, change: impl FnOnce(&mut Open) -> Result<()>) {
        if let Some(open) = &mut self.open
            && let Err(error) = change(open)
        {
            (self.open, self.error) = (None, Some(error));
        }
    }
}

impl Open {
    fn new(training: &Path, metrics: &Path, seconds: f64) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let folder = training.join(EVENTS);
        let begun = now - seconds;
        let events = EventFile::create(&folder, now).map_err(|error| named(&folder, &error))?;
        let mut open = Self { events, history: History::default(), plot: training.join(PLOT), begun };
        for line in lines(metrics)? {
            open.add(&line?)?;
        }
        open.save()?;
        open.events.remove_others().map_err(|error| named(&folder, &error))?;
        Ok(open)
    }

    fn add(&mut self, line: &Line) -> Result<()> {
        self.history.push(line);
        self.events.add(line, self.begun + line.seconds).map_err(|error| named(self.events.path(), &error))
    }

    fn save(&mut self) -> Result<()> {
        self.events.flush().map_err(|error| named(self.events.path(), &error))?;
        match plot::svg(&self.history)? {
            Some(svg) => files::replace_with(&self.plot, svg.as_bytes()),
            None => Ok(()),
        }
    }
}

fn named(path: &Path, error: &Error) -> Error {
    Error::Msg(format!("cannot write {}: {}", path.display(), bare(error)))
}
