//! Who owns a run's folder: the lock, and what may be created and removed.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::time::Duration;

use super::checkpoint;
use super::model_card::CARD;
use super::run_dir::IsRootNew;
use crate::host::file_names::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, WEIGHTS,
};
use crate::host::{Error, Result, disk};
use crate::model::base_files;

/// Why no run can be created in a folder where there is something.
pub(super) fn occupied(root: &Path) -> Error {
    let training = root.join("training");
    let is_of_a_run = is_of_a_run(&training);
    if is_of_a_run
        && has_lock(&training)
        && let Err(error @ Error::Locked(_)) = lock(root, false)
    {
        return error;
    }
    let has_checkpoint = checkpoint::steps(&training).is_ok_and(|steps| !steps.is_empty());
    // The weights at the root come after the first checkpoint.
    let has_weights = [WEIGHTS, ADAPTER_WEIGHTS].iter().any(|name| root.join(name).exists());
    match is_of_a_run && !has_checkpoint && !has_weights {
        true => Error::Unfinished(root.to_path_buf()),
        false => Error::Exists(root.to_path_buf()),
    }
}

/// Whether the folder `training` has been created for a run. Any other of this name, and what a link leads to, is somebody
/// else's and stays as it is.
pub(super) fn is_of_a_run(training: &Path) -> bool {
    let is_folder = fs::symlink_metadata(training).is_ok_and(|found| found.is_dir());
    // In this order: the lock may be created in between, and is the first file.
    let is_empty = fs::read_dir(training).is_ok_and(|mut entries| entries.next().is_none());
    is_folder && (is_empty || has_lock(training))
}

/// Why a run cannot be opened where there is none.
pub(super) fn not_a_run(root: &Path) -> Error {
    Error::Input(format!("{} is not a run: it has no training/lock", root.display()))
}

fn has_lock(training: &Path) -> bool {
    fs::symlink_metadata(training.join("lock")).is_ok()
}

/// Takes the lock of the run in `root`, which is held as long as the file is open.
pub(super) fn lock(root: &Path, is_creator: bool) -> Result<File> {
    let path = root.join("training/lock");
    let lock = disk::open_in_place(&path)?;
    if is_creator {
        // Others only look whether it is free.
        lock.lock().map_err(Error::io("lock", &path))?;
        return Ok(lock);
    }
    // Tried for a moment: between its creation and its own program, a child process holds its parent's open files.
    for _ in 0..10 {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
        }
    }
    Err(Error::Locked(root.to_path_buf()))
}

/// Removes what [`RunDir::create`] and [`RunDir::begin`] write, and nothing else; says whether that is done. The folder was
/// empty before.
pub(super) fn remove_created(root: &Path, is_root_new: IsRootNew) -> bool {
    // Best effort: the error that led here is the one to report. `training` goes last, as it makes the rest ours.
    const WRITTEN: [&str; 8] =
        [CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, WEIGHTS, ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD];
    for name in WRITTEN.iter().chain(&base_files::KEPT) {
        let path = root.join(name);
        let _ = disk::remove_file(&disk::sibling(&path)).and_then(|()| disk::remove_file(&path));
    }
    let training = root.join("training");
    let is_removed = !training.exists() || disk::remove_folder(&training).is_ok();
    is_removed && (!is_root_new || !root.exists() || disk::remove_empty_folder(root).is_ok())
}
