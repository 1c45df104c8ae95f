//! Every change that a run makes on disk, and files that are replaced as a whole.
//!
//! New content is written to a sibling path, synced, and renamed into place; then the folder is synced. A crash before
//! the rename leaves the old content, and a `.tmp` file that the next write removes; a crash after it leaves the new
//! content. What can be made again is not synced. Only TensorBoard's event files are written elsewhere: each session starts
//! them anew, and nothing depends on them.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

#[cfg(test)]
use super::faults::gate;
use super::{Error, Result, bail};

/// A change on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "only the simulated faults look at it"))]
pub(crate) enum Change {
    CreateFolder,
    Write,
    Sync,
    Rename,
    SyncFolder,
    Truncate,
    Remove,
}

/// Whether a change is made; the faults of tests decide otherwise.
#[cfg(not(test))]
fn gate(_: Change, _: &Path, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    make()
}

/// Replaces the file `path` by what `write` writes: after a crash at any moment it has its old content or the new one.
///
/// # Errors
/// Those of `write` and of the system; the old content stays, unless only the folder cannot be synced.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    replaced(path, true, write)
}

/// As [`replace`], for a file that can be made again: it appears whole, but may be lost with the machine's power.
///
/// # Errors
/// Those of [`replace`].
pub(crate) fn replace_quickly(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    replaced(path, false, write)
}

fn replaced(path: &Path, is_synced: bool, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let temporary = sibling(path);
    remove_file(&temporary)?;
    let mut written = None;
    let sync = |written: &Option<File>| match written.as_ref().filter(|_| is_synced) {
        // The same handle: some file systems report here alone what could not be written.
        Some(file) => gate(Change::Sync, &temporary, || file.sync_all()),
        None => Ok(()),
    };
    let replaced = gate(Change::Write, &temporary, || write(written.insert(create_new(&temporary)?)))
        .and_then(|()| sync(&written))
        .and_then(|()| gate(Change::Rename, path, || fs::rename(&temporary, path)))
        .and_then(|()| if is_synced { sync_folder(parent(path)) } else { Ok(()) });
    replaced.map_err(|error| {
        // Best effort: the first error is the one to report.
        let _ = remove_file(&temporary);
        Error::io("write", path)(error)
    })
}

/// Replaces the file `path` by `content`: after a crash at any moment it has its old content or the new one.
///
/// # Errors
/// If it cannot be written; the old content stays, unless only the folder cannot be synced.
pub fn replace_with(path: &Path, content: &[u8]) -> Result<()> {
    replace(path, |file| file.write_all(content))
}

/// Creates a folder, and says whether it is new.
///
/// # Errors
/// If it cannot be created; then it is not there.
pub(crate) fn create_folder(path: &Path) -> Result<bool> {
    match gate(Change::CreateFolder, path, || fs::create_dir(path)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(Error::io("create", path)(error)),
    }
    sync_folder(parent(path)).map(|()| true).map_err(|error| {
        let _ = remove_empty_folder(path);
        Error::io("create", path)(error)
    })
}

/// Creates the folders above `path` that are missing.
///
/// # Errors
/// If one cannot be created.
pub(crate) fn create_parents(path: &Path) -> Result<()> {
    let missing = path.ancestors().skip(1).take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    missing.collect::<Vec<_>>().into_iter().rev().try_for_each(|folder| create_folder(folder).map(drop))
}

/// Creates a file that will grow in place, as [`open_in_place`] does.
pub(crate) fn create_file(path: &Path) -> Result<File> {
    gate(Change::Write, path, || create_new(path).map(drop)).map_err(Error::io("create", path))?;
    open_in_place(path)
}

/// Opens a file that is changed in place, and creates it if it is missing.
///
/// # Errors
/// If the path is anything but an ordinary file: a link in a folder of unknown origin could lead anywhere.
pub(crate) fn open_in_place(path: &Path) -> Result<File> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => {
            bail!("expected an ordinary file, got a link, a folder or a device: {}", path.display())
        }
        Ok(_) => {}
        Err(_) => gate(Change::Write, path, || create_new(path).map(drop)).map_err(Error::io("create", path))?,
    }
    File::options().read(true).write(true).open(path).map_err(Error::io("open", path))
}

/// Writes `bytes` into `file`, opened at `path`, at offset `at`.
pub(crate) fn write_at(mut file: &File, path: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    gate(Change::Write, path, || {
        file.seek(SeekFrom::Start(at))?;
        file.write_all(bytes)
    })
    .map_err(Error::io("write", path))
}

/// Truncates `file`, opened at `path`, to `len` bytes.
pub(crate) fn truncate(file: &File, path: &Path, len: u64) -> Result<()> {
    gate(Change::Truncate, path, || file.set_len(len)).map_err(Error::io("shorten", path))
}

/// Makes the content of `file`, opened at `path`, survive a power failure.
pub(crate) fn sync_file(file: &File, path: &Path) -> Result<()> {
    gate(Change::Sync, path, || file.sync_all()).map_err(Error::io("sync", path))
}

/// Removes a file or a link, if it exists.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    gate(Change::Remove, path, || fs::remove_file(path)).map_err(Error::io("remove", path))
}

/// Removes a folder with all that is in it.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    gate(Change::Remove, path, || fs::remove_dir_all(path)).map_err(Error::io("remove", path))
}

/// Removes a folder if nothing is in it.
pub(crate) fn remove_empty_folder(path: &Path) -> Result<()> {
    gate(Change::Remove, path, || fs::remove_dir(path)).map_err(Error::io("remove", path))
}

/// The path beside `path` where its next content is written: on the same file system, so that a rename is atomic.
pub(crate) fn sibling(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    path.with_file_name(name)
}

fn create_new(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).open(path)
}

/// Makes the names in a folder survive a power failure, on systems that can.
fn sync_folder(path: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    gate(Change::SyncFolder, path, || match File::open(path)?.sync_all() {
        // Some file systems cannot sync a folder.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        synced => synced,
    })
}

/// The folder that contains `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_cannot_sync_a_folder_is_no_error() {
        // Linux answers EINVAL here.
        let proc = Path::new("/proc");
        assert_eq!(File::open(proc).unwrap().sync_all().unwrap_err().kind(), io::ErrorKind::InvalidInput);
        sync_folder(proc).unwrap();
        assert_eq!(sync_folder(Path::new("/proc/missing")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
