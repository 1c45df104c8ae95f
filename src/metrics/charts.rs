//! What is derived from the metrics while they are written.

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

/// The event file and the loss plot of a run in training. None is worth stopping for: an error ends the charts, not the
/// run, and is kept for whoever asks.
#[derive(Default)]
pub struct Charts {
    open: Option<Open>,
    error: Option<Error>,
}

struct Open {
    events: EventFile,
    history: History,
    plot: PathBuf,
    /// The seconds since 1970 at which the run would have begun, had it never been stopped.
    begun: f64,
}

impl Charts {
    /// Starts a session: draws anew, in the folder `training`, what the file `metrics` says of the run's first `seconds`.
    pub fn begin(training: &Path, metrics: &Path, seconds: f64) -> Self {
        match Open::new(training, metrics, seconds) {
            Ok(open) => Self { open: Some(open), error: None },
            Err(error) => Self { open: None, error: Some(error) },
        }
    }

    /// Adds a line that the metrics have been given.
    pub fn add(&mut self, line: &[u8]) {
        self.attempt(|open| Line::parse(line).map_or(Ok(()), |line| open.add(&line)));
    }

    /// Brings everything on disk up to date.
    pub fn save(&mut self) {
        self.attempt(Open::save);
    }

    /// The error that has ended the charts, once.
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
        self.events.add(line, self.begun + line.seconds).map_err(|error| named(Path::new(EVENTS), &error))
    }

    fn save(&mut self) -> Result<()> {
        self.events.flush().map_err(|error| named(Path::new(EVENTS), &error))?;
        match plot::svg(&self.history)? {
            Some(svg) => files::replace_with(&self.plot, svg.as_bytes()),
            None => Ok(()),
        }
    }
}

fn named(path: &Path, error: &Error) -> Error {
    Error::Msg(format!("cannot write {}: {}", path.display(), bare(error)))
}
