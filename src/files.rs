//! Every change that a run makes on disk, one function each, and files that are replaced atomically. Only TensorBoard's
//! event file bypasses this module: each session rewrites it, and nothing depends on it.
//!
//! New content is written to a sibling path, synced, and renamed into place; then the folder is synced. A crash before
//! the rename leaves the old content and a `.tmp` file that the next write removes; a crash after it leaves the new
//! content. A file is synced before it is renamed, so a power failure cannot leave a name without its bytes.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use candle_core::{Error, Result, bail};

use crate::input;

#[cfg(test)]
pub(crate) mod faults;
#[cfg(test)]
pub(crate) mod power;
mod space;
mod staging;

pub(crate) use space::check_space;
pub(crate) use staging::{Staging, remove_all_staging, staging_folders};

/// One change on disk. A crash happens before it, after it or, if it has parts, in the middle of it.
#[derive(Clone, Copy)]
enum Change<'a> {
    CreateFolder(&'a Path),
    /// A new file; fails if the path exists, so no link is followed.
    Write(&'a Path, &'a [u8]),
    /// A new file with the content of another.
    Copy {
        from: &'a Path,
        to: &'a Path,
    },
    /// A second name of a file.
    Link {
        from: &'a Path,
        to: &'a Path,
    },
    WriteAt {
        file: &'a File,
        path: &'a Path,
        at: u64,
        bytes: &'a [u8],
    },
    Truncate {
        file: &'a File,
        path: &'a Path,
        len: u64,
    },
    SyncFile(&'a Path),
    SyncFolder(&'a Path),
    Rename {
        from: &'a Path,
        to: &'a Path,
    },
    RemoveFile(&'a Path),
    RemoveFolder(&'a Path),
}

impl Change<'_> {
    /// Makes the change.
    fn apply(self) -> io::Result<()> {
        #[cfg(test)]
        if faults::strike(self)?.is_break() {
            return Ok(());
        }
        self.apply_to_disk()
    }

    fn apply_to_disk(self) -> io::Result<()> {
        match self {
            Self::CreateFolder(path) => fs::create_dir(path),
            Self::Write(path, bytes) => create_new(path)?.write_all(bytes),
            Self::Copy { from, to } => io::copy(&mut File::open(from)?, &mut create_new(to)?).map(drop),
            Self::Link { from, to } => fs::hard_link(from, to),
            Self::WriteAt { mut file, at, bytes, .. } => {
                file.seek(SeekFrom::Start(at))?;
                file.write_all(bytes)
            }
            Self::Truncate { file, len, .. } => file.set_len(len),
            Self::SyncFile(path) => File::options().write(true).open(path)?.sync_all(),
            Self::SyncFolder(path) => sync_folder(path),
            Self::Rename { from, to } => fs::rename(from, to),
            Self::RemoveFile(path) => fs::remove_file(path),
            Self::RemoveFolder(path) => fs::remove_dir_all(path),
        }
    }

    /// Makes the change; an error names the action and the path.
    fn apply_or_say(self) -> Result<()> {
        let (verb, path) = match self {
            Self::CreateFolder(path) => ("create", path),
            Self::Write(path, _) | Self::WriteAt { path, .. } => ("write", path),
            Self::Copy { to, .. } | Self::Link { to, .. } | Self::Rename { to, .. } => ("write", to),
            Self::Truncate { path, .. } => ("shorten", path),
            Self::SyncFile(path) | Self::SyncFolder(path) => ("sync", path),
            Self::RemoveFile(path) | Self::RemoveFolder(path) => ("remove", path),
        };
        self.apply().map_err(|error| cannot(verb, path, &error))
    }
}

fn create_new(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).open(path)
}

/// Makes the names in a folder survive a power failure, on systems that can.
fn sync_folder(path: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(path)?.sync_all() {
        // EINVAL, ENOTSUP: some file systems cannot sync a folder.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        synced => synced,
    }
}

fn cannot(verb: &str, path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Msg(format!("cannot {verb} {}: {error}", path.display()))
}

/// Replaces the file `path`: after a crash at any moment it holds either the old content or `content`.
pub(crate) fn replace_with(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = sibling(path);
    replace(path, &temporary, Change::Write(&temporary, content))
}

/// Replaces the file `path` by a copy of `source`, as [`replace_with`] does.
pub(crate) fn replace_by_copy(path: &Path, source: &Path) -> Result<()> {
    let temporary = sibling(path);
    replace(path, &temporary, Change::Copy { from: source, to: &temporary })
}

fn replace(path: &Path, temporary: &Path, write: Change) -> Result<()> {
    remove_file(temporary)?;
    let replaced = write
        .apply()
        .and_then(|()| Change::SyncFile(temporary).apply())
        .and_then(|()| Change::Rename { from: temporary, to: path }.apply())
        .and_then(|()| Change::SyncFolder(parent(path)).apply());
    replaced.map_err(|error| {
        // Best effort: the first error is the one to report.
        let _ = Change::RemoveFile(temporary).apply();
        cannot("write", path, &error)
    })
}

/// Writes and syncs a new file; the path must not exist.
pub(crate) fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    Change::Write(path, content).apply_or_say()?;
    Change::SyncFile(path).apply_or_say()
}

/// Renames a folder whose files are synced to `path`, which must not exist.
pub(crate) fn rename_folder(folder: &Path, path: &Path) -> Result<()> {
    Change::SyncFolder(folder).apply_or_say()?;
    Change::Rename { from: folder, to: path }.apply_or_say()?;
    sync_names(parent(path))
}

/// Makes the names in a folder survive a power failure.
pub(crate) fn sync_names(folder: &Path) -> Result<()> {
    Change::SyncFolder(folder).apply_or_say()
}

/// Renames a synced file to `path`, replacing any file there.
pub(crate) fn rename_file(file: &Path, path: &Path) -> Result<()> {
    Change::Rename { from: file, to: path }.apply_or_say()?;
    Change::SyncFolder(parent(path)).apply_or_say()
}

/// Creates a folder inside an existing one.
pub(crate) fn create_folder(path: &Path) -> Result<()> {
    Change::CreateFolder(path).apply_or_say()
}

/// Creates a folder and its missing parents.
pub(crate) fn create_folders(path: &Path) -> Result<()> {
    let missing: Vec<&Path> =
        path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
    for folder in missing.into_iter().rev() {
        match Change::CreateFolder(folder).apply() {
            // Created by another process in the meantime.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            created => created.map_err(|error| cannot("create", folder, &error))?,
        }
        Change::SyncFolder(parent(folder)).apply_or_say()?;
    }
    Ok(())
}

/// Removes a file or a link, if it exists.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    if is_there(path) { Change::RemoveFile(path).apply_or_say() } else { Ok(()) }
}

