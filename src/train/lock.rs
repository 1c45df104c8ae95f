//! Who trains in a folder: one process at a time, and those that died.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::{Result, bail};

use super::folder::TRAINING;
use crate::files;

const LOCK: &str = "lock";

/// Takes the lock of the run in `root`, whose folder `training` is there: held as long as the file is open.
///
/// # Errors
/// If another process holds it.
pub(super) fn take(root: &Path, training: &Path) -> Result<File> {
    let lock = files::open_in_place(&training.join(LOCK))?;
    match attempt(&lock) {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!("another process is training in {}", root.display()),
        Err(TryLockError::Error(error)) => bail!("cannot lock {}: {error}", training.join(LOCK).display()),
    }
}

/// A process that this one has just started holds what is open here for the moment until it becomes another program.
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

/// Removes what processes that died while they created a run beside `root` have left, as far as it can be removed.
pub(super) fn remove_dead_staging_folders(root: &Path) {
    /// No process takes as long from its folder to its lock.
    const YOUNG: Duration = Duration::from_secs(3600);
    let is_dead = |staging: &PathBuf| {
        let lock = staging.join(TRAINING).join(LOCK);
        match fs::symlink_metadata(&lock) {
            Ok(metadata) => metadata.is_file() && File::open(&lock).is_ok_and(|lock| lock.try_lock().is_ok()),
            Err(_) => fs::metadata(staging)
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > YOUNG)),
        }
    };
    for staging in files::staging_folders(root).iter().filter(|staging| is_dead(staging)) {
        let _ = files::remove_folder(staging);
    }
}
