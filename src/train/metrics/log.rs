//! Writing the metrics, and the charts that follow them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::history::History;
use super::line::{Line, lines};
use super::plot;
use super::tensorboard::EventFile;
use crate::host::{Error, Result, disk};

/// The metrics of a run in training, with the event file and the loss plot of this session.
pub(in crate::train) struct Metrics {
    path: PathBuf,
    file: File,
    /// The length of the file.
    bytes: u64,
    events: EventFile,
    history: History,
    plot: PathBuf,
    seconds_before: f64,
    started: Instant,
    /// When the run would have begun if it had never been stopped, in seconds since 1970.
    began: f64,
}

impl Metrics {
    /// Starts a session in the folder `training` after `bytes` of metrics and `seconds` of training, none for a new run:
    /// what came later is cut off, and the charts are drawn anew. If the file has become shorter, the session goes on
    /// after its last whole line.
    pub(in crate::train) fn start(training: &Path, bytes: u64, seconds: f64) -> Result<Self> {
        let path = training.join("metrics.jsonl");
        let file = disk::open_in_place(&path)?;
        let len = file.metadata().map_err(Error::io("read", &path))?.len();
        let bytes = match len < bytes {
            true => {
                let content = std::fs::read(&path).map_err(Error::io("read", &path))?;
                content.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at as u64 + 1)
            }
            false => bytes,
        };
        if len > bytes {
            disk::truncate(&file, &path, bytes)?;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let mut metrics = Self {
            path,
            file,
            bytes,
            events: EventFile::create(&training.join("tensorboard"), now)?,
            history: History::default(),
            plot: training.join("loss.svg"),
            seconds_before: seconds,
            started: Instant::now(),
            began: now - seconds,
        };
        for line in lines(&metrics.path)? {
            metrics.show(&line?)?;
        }
        metrics.events.flush()?;
        Ok(metrics)
    }

    /// Appends a line, with the time.
    pub(in crate::train) fn add(&mut self, line: Line) -> Result<()> {
        let line = Line { seconds: self.seconds(), ..line };
        let mut json = serde_json::to_vec(&line).map_err(|error| Error::Input(error.to_string()))?;
        json.push(b'\n');
        disk::write_at(&self.file, &self.path, self.bytes, &json)?;
        self.bytes += json.len() as u64;
        self.show(&line)
    }

    /// Adds a line to the charts.
    fn show(&mut self, line: &Line) -> Result<()> {
        self.history.push(line);
        self.events.add(line, self.began + line.seconds)
    }

    /// Makes the metrics survive a power failure, and brings the charts up to date.
    pub(in crate::train) fn save(&mut self) -> Result<()> {
        disk::sync_file(&self.file, &self.path)?;
        self.events.flush()?;
        plot::svg(&self.history)?.map_or(Ok(()), |svg| disk::replace_with(&self.plot, svg.as_bytes()))
    }

    pub(in crate::train) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Seconds of training so far, earlier sessions included.
    pub(in crate::train) fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }
}