/// Removes a folder and its content, if it exists; of a link, only the link.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    if is_there(path) { Change::RemoveFolder(path).apply_or_say() } else { Ok(()) }
}

/// Whether the path exists, even as a broken link.
pub(crate) fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Reads a file of a model folder, whose origin may be unknown. See [`input`].
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let path = input::inside(parent(path), path.file_name().unwrap_or_default())?;
    input::read(&path, input::most_bytes(path.file_name().unwrap_or_default()))
}

/// Creates an empty file that will grow in place.
pub(crate) fn create_file(path: &Path) -> Result<File> {
    Change::Write(path, b"").apply_or_say()?;
    File::options().read(true).write(true).open(path).map_err(|error| cannot("open", path, &error))
}

/// Opens a file that is changed in place, and creates it if it is missing.
///
/// # Errors
/// If the path is anything but an ordinary file: a link in a folder of unknown origin could lead anywhere.
pub(crate) fn open_in_place(path: &Path) -> Result<File> {
    if let Ok(metadata) = fs::symlink_metadata(path)
        && !metadata.is_file()
    {
        bail!("expected an ordinary file, got a link, a folder or a device: {}", path.display());
    }
    if !is_there(path)
        && let Err(error) = Change::Write(path, b"").apply()
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(cannot("create", path, &error));
    }
    File::options().read(true).write(true).open(path).map_err(|error| cannot("open", path, &error))
}

/// Appends `bytes` to `file`, opened at `path` and `at` bytes long. On an error the file is cut back to that length, if
/// possible.
pub(crate) fn append(file: &File, path: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    Change::WriteAt { file, path, at, bytes }.apply().map_err(|error| {
        // Best effort: the next write overwrites what is left.
        let _ = Change::Truncate { file, path, len: at }.apply();
        cannot("write", path, &error)
    })
}

/// Writes `bytes` into `file`, opened at `path`, at offset `at`.
pub(crate) fn write_at(file: &File, path: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    Change::WriteAt { file, path, at, bytes }.apply_or_say()
}

/// Hard-links the synced file `from` as `path`, which must not exist.
pub(crate) fn link(from: &Path, path: &Path) -> Result<()> {
    Change::Link { from, to: path }.apply_or_say()
}

/// Copies the file `from` to `path`, which must not exist, and syncs the copy.
pub(crate) fn copy(from: &Path, path: &Path) -> Result<()> {
    Change::Copy { from, to: path }.apply_or_say()?;
    Change::SyncFile(path).apply_or_say()
}

/// Truncates `file`, opened at `path`, to `len` bytes.
pub(crate) fn truncate(file: &File, path: &Path, len: u64) -> Result<()> {
    Change::Truncate { file, path, len }.apply_or_say()
}

/// Makes the content of the file at `path` survive a power failure.
pub(crate) fn sync(path: &Path) -> Result<()> {
    Change::SyncFile(path).apply_or_say()
}

/// The ending of names of incomplete files and folders.
pub(crate) const GROWING: &str = ".tmp";

/// The path beside `path` where its next content is written: on the same file system, so that a rename is atomic.
pub(crate) fn sibling(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(GROWING);
    path.with_file_name(name)
}

/// The folder that contains `path`.
pub(crate) fn parent(path: &Path) -> &Path {
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
        sync_names(proc).unwrap();
        let missing = sync_names(Path::new("/proc/missing")).unwrap_err().to_string();
        assert!(missing.contains("cannot sync /proc/missing"), "{missing}");
    }
}
