//! Files that are replaced whole or not at all.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use candle_core::{Error, Result};

use crate::errors::bare;

/// Replaces `path` by what `write` puts at the sibling path it is given: after a crash at any moment `path` holds
/// the old content or the new.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = sibling(path);
    let written = write(&temporary).and_then(|()| {
        File::options().write(true).open(&temporary)?.sync_all()?;
        fs::rename(&temporary, path)?;
        Ok(sync_parent(path)?)
    });
    written.map_err(|error| {
        // Best effort: the error that counts is the one that is returned.
        let _ = fs::remove_file(&temporary);
        Error::Msg(format!("cannot write {}: {}", path.display(), bare(&error)))
    })
}

/// Replaces `path` by `content`; see [`replace`].
pub(crate) fn replace_with(path: &Path, content: &[u8]) -> Result<()> {
    replace(path, |temporary| Ok(fs::write(temporary, content)?))
}

/// The content of `path`; the error names it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| Error::Msg(format!("cannot read {}: {error}", path.display())))
}

/// The path beside `path` where its next content grows: of the same file system, so that a rename is atomic.
pub(crate) fn sibling(path: &Path) -> std::path::PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    path.with_file_name(name)
}

/// Creates an empty folder beside `path` of a name that nobody else uses, to be renamed to `path` when it is complete.
pub(crate) fn staging_folder(path: &Path) -> Result<std::path::PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for n in 0.. {
        let staging = path.with_file_name(format!(".{name}.attn-{}-{n}", std::process::id()));
        match fs::create_dir(&staging) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::Msg(format!("cannot create {}: {error}", staging.display()))),
            Ok(()) => return Ok(staging),
        }
    }
    Err(Error::Msg(format!("no name is free beside {}", path.display())))
}

/// Makes a rename inside the parent of `path` last through a power failure, where the system offers it.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        #[cfg(unix)]
        Some(parent) if parent.as_os_str().is_empty() => File::open(".")?.sync_all(),
        #[cfg(unix)]
        Some(parent) => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}
