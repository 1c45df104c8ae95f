//! Reading files that may come from anyone.
//!
//! Only regular files are read, since a pipe or a device might never end, and none that is longer than its kind may be.
//! Links in a model folder may lead only to files in that folder or, in Hugging Face's cache, from
//! `snapshots/REVISION/` to files in `blobs/` beside `snapshots/`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Error, Result, bail};

/// The maximum size of a configuration: a thousand times what any has.
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The maximum size of a `tokenizer.json`: several times what any has.
pub(crate) const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// Opens a regular file, and returns its length too.
///
/// # Errors
/// If it cannot be read, or is a folder, a pipe or a device.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    // Checked before opening, as opening a pipe waits for a writer.
    let kind = fs::metadata(path).map_err(Error::io("read", path))?;
    if kind.is_dir() {
        bail!("cannot read {}: expected a file, got a folder", path.display());
    }
    if !kind.is_file() {
        bail!("cannot read {}: expected a regular file, got a pipe or a device", path.display());
    }
    Ok((File::open(path).map_err(Error::io("read", path))?, kind.len()))
}

/// The content of a regular file of at most `max` bytes.
///
/// # Errors
/// Those of [`open`], if it is longer, and if it is what some tools leave in a file of JSON or TOML: a pointer of Git LFS,
/// or a byte order mark.
pub(crate) fn read(path: &Path, max: u64) -> Result<Vec<u8>> {
    let (file, len) = open(path)?;
    if len > max {
        bail!("cannot read {}: expected at most {max} bytes, got {len}", path.display());
    }
    // The length is known; a growing buffer would take up to twice as much.
    let mut bytes = Vec::new();
    if let Err(error) = bytes.try_reserve_exact(len as usize) {
        bail!("cannot read {}: {error}", path.display());
    }
    file.take(max).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    check_no_pointer(path, &bytes)?;
    if bytes.starts_with("\u{feff}".as_bytes()) {
        bail!(
            r"{}: expected no byte order mark (U+FEFF) at its start; remove it: sed -i '1s/^\xEF\xBB\xBF//' FILE",
            path.display()
        );
    }
    Ok(bytes)
}

/// Refuses a pointer of Git LFS, given the start of a file: it lies where the file should be in a clone without its files.
pub(crate) fn check_no_pointer(path: &Path, start: &[u8]) -> Result<()> {
    if start.starts_with(b"version https://git-lfs.github.com/spec/") {
        bail!("{}: expected the file itself, got a pointer of Git LFS; run git lfs pull in its folder", path.display());
    }
    Ok(())
}

/// The text of a regular file of at most `max` bytes.
///
/// # Errors
/// Those of [`read`], and if it is not UTF-8.
pub(crate) fn read_text(path: &Path, max: u64) -> Result<String> {
    match String::from_utf8(read(path, max)?) {
        Ok(text) => Ok(text),
        Err(error) => bail!("cannot read {}: {}", path.display(), error.utf8_error()),
    }
}

/// The path of the file `name` of a model folder, after checking where links lead. The path returned may still contain
/// links.
///
/// A copy of Hugging Face's cache on a file system without links has files with the links' targets in them; they lead on.
///
/// # Errors
/// If there is no such file, or links lead out of the folder.
pub(crate) fn inside(folder: &Path, name: impl AsRef<Path>) -> Result<PathBuf> {
    let mut path = folder.join(name);
    let resolved = |path: &Path| fs::canonicalize(path).map_err(Error::io("read", path));
    let root = resolved(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?;
    let blobs = blobs(&root);
    if let Some(blob) = blobs.as_ref().and_then(|blobs| written_link(&path, blobs)) {
        path = blob;
    }
    let target = resolved(&path)?;
    if target.starts_with(&root) || blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        return Ok(path);
    }
    bail!(
        "{} links to {}, outside of the folder: if you trust it, copy the folder with the links' targets (cp -rL)",
        path.display(),
        target.display()
    )
}

/// The folder with the files of a revision in Hugging Face's cache: `models--NAME/blobs` for
/// `models--NAME/snapshots/REVISION`.
fn blobs(root: &Path) -> Option<PathBuf> {
    let snapshots = root.parent().filter(|parent| parent.file_name() == Some(OsStr::new("snapshots")))?;
    Some(snapshots.parent()?.join("blobs"))
}

/// The file in `blobs` that a file names, in place of a link to it.
fn written_link(path: &Path, blobs: &Path) -> Option<PathBuf> {
    const MAX_BYTES: u64 = 256;
    fs::metadata(path).ok().filter(|metadata| metadata.is_file() && metadata.len() < MAX_BYTES)?;
    let text = fs::read_to_string(path).ok()?;
    let name =
        text.trim_end().strip_prefix("../../blobs/").filter(|name| !name.contains(['/', '\\']) && *name != "..")?;
    Some(blobs.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_takes_no_more_memory_than_the_length() {
        let space = tempfile::tempdir().unwrap();
        let path = space.path().join("file");
        for len in [0, 1, 100_001] {
            std::fs::write(&path, vec![7; len]).unwrap();
            let bytes = read(&path, 100_001).unwrap();
            assert!(bytes.len() == len && bytes.capacity() == len, "{} for {len}", bytes.capacity());
        }
        assert!(read(&path, 100_000).unwrap_err().to_string().contains("at most 100000 bytes, got 100001"));
    }
}
