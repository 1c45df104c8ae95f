//! Writes ids to a file.

use std::collections::hash_map::RandomState;
use std::fs::{File, Metadata};
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Result, bail};

use super::Ids;
use super::ids::{IdsFile, Width};
use super::ids_file::HEADER_BYTES;
use crate::files;

/// Bytes that are collected before they are written.
const BUFFER_BYTES: usize = 1 << 18;

/// Bytes that are written between two checks of the free space.
const SPACE_CHECK_BYTES: u64 = 64 << 20;

/// Writes ids as they come, first the training ids, then the validation ids.
pub(super) struct IdsWriter {
    held: IdsFile,
    width: Width,
    /// Bytes not written yet.
    bytes: Vec<u8>,
    /// Bytes written.
    written: u64,
    /// Ids of each part so far.
    lens: [usize; 2],
    /// The most bytes that the file can have, as far as known.
    most: u64,
    /// Bytes for which the free space has been checked.
    allowed: u64,
}

impl IdsWriter {
    /// Creates a temporary file in a folder, then removes those that killed processes have left there.
    /// `most` is as in [`IdsWriter::create`].
    pub(super) fn temporary(folder: &Path, width: Width, most: u64) -> Result<Self> {
        // Another process may take a file that is not locked yet for an abandoned one, and remove it: then a new one is
        // made.
        for _ in 0..8 {
            let writer = Self::create(&temporary_path(folder), width, most)?;
            if !is_removed(&writer.held.file) {
                remove_abandoned(folder, &writer.held.file);
                return Ok(writer);
            }
        }
        bail!("cannot keep a temporary file in {}: others remove it", folder.display())
    }

    /// Creates the file, which must not exist. It is removed with the last use of its ids, unless it is kept. `most` is
    /// the most bytes it can have, as far as known; whether the disk has space for them is checked as the file grows.
    pub(super) fn create(path: &Path, width: Width, most: u64) -> Result<Self> {
        let held = IdsFile::temporary(files::create_file(path)?, path);
        // Tells others that the file is in use; see `remove_abandoned`. Without support for locks, nothing is removed.
        let _ = held.file.lock();
        Ok(Self { held, width, bytes: vec![0; HEADER_BYTES], written: 0, lens: [0, 0], most, allowed: 0 })
    }

    /// Appends ids of part 0 (training) or 1 (validation).
    pub(super) fn extend(&mut self, part: usize, ids: &[u32]) -> Result<()> {
        self.width.extend(&mut self.bytes, ids);
        self.lens[part] += ids.len();
        self.check_space()?;
        if self.bytes.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        files::write_at(&self.held.file, &self.held.path, self.written, &self.bytes)?;
        self.written += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }

    /// Fails before the disk is full, since other programs need space too.
    fn check_space(&mut self) -> Result<()> {
        let len = (HEADER_BYTES + (self.lens[0] + self.lens[1]) * self.width.bytes()) as u64;
        if len <= self.allowed {
            return Ok(());
        }
        let next = self.most.clamp(len, len + SPACE_CHECK_BYTES);
        let what = format!("the ids of the text, {:.0} MB of which are written", self.written as f64 / 1e6);
        files::check_space(files::parent(&self.held.path), &what, next - self.written)?;
        self.allowed = next;
        Ok(())
    }

    /// The training and validation ids written; the file has no header yet.
    pub(super) fn finish(mut self) -> Result<[Ids; 2]> {
        self.flush()?;
        let [train, validation] = self.lens;
        let file = Arc::new(self.held);
        let start = (HEADER_BYTES + train * self.width.bytes()) as u64;
        Ok([
            Ids::in_file(file.clone(), self.width, HEADER_BYTES as u64, train),
            Ids::in_file(file, self.width, start, validation),
        ])
    }
}

/// How the names of temporary files start and end.
const TEMPORARY: [&str; 2] = [".attn-ids-", ".tmp"];

/// A name that cannot be predicted, so that nobody can create it first.
fn temporary_path(folder: &Path) -> PathBuf {
    // Each `RandomState` has keys of its own, from a random start.
    let random = RandomState::new().build_hasher().finish();
    folder.join(format!("{}{random:016x}{}", TEMPORARY[0], TEMPORARY[1]))
}

/// Removes temporary files left by killed processes of the owner of `ours`; a process that is alive holds a lock on its
/// file. Best effort: a file that stays does no harm.
fn remove_abandoned(folder: &Path, ours: &File) {
    let Ok(ours) = ours.metadata() else { return };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Looked at before it is opened: opening a pipe would wait for a writer.
        let is_ours = name.starts_with(TEMPORARY[0])
            && name.ends_with(TEMPORARY[1])
            && entry.metadata().is_ok_and(|metadata| metadata.is_file() && has_same_owner(&metadata, &ours));
        let Some(file) = is_ours.then(|| File::open(entry.path()).ok()).flatten() else { continue };
        // The lock is held until the file is removed: whoever takes it afterwards sees that the name is gone.
        if file.try_lock().is_ok() {
            let _ = files::remove_file(&entry.path());
        }
    }
}

/// Whether the name of an open file has been removed.
fn is_removed(file: &File) -> bool {
    #[cfg(unix)]
    return file.metadata().is_ok_and(|metadata| std::os::unix::fs::MetadataExt::nlink(&metadata) == 0);
    #[cfg(not(unix))]
    return {
        let _ = file;
        false
    };
}

fn has_same_owner(one: &Metadata, other: &Metadata) -> bool {
    #[cfg(unix)]
    return {
        use std::os::unix::fs::MetadataExt;
        one.uid() == other.uid()
    };
    #[cfg(not(unix))]
    return {
        let _ = (one, other);
        true
    };
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

    /// A pipe must not make anyone wait, and a link must not lead elsewhere.
    #[cfg(unix)]
    #[test]
    fn only_regular_files_are_opened_to_see_whether_they_are_abandoned() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join(".attn-ids-pipe.tmp");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let target = dir.path().join("text");
        std::fs::write(&target, "text").unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join(".attn-ids-link.tmp")).unwrap();
        std::fs::create_dir(dir.path().join(".attn-ids-folder.tmp")).unwrap();
        drop(IdsWriter::temporary(dir.path(), Width::Two, 0).unwrap());
        assert_eq!(files_in(dir.path()), 4);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_was_removed_before_it_was_locked_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let writer = IdsWriter::temporary(dir.path(), Width::Two, 0).unwrap();
        assert!(!is_removed(&writer.held.file));
        std::fs::remove_file(&writer.held.path).unwrap();
        assert!(is_removed(&writer.held.file));
    }

    #[test]
    fn names_of_temporary_files_differ() {
        let names: std::collections::BTreeSet<PathBuf> = (0..100).map(|_| temporary_path(Path::new("."))).collect();
        assert_eq!(names.len(), 100);
    }

    #[test]
    fn a_file_that_grows_past_the_space_is_given_up_with_the_figures() {
        let dir = tempfile::tempdir().unwrap();
        let ids = vec![7; 1 << 20];
        let mut writer = IdsWriter::temporary(dir.path(), Width::Two, u64::MAX).unwrap();
        // A disk that claims to have 80 MB: it is asked at the start, and once 67 MB are written.
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
