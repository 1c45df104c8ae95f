//! The event file that TensorBoard reads.
//!
//! A file is a sequence of records: the length (`u64`), its checksum, the data, its checksum, all little-endian; a
//! checksum is a CRC-32C, rotated and shifted
//! ([TFRecord](https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details)). The data of each is
//! an `Event` of TensorFlow's `event.proto`, of which the messages here have the fields that are used.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use prost::Message;

use super::line::Line;
use crate::host::{Error, Result, bail, disk};

const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".candle-attention";

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    values: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    /// Written even if it is 0.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The event file of a session of training.
pub(super) struct EventFile {
    path: PathBuf,
    file: BufWriter<File>,
    flushed: Instant,
}

impl EventFile {
    /// Creates a file in `folder` in the place of those of earlier sessions, under a name that sorts after theirs: a
    /// running TensorBoard then forgets these.
    ///
    /// # Errors
    /// If `folder` is a link or a file, or the file cannot be created.
    pub(super) fn create(folder: &Path, wall_time: f64) -> Result<Self> {
        match fs::symlink_metadata(folder) {
            Ok(found) if !found.is_dir() => bail!("expected a folder, got {}", folder.display()),
            Ok(_) => {}
            Err(_) => drop(disk::create_folder(folder)?),
        }
        let mut seconds = wall_time as u64;
        for (earlier, path) in event_files(folder)? {
            seconds = seconds.max(earlier.saturating_add(1));
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        let path = folder.join(format!("{PREFIX}{seconds:010}{SUFFIX}"));
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        let mut events = Self { path, file: BufWriter::new(file), flushed: Instant::now() };
        for what in head() {
            events.write(&Event { wall_time, step: 0, what: Some(what) })?;
        }
        events.flush()?;
        Ok(events)
    }

    /// Adds the numbers of a line of the metrics, which are in the file a second later.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn add(&mut self, line: &Line, wall_time: f64) -> Result<()> {
        const DELAY: Duration = Duration::from_secs(1);
        self.write(&event(line, wall_time))?;
        if self.flushed.elapsed() >= DELAY { self.flush() } else { Ok(()) }
    }

    /// Writes what is waiting.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.flushed = Instant::now();
        self.file.flush().map_err(Error::io("write", &self.path))
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        self.file.write_all(&record(&event.encode_to_vec())).map_err(Error::io("write", &self.path))
    }
}

/// Each file begins with its version and the start of a session, at which TensorBoard drops later steps that it knows.
fn head() -> [What; 2] {
    const START: i32 = 1;
    [What::FileVersion("brain.Event:2".into()), What::SessionLog(SessionLog { status: START })]
}

fn event(line: &Line, wall_time: f64) -> Event {
    let scalar = |(name, value): (&str, f64)| Scalar { tag: name.into(), simple_value: Some(value as f32) };
    let summary = Summary { values: line.numbers().map(scalar).collect() };
    Event { wall_time, step: line.step as i64, what: Some(What::Summary(summary)) }
}

fn record(data: &[u8]) -> Vec<u8> {
    let (length, mut record) = ((data.len() as u64).to_le_bytes(), vec![]);
    for part in [&length, data] {
        record.extend_from_slice(part);
        record.extend_from_slice(&masked_checksum(part).to_le_bytes());
    }
    record
}

fn masked_checksum(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The event files of this program in `folder`, with the seconds in their names.
fn event_files(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let seconds = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(SUFFIX));
        found.extend(seconds.and_then(|seconds| seconds.parse().ok()).map(|seconds| (seconds, entry.path())));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/fixtures/tensorboard_events.py` writes the same events with TensorBoard's own code.
    #[test]
    fn a_file_is_what_tensorboard_would_write() {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tensorboard.tfevents");
        let space = tempfile::tempdir().unwrap();
        let folder = space.path().join("tensorboard");
        let mut events = EventFile::create(&folder, 1_700_000_000.25).unwrap();
        for step in 1..=3u32 {
            let loss = 1.0 / f64::from(step);
            let scalars = [("loss", loss), ("weight_norm/ação", -1e30 * loss), ("zero", 0.0)];
            let numbers = scalars.into_iter().map(|(name, value)| (name.to_string(), value.into())).collect();
            let line = Line { step: u64::from(step) * 1000, seconds: 0.0, numbers };
            events.add(&line, 1_700_000_000.5 + f64::from(step)).unwrap();
        }
        events.flush().unwrap();
        assert_eq!(fs::read(&events.path).unwrap(), fs::read(fixture).unwrap());
    }

    #[test]
    fn a_later_session_has_a_later_name_and_removes_its_own_kind_only() {
        let space = tempfile::tempdir().unwrap();
        let folder = space.path().join("tensorboard");
        let first = EventFile::create(&folder, 5e9).unwrap();
        fs::write(folder.join("events.out.tfevents.1.another"), b"").unwrap();
        let second = EventFile::create(&folder, 4e9).unwrap();
        assert!(second.path > first.path);
        assert!(second.path.exists() && !first.path.exists());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_elsewhere_is_not_followed() {
        let space = tempfile::tempdir().unwrap();
        let folder = space.path().join("tensorboard");
        std::os::unix::fs::symlink(space.path(), &folder).unwrap();
        assert!(EventFile::create(&folder, 1.0).err().unwrap().to_string().contains("expected a folder"));
    }
}
