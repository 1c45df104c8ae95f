//! Ids on their way into a file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Result;

use super::Ids;
use super::ids::{IdsFile, Width};
use super::ids_file::{HEADER, cannot_write};
use crate::files;

/// Bytes that are written before the disk is asked again whether it has space for as many.
const STEP: u64 = 64 << 20;

/// Writes ids as they come, first those to train on, then those to validate on.
pub(super) struct IdsWriter {
    file: BufWriter<File>,
    held: IdsFile,
    width: Width,
    bytes: Vec<u8>,
    /// Ids written so far of each part.
    lens: [usize; 2],
    /// Bytes of the file at most, as far as that is known.
    most: u64,
    /// Bytes of the file that there was space for.
    allowed: u64,
}

impl IdsWriter {
    /// Creates a temporary file in a folder, in which nobody else is interested until the ids are saved as part of a run.
    /// `most` is as of [`IdsWriter::create`].
    pub(super) fn temporary(folder: &Path, width: Width, most: u64) -> Result<Self> {
        remove_abandoned(folder);
        Self::create(&temporary_path(folder), width, most)
    }

    /// Creates the file, which must not exist; unless it is kept it is removed with the last use of its ids. It has `most` bytes
    /// at most, as far as that is known: whether there is space for them is asked as it grows.
    pub(super) fn create(path: &Path, width: Width, most: u64) -> Result<Self> {
        let create = || {
            let file = File::options().read(true).write(true).create_new(true).open(path)?;
            let held = IdsFile::temporary(file.try_clone()?, path);
            // Says that somebody is alive who uses it; see `remove_abandoned`. Where there are no locks, nothing is removed.
            let _ = held.file.lock();
            let mut file = BufWriter::with_capacity(1 << 18, file);
            file.write_all(&[0; HEADER])?;
            Ok(Self { file, held, width, bytes: Vec::new(), lens: [0, 0], most, allowed: 0 })
        };
        create().map_err(|error: std::io::Error| cannot_write(path, &error))
    }

    /// Appends ids of part 0, to train on, or 1, to validate on.
    pub(super) fn extend(&mut self, part: usize, ids: &[u32]) -> Result<()> {
        self.bytes.clear();
        self.width.extend(&mut self.bytes, ids);
        self.lens[part] += ids.len();
        self.check_space()?;
        self.file.write_all(&self.bytes).map_err(|error| cannot_write(&self.held.path, &error))
    }

    /// Fails before the disk is full: who fills it takes the space of others too.
    fn check_space(&mut self) -> Result<()> {
        let len = (HEADER + (self.lens[0] + self.lens[1]) * self.width.bytes()) as u64;
        if len <= self.allowed {
            return Ok(());
        }
        let written = len - self.bytes.len() as u64;
        let next = self.most.clamp(len, len + STEP);
        let what = format!("the ids of the text, {:.0} MB of which are written", written as f64 / 1e6);
        files::check_space(files::parent(&self.held.path), &what, next - written)?;
        self.allowed = next;
        Ok(())
    }

    /// The ids written, to train on and to validate on; the file has no header yet.
    pub(super) fn finish(mut self) -> Result<[Ids; 2]> {
        self.file.flush().map_err(|error| cannot_write(&self.held.path, &error))?;
        let [train, validation] = self.lens;
        let file = Arc::new(self.held);
        let start = (HEADER + train * self.width.bytes()) as u64;
        Ok([
            Ids::in_file(file.clone(), self.width, HEADER as u64, train),
            Ids::in_file(file, self.width, start, validation),
        ])
    }
}

/// How temporary files are called, in front and behind.
const TEMPORARY: [&str; 2] = [".attn-ids-", ".tmp"];

/// A name in a folder that is for nobody else.
fn temporary_path(folder: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let ([before, behind], number) = (TEMPORARY, NEXT.fetch_add(1, Ordering::Relaxed));
    folder.join(format!("{before}{}-{number}{behind}", std::process::id()))
}

/// Removes what processes have left that were killed; who is alive holds a lock. Best effort: what stays does no harm.
fn remove_abandoned(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_ours = name.starts_with(TEMPORARY[0]) && name.ends_with(TEMPORARY[1]);
        if is_ours && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::bare;
    use crate::files::faults;
    use crate::text::{Corpus, CorpusOptions, Document, Spill, Tokenizer, Validation};

    fn files_in(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_is_in_use_stays() {
        let dir = tempfile::tempdir().unwrap();
        let abandoned = dir.path().join(".attn-ids-1-0.tmp");
        std::fs::write(&abandoned, "ids").unwrap();
        std::fs::write(dir.path().join("text.tmp"), "text").unwrap();
        let first = IdsWriter::temporary(dir.path(), Width::Two, 0).unwrap();
        assert!(!abandoned.exists());
        let second = IdsWriter::temporary(dir.path(), Width::Two, 0).unwrap();
        assert_eq!(files_in(dir.path()), 3);
        drop((first, second));
        assert_eq!(files_in(dir.path()), 1);
    }

    #[test]
    fn a_file_that_grows_past_the_space_is_given_up_with_the_figures() {
        let dir = tempfile::tempdir().unwrap();
        let ids = vec![7; 1 << 20];
        let mut writer = IdsWriter::temporary(dir.path(), Width::Two, u64::MAX).unwrap();
        // A disk of 80 MB, by its own word: it is asked at 0 MB, and once 67 MB are written.
        let write = |writer: &mut IdsWriter, left: u64| {
            faults::with_available_space(left, || (0..33).try_for_each(|_| writer.extend(0, &ids)))
        };
        write(&mut writer, 80_000_000).unwrap();
        let error = write(&mut writer, 11_000_000).unwrap_err();
        let error = bare(&error).to_string();
        let expected = "no space for the ids of the text, 69 MB of which are written: it needs";
        assert!(error.contains(expected), "{error}");
        assert!(error.ends_with("with 11.0 MB available"), "{error}");
        drop(writer);
        assert_eq!(files_in(dir.path()), 0);
    }

    #[test]
    fn a_text_whose_ids_have_no_space_is_refused_before_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let documents = [Document::new("text", "some words ".repeat(100_000))];
        let spill = Spill { folder: dir.path().to_path_buf(), above: 0 };
        let options = CorpusOptions { context_len: 3, spill: Some(spill) };
        let mut steps = 0;
        let mut prepare = |bytes| {
            faults::with_available_space(bytes, || {
                let tokenizer = Tokenizer::bytes(false).unwrap();
                Corpus::new(&tokenizer, &documents, &Validation::Fraction(0.1), &options, &mut |_| steps += 1)
            })
        };
        let error = prepare(2_000_000).unwrap_err();
        let error = bare(&error).to_string();
        let expected = "no space for the ids of the text: it needs 2.2 MB on the disk of";
        assert!(error.contains(expected) && error.ends_with("with 2.0 MB available"), "{error}");
        assert!(prepare(2_300_000).is_ok());
        assert!(files_in(dir.path()) == 0 && steps > 0);
    }
}
