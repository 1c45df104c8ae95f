//! The lock of a run folder: one process trains in it at a time.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::{Result, bail};

use super::folder::TRAINING;
use crate::files;

const LOCK: &str = "lock";

/// Takes the lock of the run in `root`, whose folder `training` exists. It is held as long as the file is open.
///
/// # Errors
/// If another process holds it, or has removed the folder.
pub(super) fn take(root: &Path, training: &Path) -> Result<File> {
    let path = training.join(LOCK);
    let lock = files::open_in_place(&path)?;
    match attempt(&lock) {
        Ok(()) if is_at(&lock, &path) => Ok(lock),
        // Between its creation and its locking another process took the folder for abandoned.
        Ok(()) => bail!("{} has been removed by another process", root.display()),
        Err(TryLockError::WouldBlock) => bail!("another process is training in {}", root.display()),
        Err(TryLockError::Error(error)) => bail!("cannot lock {}: {error}", path.display()),
    }
}

/// Tries for a moment: a child process holds its parent's open files until it executes its own program.
fn attempt(lock: &File) -> std::result::Result<(), TryLockError> {
    const TRIES: usize = 20;
    for _ in 1..TRIES {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            taken => return taken,
        }
    }
    lock.try_lock()
}

/// Whether `path` still names the open file.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let ids = (file.metadata().map(identity), fs::symlink_metadata(path).map(identity));
        matches!(ids, (Ok(open), Ok(named)) if open == named)
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

/// Removes, as far as possible, staging folders beside `root` whose process died while creating a run.
pub(super) fn remove_dead_staging_folders(root: &Path) {
    for staging in files::staging_folders(root) {
        if let Some(_lock) = seize(&staging) {
            // With the lock in hand: a process that waits for it must find the folder gone.
            let _ = files::remove_folder(&staging);
        }
    }
}

/// Takes over a staging folder whose process is dead: gives its lock, if it has one.
fn seize(staging: &PathBuf) -> Option<Option<File>> {
    /// No living process takes this long from creating its folder to locking it.
    const ABANDONED_AFTER: Duration = Duration::from_secs(3600);
    let path = staging.join(TRAINING).join(LOCK);
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_file() => {
            let lock = File::open(&path).ok()?;
            lock.try_lock().is_ok().then_some(Some(lock))
        }
        Ok(_) => None,
        Err(_) => {
            let modified = fs::metadata(staging).and_then(|metadata| metadata.modified()).ok()?;
            modified.elapsed().is_ok_and(|age| age > ABANDONED_AFTER).then_some(None)
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_another_process_removed_is_not_taken() {
        let space = tempfile::tempdir().unwrap();
        let path = space.path().join(LOCK);
        let lock = take(space.path(), space.path()).unwrap();
        assert!(is_at(&lock, &path));
        fs::remove_file(&path).unwrap();
        assert!(!is_at(&lock, &path));
        fs::write(&path, "").unwrap();
        assert!(!is_at(&lock, &path));
    }
}
