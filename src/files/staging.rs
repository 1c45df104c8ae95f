//! Folders that are built beside their final place.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use candle_core::{Result, bail};

use super::{Change, cannot, parent, remove_folder, rename_folder};

/// Separates the name of a folder from the numbers of the process that creates it.
const STAGING: &str = ".attn-";

/// A folder of this process that is not yet in its place: removed when dropped.
pub(crate) struct Staging(PathBuf);

impl Staging {
    /// Creates an empty folder beside `path`, under a name that nobody else uses.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        for n in 0.. {
            let staging = path.with_file_name(format!(".{name}{STAGING}{}-{n}", std::process::id()));
            let mut all = all_staging();
            match Change::CreateFolder(&staging).apply() {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(cannot("create", &staging, &error)),
                Ok(()) => {
                    all.insert(staging.clone());
                    return Ok(Self(staging));
                }
            }
        }
        bail!("no name is free beside {}", path.display())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Renames the folder, whose files are synced, to `path`, which must not exist.
    pub(crate) fn move_to(&self, path: &Path) -> Result<()> {
        let mut all = all_staging();
        rename_folder(&self.0, path)?;
        all.remove(&self.0);
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if all_staging().remove(&self.0) {
            // Best effort: the error that led here is the one to report.
            let _ = remove_folder(&self.0);
        }
    }
}

/// The staging folders of this process.
fn all_staging() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    static ALL: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the staging folders of this process, which must end at once: from here on no thread can move such a folder
/// into place or report that it is gone.
pub(crate) fn remove_all_staging() {
    const TRIES: usize = 50;
    let all = all_staging();
    for folder in all.iter() {
        // Another thread may still be writing files into it.
        (0..TRIES).any(|_| fs::remove_dir_all(folder).is_ok() || !folder.exists());
    }
    std::mem::forget(all);
}

/// All staging folders beside `path`: of any process, for any name.
pub(crate) fn staging_folders(path: &Path) -> Vec<PathBuf> {
    let is_staging = |name: &str| {
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let numbers = name.strip_prefix('.').and_then(|rest| rest.rsplit_once(STAGING)?.1.split_once('-'));
        numbers.is_some_and(|(process, n)| digits(process) && digits(n))
    };
    let Ok(entries) = fs::read_dir(parent(path)) else { return Vec::new() };
    let names = entries.flatten().filter(|entry| is_staging(&entry.file_name().to_string_lossy()));
    names.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}
