//! A named text, in memory or in a file, that is read in ranges.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::host::{Error, Result, bail};

/// The key of conversations in a line of JSON.
const MESSAGES: &[u8] = b"\"messages\"";

/// The maximum length of a line with a conversation.
pub(super) const MAX_LINE_BYTES: u64 = 16 << 20;

/// A text with a name: in memory, or a file that is read chunk by chunk. Its bytes may be anything; all tokenizers but
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
    /// A file that doesn't exist, is a folder, a device or empty, or can't be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let (path, name) = (path.as_ref(), path.as_ref().display().to_string());
        let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
        if metadata.is_dir() {
            bail!("expected a text file, got a folder: {name}");
        }
        if is_device(&metadata) {
            bail!("expected a text file, got a device: {name}");
        }
        let source = if metadata.is_file() {
            // A file that may not be read should fail now, not hours later.
            File::open(path).map_err(Error::io("read", path))?;
            Source::File { path: path.to_path_buf(), len: metadata.len() }
        } else {
            Source::Memory(std::fs::read(path).map_err(Error::io("read", path))?.into())
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

    /// Whether its lines are conversations: its name ends in `.jsonl`, and its first line has `"messages"`.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn has_conversations(&self) -> Result<bool> {
        if !self.name.ends_with(".jsonl") {
            return Ok(false);
        }
        let mut first = Vec::new();
        let read = BufReader::new(self.reader(0..self.len().min(MAX_LINE_BYTES))?).read_until(b'\n', &mut first);
        read.map_err(Error::io("read", Path::new(&self.name)))?;
        Ok(first.windows(MESSAGES.len()).any(|part| part == MESSAGES))
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
                let mut file = File::open(path).map_err(Error::io("read", path))?;
                let now = file.metadata().map_err(Error::io("read", path))?.len();
                if now != *len {
                    bail!("{} has changed while it was in use: it had {len} bytes and has {now}", self.name);
                }
                file.seek(SeekFrom::Start(range.start)).map_err(Error::io("read", path))?;
                Ok(Box::new(file.take(range.end - range.start)))
            }
        }
    }

    /// Reads a range of the bytes into memory.
    pub(super) fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.reader(range)?.read_to_end(&mut bytes);
        read.map_err(Error::io("read", Path::new(&self.name)))?;
        Ok(bytes)
    }
}

/// Devices such as `/dev/zero` may never end.
fn is_device(metadata: &std::fs::Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = metadata.file_type();
        kind.is_char_device() || kind.is_block_device()
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::chunks::{CHUNK_BYTES, Chunks};

    fn read(document: &Document) -> Result<String> {
        let (mut chunks, mut text) = (Chunks::text(document, 0..document.len())?, String::new());
        while let Some(chunk) = chunks.next()? {
            text.push_str(chunk.text());
        }
        Ok(text)
    }

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
        let error = read(&document).unwrap_err().to_string();
        assert!(error.contains("text.txt: expected utf-8") && error.contains("0xff at line 2, column 1"), "{error}");
        std::fs::write(&path, "a longer text").unwrap();
        let error = read(&document).unwrap_err().to_string();
        assert!(error.contains("has changed while it was in use: it had 4 bytes and has 13"), "{error}");
    }

    #[test]
    fn a_text_is_read_whole_over_the_ends_of_chunks() {
        for text in ["aé🦀\n".repeat(CHUNK_BYTES / 4), format!("x{}", "漢".repeat(CHUNK_BYTES))] {
            assert_eq!(read(&Document::new("text", text.as_bytes())).unwrap(), text);
        }
    }
}
