//! Everything that changes a run on the disk, as single steps, and files that are replaced whole or not at all. Only the event
//! file for TensorBoard is written past this: each session draws it anew, and nothing needs it.
//!
//! A new content grows at a sibling path, is synced, takes its place by one rename, and the folder is synced. A crash
//! before the rename leaves the old content and a `.tmp` that the next write removes; after it, the new content. What
//! is renamed has been synced, so a power failure cannot leave a name without its bytes.

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
pub(crate) use staging::{staging_folder, staging_folders};

/// One change of the disk. A crash comes before it, after it, or, where it has parts, in its middle.
#[derive(Clone, Copy)]
enum Change<'a> {
    CreateFolder(&'a Path),
    /// A new file, which is nobody's yet: no link is followed.
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

    /// Makes the change; the error says what could not be done, and to which path.
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

/// Makes the names in a folder last through a power failure, where the system offers it.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

fn cannot(verb: &str, path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Msg(format!("cannot {verb} {}: {error}", path.display()))
}

/// Replaces `path` by `content`: after a crash at any moment it holds the old content or the new.
pub(crate) fn replace_with(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = sibling(path);
    replace(path, &temporary, Change::Write(&temporary, content))
}

/// Replaces `path` by a copy of `source`, as [`replace_with`] does.
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
        // Best effort: the error that counts is the one that is returned.
        let _ = Change::RemoveFile(temporary).apply();
        cannot("write", path, &error)
    })
}

/// Writes and syncs a file that is not there yet, in a folder that is nobody's yet.
pub(crate) fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    Change::Write(path, content).apply_or_say()?;
    Change::SyncFile(path).apply_or_say()
}

/// Moves a folder whose files are synced to `path`, where there is nothing.
pub(crate) fn rename_folder(folder: &Path, path: &Path) -> Result<()> {
    Change::SyncFolder(folder).apply_or_say()?;
    Change::Rename { from: folder, to: path }.apply_or_say()?;
    Change::SyncFolder(parent(path)).apply_or_say()
}

/// Moves a file that is synced to `path`, in the place of what is there.
pub(crate) fn rename_file(file: &Path, path: &Path) -> Result<()> {
    Change::Rename { from: file, to: path }.apply_or_say()?;
    Change::SyncFolder(parent(path)).apply_or_say()
}

/// Creates a folder in one that exists.
pub(crate) fn create_folder(path: &Path) -> Result<()> {
    Change::CreateFolder(path).apply_or_say()
}

/// Creates a folder and those around it, as far as they are not there yet.
pub(crate) fn create_folders(path: &Path) -> Result<()> {
    let missing: Vec<&Path> =
        path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
    for folder in missing.into_iter().rev() {
        match Change::CreateFolder(folder).apply() {
            // By somebody else, this very moment.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            created => created.map_err(|error| cannot("create", folder, &error))?,
        }
        Change::SyncFolder(parent(folder)).apply_or_say()?;
    }
    Ok(())
}

/// Removes a file or a link, if it is there.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    if is_there(path) { Change::RemoveFile(path).apply_or_say() } else { Ok(()) }
}

/// Removes a folder and all in it, if it is there; of a link only the link.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    if is_there(path) { Change::RemoveFolder(path).apply_or_say() } else { Ok(()) }
}

/// Whether there is anything of this name, be it a link that leads nowhere.
fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// The content of a file of a model folder, which nobody vouches for; the error names it. See [`input`].
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let path = input::inside(parent(path), path.file_name().unwrap_or_default())?;
    input::read(&path, input::most_bytes(path.file_name().unwrap_or_default()))
}

/// Creates an empty file that grows where it lies.
pub(crate) fn create_file(path: &Path) -> Result<File> {
    Change::Write(path, b"").apply_or_say()?;
    File::options().read(true).write(true).open(path).map_err(|error| cannot("open", path, &error))
}

/// Opens a file that is changed where it lies, and creates it where it is not there.
///
/// # Errors
/// If it is anything but an ordinary file: a link in a folder of unknown origin could lead anywhere.
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

/// Appends `bytes` to `file`, opened at `path`, whose length is `at`. On an error its length is that again, if the disk
/// still allows it.
pub(crate) fn append(file: &File, path: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    Change::WriteAt { file, path, at, bytes }.apply().map_err(|error| {
        // Best effort: the next line is written over what stays.
        let _ = Change::Truncate { file, path, len: at }.apply();
        cannot("write", path, &error)
    })
}

/// Writes `bytes` into `file`, opened at `path`, from the byte `at` on.
pub(crate) fn write_at(file: &File, path: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    Change::WriteAt { file, path, at, bytes }.apply_or_say()
}

/// Gives the synced file `from` the name `path` too, where nothing is.
pub(crate) fn link(from: &Path, path: &Path) -> Result<()> {
    Change::Link { from, to: path }.apply_or_say()
}

/// Writes and syncs a copy of the file `from` as `path`, where nothing is.
pub(crate) fn copy(from: &Path, path: &Path) -> Result<()> {
    Change::Copy { from, to: path }.apply_or_say()?;
    Change::SyncFile(path).apply_or_say()
}

/// Cuts off what `file`, opened at `path`, holds past `len` bytes.
pub(crate) fn truncate(file: &File, path: &Path, len: u64) -> Result<()> {
    Change::Truncate { file, path, len }.apply_or_say()
}

/// Makes the content of the file at `path` last through a power failure.
pub(crate) fn sync(path: &Path) -> Result<()> {
    Change::SyncFile(path).apply_or_say()
}

/// What the name ends with of that which is not complete yet.
pub(crate) const GROWING: &str = ".tmp";

/// The path beside `path` where its next content grows: of the same file system, so that a rename is atomic.
pub(crate) fn sibling(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(GROWING);
    path.with_file_name(name)
}

/// The folder that `path` lies in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
