//! Files that are replaced whole or not at all.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Replaces `path` by what `write` puts at the sibling path it is given: after a crash at any moment `path` holds
/// the old content or the new.
pub(crate) fn replace<E: From<io::Error>>(path: &Path, write: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    let temporary = sibling(path);
    let written = write(&temporary).and_then(|()| {
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, path)?;
        Ok(sync_parent(path)?)
    });
    if written.is_err() {
        // Best effort: the error that counts is the one that is returned.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Replaces `path` by `content`; see [`replace`].
pub(crate) fn replace_with(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, |temporary| fs::write(temporary, content))
}

/// The path beside `path` where its next content grows: of the same file system, so that a rename is atomic.
pub(crate) fn sibling(path: &Path) -> std::path::PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    path.with_file_name(name)
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
