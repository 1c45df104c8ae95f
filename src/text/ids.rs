//! A sequence of token ids, in memory or in a file.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Error, Result, bail};

use crate::files;

/// A sequence of token ids, in memory or in a file: the same ids either way.
///
/// A file is read as needed, through the system's page cache, and not mapped into memory: if someone truncates a mapped
/// file, the process is killed; its pages count as the process's own memory; and mapping needs `unsafe`. Each window of
/// a batch takes one call to read it.
#[derive(Clone, Debug)]
pub struct Ids(Store);

#[derive(Clone, Debug)]
enum Store {
    Memory(Arc<[u32]>),
    File { file: Arc<IdsFile>, width: Width, start: u64, len: usize },
}

/// An open file of ids. A temporary one is removed once nothing uses it.
#[derive(Debug)]
pub(super) struct IdsFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
    is_temporary: AtomicBool,
}

impl IdsFile {
    pub(super) fn kept(file: File, path: &Path) -> Self {
        Self { file, path: path.to_path_buf(), is_temporary: false.into() }
    }

    pub(super) fn temporary(file: File, path: &Path) -> Self {
        temporary_files().insert(path.to_path_buf());
        Self { file, path: path.to_path_buf(), is_temporary: true.into() }
    }

    /// Makes a temporary file permanent.
    pub(super) fn keep(&self) {
        self.is_temporary.store(false, Ordering::Relaxed);
        temporary_files().remove(&self.path);
    }

    /// Removes the name of a temporary file; it can still be read through open handles.
    pub(super) fn forget(&self) {
        if self.is_temporary.swap(false, Ordering::Relaxed) && temporary_files().remove(&self.path) {
            // Best effort: this also runs in `drop`.
            let _ = files::remove_file(&self.path);
        }
    }
}

/// The temporary files of this process.
fn temporary_files() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    static FILES: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the temporary files of ids made by this process: to be called before it exits without dropping values. They
/// can still be read through open handles.
pub fn remove_temporary_files() {
    for path in std::mem::take(&mut *temporary_files()) {
        // Best effort: the process is about to exit.
        let _ = std::fs::remove_file(path);
    }
}

impl Drop for IdsFile {
    fn drop(&mut self) {
        self.forget();
    }
}

/// Bytes of an id in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Two,
    Four,
}

impl Width {
    /// The smallest width that holds every id of a vocabulary.
    pub(super) fn of(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::Two } else { Self::Four }
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Appends ids in little-endian order.
    pub(super) fn extend(self, bytes: &mut Vec<u8>, ids: &[u32]) {
        match self {
            Self::Two => ids.iter().for_each(|&id| bytes.extend_from_slice(&(id as u16).to_le_bytes())),
            Self::Four => ids.iter().for_each(|&id| bytes.extend_from_slice(&id.to_le_bytes())),
        }
    }

    fn ids(self, bytes: &[u8]) -> Vec<u32> {
        match self {
            Self::Two => bytes.as_chunks().0.iter().map(|&id| u16::from_le_bytes(id).into()).collect(),
            Self::Four => bytes.as_chunks().0.iter().map(|&id| u32::from_le_bytes(id)).collect(),
        }
    }
}

impl From<Vec<u32>> for Ids {
    fn from(ids: Vec<u32>) -> Self {
        Self(Store::Memory(ids.into()))
    }
}

impl Ids {
    /// `len` ids of a file, starting at byte `start`.
    pub(super) fn in_file(file: Arc<IdsFile>, width: Width, start: u64, len: usize) -> Self {
        Self(Store::File { file, width, start, len })
    }

    /// The number of ids.
    pub fn len(&self) -> usize {
        match &self.0 {
            Store::Memory(ids) => ids.len(),
            Store::File { len, .. } => *len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that the ids take: 0 for those in a file.
    pub fn bytes_in_memory(&self) -> usize {
        match &self.0 {
            Store::Memory(ids) => size_of_val(&ids[..]),
            Store::File { .. } => 0,
        }
    }

    /// The file that holds the ids, if they are in a file.
    pub(super) fn file(&self) -> Option<&Arc<IdsFile>> {
        match &self.0 {
            Store::Memory(_) => None,
            Store::File { file, .. } => Some(file),
        }
    }

    /// The ids in a range of positions.
    ///
    /// # Errors
    /// Positions past the end, and a file that can't be read or has been truncated.
    pub fn read(&self, range: Range<usize>) -> Result<Cow<'_, [u32]>> {
        if range.start > range.end || range.end > self.len() {
            bail!("ids: expected positions up to {}, got {range:?}", self.len());
        }
        match &self.0 {
            Store::Memory(ids) => Ok(Cow::Borrowed(&ids[range])),
            Store::File { file, width, start, .. } => {
                let mut bytes = vec![0; range.len() * width.bytes()];
                let offset = start + (range.start * width.bytes()) as u64;
                read_exact_at(&file.file, &mut bytes, offset)
                    .map_err(|error| Error::Msg(format!("cannot read {}: {error}", file.path.display())))?;
                Ok(Cow::Owned(width.ids(&bytes)))
            }
        }
    }

    /// All ids, in blocks of at most 2^18.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Result<Cow<'_, [u32]>>> {
        const BLOCK: usize = 1 << 18;
        let len = self.len();
        (0..len).step_by(BLOCK).map(move |start| self.read(start..len.min(start + BLOCK)))
    }

    /// Whether `id` is one of them.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn contains(&self, id: u32) -> Result<bool> {
        for block in self.blocks() {
            if block?.contains(&id) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// All ids, read into memory.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn to_vec(&self) -> Result<Vec<u32>> {
        Ok(self.read(0..self.len())?.into_owned())
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !bytes.is_empty() {
        match file.seek_read(bytes, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                bytes = &mut bytes[read..];
                offset += read as u64;
            }
        }
    }
    Ok(())
}

#[cfg(not(any(unix, windows)))]
fn read_exact_at(_: &File, _: &mut [u8], _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
