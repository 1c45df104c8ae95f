//! A sequence of token ids, in memory or in a file.
//!
//! In conversations each id is a word that also says what the id is to training: see [`NOT_LEARNED`] and [`ENDS`]. One
//! sequence holds all, so that whatever is true of ids (their file, fingerprint and order) is true of their marks.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::host::{Error, Result, bail};

/// The bit of a word in conversations whose id is not learned: no part of what the assistant says.
pub(super) const NOT_LEARNED: u32 = 1 << 31;

/// The bit of a word in conversations whose id is the last of a document.
pub(super) const ENDS: u32 = 1 << 30;

/// A vocabulary is smaller by far.
const ID: u32 = ENDS - 1;

/// The id of a word.
pub(super) fn id(word: u32) -> u32 {
    word & ID
}

/// A sequence of token ids, in memory or in a file: the same ids either way.
///
/// A file is read as needed, through the system's page cache, and not mapped into memory: if someone truncates a mapped
/// file, the process is killed; its pages count as the process's own memory; and mapping needs `unsafe`. Each window of
/// a batch takes one call to read it.
#[derive(Clone)]
pub struct Ids {
    store: Store,
    /// In conversations, the number of ids that are learned; the ids are then marked words.
    learned: Option<usize>,
}

impl std::fmt::Debug for Ids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ids").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[derive(Clone)]
enum Store {
    Memory(Arc<[u32]>),
    File { file: Arc<IdsFile>, width: Width, start: u64, len: usize },
}

/// An open file of ids.
pub(super) struct IdsFile {
    pub(super) file: Mutex<File>,
    /// Its path in messages.
    pub(super) path: PathBuf,
}

impl IdsFile {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(bytes)
    }
}

/// Bytes of an id in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Two = 2,
    Four = 4,
}

impl Width {
    /// The smallest width that holds every id of a vocabulary.
    pub(super) fn of(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::Two } else { Self::Four }
    }

    pub(super) fn bytes(self) -> usize {
        self as usize
    }

    /// Appends ids in little-endian order.
    pub(super) fn extend(self, bytes: &mut Vec<u8>, ids: &[u32]) {
        match self {
            Self::Two => ids.iter().for_each(|&id| bytes.extend_from_slice(&(id as u16).to_le_bytes())),
            Self::Four => ids.iter().for_each(|&id| bytes.extend_from_slice(&id.to_le_bytes())),
        }
    }

    pub(super) fn ids(self, bytes: &[u8]) -> Vec<u32> {
        match self {
            Self::Two => bytes.as_chunks().0.iter().map(|&id| u16::from_le_bytes(id).into()).collect(),
            Self::Four => bytes.as_chunks().0.iter().map(|&id| u32::from_le_bytes(id)).collect(),
        }
    }
}

impl From<Vec<u32>> for Ids {
    fn from(ids: Vec<u32>) -> Self {
        Self { store: Store::Memory(ids.into()), learned: None }
    }
}

impl Ids {
    /// `len` ids of a file, starting at byte `start`.
    pub(super) fn in_file(file: Arc<IdsFile>, width: Width, start: u64, len: usize) -> Self {
        Self { store: Store::File { file, width, start, len }, learned: None }
    }

    /// These words, marked as in conversations, of which so many are learned.
    pub(super) fn marked(self, learned: usize) -> Self {
        Self { learned: Some(learned), ..self }
    }

    /// Whether the ids are marked words.
    pub(super) fn is_marked(&self) -> bool {
        self.learned.is_some()
    }

    /// The number of ids that are learned: all, or in conversations those of the assistant's turns.
    pub fn learned(&self) -> usize {
        self.learned.unwrap_or_else(|| self.len())
    }

    /// The number of ids.
    pub fn len(&self) -> usize {
        match &self.store {
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
        match &self.store {
            Store::Memory(ids) => size_of_val(&ids[..]),
            Store::File { .. } => 0,
        }
    }

    /// The ids in a range of positions.
    ///
    /// # Errors
    /// Positions past the end, and a file that can't be read or has been truncated.
    pub fn read(&self, range: Range<usize>) -> Result<Cow<'_, [u32]>> {
        let words = self.words(range)?;
        Ok(if self.is_marked() { words.iter().copied().map(id).collect() } else { words })
    }

    /// The words in a range of positions: the ids, with their marks if they are marked.
    pub(super) fn words(&self, range: Range<usize>) -> Result<Cow<'_, [u32]>> {
        if range.start > range.end || range.end > self.len() {
            bail!("ids: expected positions up to {}, got {range:?}", self.len());
        }
        match &self.store {
            Store::Memory(ids) => Ok(Cow::Borrowed(&ids[range])),
            Store::File { file, width, start, .. } => {
                let mut bytes = vec![0; range.len() * width.bytes()];
                let offset = start + (range.start * width.bytes()) as u64;
                file.read_exact_at(&mut bytes, offset).map_err(Error::io("read", &file.path))?;
                Ok(Cow::Owned(width.ids(&bytes)))
            }
        }
    }

    /// All words, in blocks of at most 2^18.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Result<Cow<'_, [u32]>>> {
        const BLOCK: usize = 1 << 18;
        let len = self.len();
        (0..len).step_by(BLOCK).map(move |start| self.words(start..len.min(start + BLOCK)))
    }

    /// The same, in memory.
    pub(super) fn into_memory(self) -> Result<Self> {
        let words = self.words(0..self.len())?.into_owned();
        Ok(Self { learned: self.learned, ..words.into() })
    }

    /// All ids, read into memory.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn to_vec(&self) -> Result<Vec<u32>> {
        Ok(self.read(0..self.len())?.into_owned())
    }
}
