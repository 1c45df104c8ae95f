//! A text with a name.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Error, Result, bail};

use super::pieces::{BytePieces, TextPieces};
use super::tokenizer::{Fault, Place};
use crate::errors::bare;

/// A text with a name: in memory, or a file that is read piece by piece. Its bytes may be anything; all tokenizers but
/// the byte tokenizer expect UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    name: String,
    source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Memory(Arc<[u8]>),
    File { path: PathBuf, len: u64 },
}

impl Document {
    /// A text in memory.
    pub fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), source: Source::Memory(bytes.into().into()) }
    }

    /// A file. It is read later, never into memory as a whole, and must not change while it is in use. Anything but a
    /// regular file, such as a pipe, can be read only once and is kept in memory.
    ///
    /// # Errors
    /// A file that doesn't exist, is a folder, can't be read or is empty.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let cannot = |error: std::io::Error| Error::Msg(format!("cannot read {name}: {error}"));
        let metadata = std::fs::metadata(path).map_err(cannot)?;
        if metadata.is_dir() {
            bail!("expected a text file, got a folder: {name}");
        }
        refuse_device(&name, &metadata)?;
        let source = match metadata.is_file() {
            true => {
                // A file that may not be read should fail now, not hours later.
                File::open(path).map_err(cannot)?;
                Source::File { path: path.to_path_buf(), len: metadata.len() }
            }
            false => Source::Memory(std::fs::read(path).map_err(cannot)?.into()),
        };
        let document = Self { name, source };
        if document.is_empty() {
            bail!("expected text in {}, got an empty file", document.name);
        }
        Ok(document)
    }

    /// Its name in messages: for a file, the path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path, if it is read from a file.
    pub fn path(&self) -> Option<&Path> {
        match &self.source {
            Source::Memory(_) => None,
            Source::File { path, .. } => Some(path),
        }
    }

    /// The length in bytes.
    pub fn len(&self) -> u64 {
        match &self.source {
            Source::Memory(bytes) => bytes.len() as u64,
            Source::File { len, .. } => *len,
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A reader of a range of the bytes.
    pub(super) fn reader(&self, range: Range<u64>) -> Result<Box<dyn Read + Send + '_>> {
        match &self.source {
            Source::Memory(bytes) => Ok(Box::new(&bytes[range.start as usize..range.end as usize])),
            Source::File { path, len } => {
                let mut file = File::open(path).map_err(|error| self.unreadable(&error))?;
                let now = file.metadata().map_err(|error| self.unreadable(&error))?.len();
                if now != *len {
                    bail!("{} has changed while it was in use: it had {len} bytes and has {now}", self.name);
                }
                file.seek(SeekFrom::Start(range.start)).map_err(|error| self.unreadable(&error))?;
                Ok(Box::new(file.take(range.end - range.start)))
            }
        }
    }

    /// Reads a range of the bytes into memory.
    pub(super) fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.reader(range)?.read_to_end(&mut bytes).map_err(|error| self.unreadable(&error))?;
        Ok(bytes)
    }

    /// Counts the characters of the document; `on_read` is given the number of bytes of each piece read.
    pub(super) fn count_characters(&self, on_read: &mut dyn FnMut(u64)) -> Result<u64> {
        let mut pieces = TextPieces::characters(self, 0..self.len())?;
        let mut count = 0;
        while let Some(piece) = pieces.next()? {
            count += piece.text.chars().count() as u64;
            on_read(piece.text.len() as u64);
        }
        Ok(count)
    }

    /// The byte offset of character `number`, counted from 0, or of the end.
    pub(super) fn character_offset(&self, number: u64) -> Result<u64> {
        let (mut pieces, mut left) = (TextPieces::characters(self, 0..self.len())?, number);
        while let Some(piece) = pieces.next()? {
            let count = piece.text.chars().count() as u64;
            if left < count {
                let offset = piece.text.char_indices().nth(left as usize).map_or(piece.text.len(), |(at, _)| at);
                return Ok(piece.offset + offset as u64);
            }
            left -= count;
        }
        Ok(self.len())
    }

    /// The error for a fault in a text that starts `start` bytes into the document, with the document's name and the
    /// place. To find the line, the document is read again up to the fault.
    pub(super) fn fault(&self, start: u64, fault: &Fault) -> Error {
        match self.place(start + fault.offset as u64) {
            Ok(place) => self.named(&fault.at(place)),
            Err(error) => error,
        }
    }

    fn place(&self, offset: u64) -> Result<Place> {
        let (mut pieces, mut place) = (BytePieces::new(self, 0..offset)?, Place::START);
        while let Some(bytes) = pieces.next()? {
            place = place.after(&bytes);
        }
        Ok(place)
    }

    pub(super) fn unreadable(&self, error: &std::io::Error) -> Error {
        Error::Msg(format!("cannot read {}: {error}", self.name))
    }

    pub(super) fn named(&self, error: &Error) -> Error {
        Error::Msg(format!("{}: {}", self.name, bare(error)))
    }
}

/// Refuses devices such as `/dev/zero`, which may never end.
fn refuse_device(name: &str, metadata: &std::fs::Metadata) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = metadata.file_type();
        if kind.is_char_device() || kind.is_block_device() {
            bail!("expected a text file, got a device: {name}");
        }
    }
    let _ = (name, metadata);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_wrong_with_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| Document::open(path).unwrap_err().to_string();
        let missing = dir.path().join("missing.txt");
        assert!(error(&missing).contains("missing.txt: No such file"), "{}", error(&missing));
        assert!(error(dir.path()).contains("got a folder"));
        let path = dir.path().join("text.txt");
        std::fs::write(&path, "").unwrap();
        assert!(error(&path).contains("text.txt, got an empty file"));
        std::fs::write(&path, [b'a', b'\n', 0xff, 0x00]).unwrap();
        let document = Document::open(&path).unwrap();
        assert_eq!(document.read(1..4).unwrap(), [b'\n', 0xff, 0x00]);
        let error = document.count_characters(&mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("text.txt: expected utf-8") && error.contains("0xff at line 2, column 1"), "{error}");
        std::fs::write(&path, "a longer text").unwrap();
        let error = document.count_characters(&mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("has changed while it was in use: it had 4 bytes and has 13"), "{error}");
    }

    #[test]
    fn counts_characters_over_the_ends_of_pieces() {
        let text = "aé🦀\n".repeat(crate::text::pieces::PIECE_BYTES / 4);
        let document = Document::new("text", text.as_bytes());
        assert_eq!(document.count_characters(&mut |_| {}).unwrap(), text.chars().count() as u64);
        for (number, (offset, _)) in text.char_indices().enumerate().step_by(9973) {
            assert_eq!(document.character_offset(number as u64).unwrap(), offset as u64);
        }
        assert_eq!(document.character_offset(u64::MAX).unwrap(), text.len() as u64);
    }
}
