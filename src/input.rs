//! Reading files that may come from anyone.
//!
//! A file to read is a regular one: a pipe or a device might never end. It is no longer than its kind ever is. And a file
//! of a model folder lies in that folder, whatever links say; only Hugging Face's own cache, whose
//! `snapshots/REVISION/` links to files in `blobs/` beside `snapshots/`, is followed out of it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{Error, Result, bail};

/// The most bytes of a configuration or of a state: a thousand times more than any has.
pub const MOST_CONFIG_BYTES: u64 = 16 << 20;

/// The most bytes of a `tokenizer.json`: ten times more than any has.
pub const MOST_TOKENIZER_BYTES: u64 = 256 << 20;

/// Opens a regular file; gives its length too.
///
/// # Errors
/// If it cannot be read, or is a folder, a pipe or a device.
pub fn open(path: &Path) -> Result<(File, u64)> {
    let cannot = |error| Error::Msg(format!("cannot read {}: {error}", path.display()));
    // Before it is opened: to open a pipe waits for somebody to write into it.
    let kind = fs::metadata(path).map_err(cannot)?;
    if kind.is_dir() {
        bail!("cannot read {}: expected a file, got a folder", path.display());
    }
    if !kind.is_file() {
        bail!("cannot read {}: expected a regular file, got a pipe or a device", path.display());
    }
    Ok((File::open(path).map_err(cannot)?, kind.len()))
}

/// The content of a regular file of at most `most` bytes.
///
/// # Errors
/// Those of [`open`], and if it is longer.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let (file, len) = open(path)?;
    if len > most {
        bail!("cannot read {}: expected at most {most} bytes, got {len}", path.display());
    }
    let mut bytes = Vec::new();
    match file.take(most).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => bail!("cannot read {}: {error}", path.display()),
    }
}

/// The text of a regular file of at most `most` bytes.
///
/// # Errors
/// Those of [`read`], and if it is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    match String::from_utf8(read(path, most)?) {
        Ok(text) => Ok(text),
        Err(error) => bail!("cannot read {}: {}", path.display(), error.utf8_error()),
    }
}

/// The path of the file `name` of a model folder, free of links.
///
/// # Errors
/// If there is none, or links lead out of the folder.
pub fn inside(folder: &Path, name: impl AsRef<Path>) -> Result<PathBuf> {
    let path = folder.join(name);
    let resolved = |path: &Path| {
        fs::canonicalize(path).map_err(|error| Error::Msg(format!("cannot read {}: {error}", path.display())))
    };
    let (root, target) =
        (resolved(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?, resolved(&path)?);
    if target.starts_with(&root) || blobs(&root).is_some_and(|blobs| target.starts_with(blobs)) {
        return Ok(path);
    }
    bail!(
        "{} links to {}, outside of the folder: copy the folder with its content (cp -rL) if you trust it",
        path.display(),
        target.display()
    )
}

/// Where the files of a revision in Hugging Face's cache lie: `models--NAME/blobs` for `models--NAME/snapshots/REVISION`.
fn blobs(root: &Path) -> Option<PathBuf> {
    let snapshots = root.parent().filter(|parent| parent.file_name() == Some(OsStr::new("snapshots")))?;
    Some(snapshots.parent()?.join("blobs"))
}
