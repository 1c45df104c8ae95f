//! A named text, in memory or in a file, that is read in ranges.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::encode_error::EncodeError;
use super::utf::{BYTE_ORDER_MARK, encoding};
use crate::host::{Error, Result, bail};

/// The key of conversations in a line of JSON.
const MESSAGES: &[u8] = b"\"messages\"";

/// The maximum length of a line with a conversation.
pub(super) const MAX_LINE_BYTES: u64 = 16 << 20;

/// A text with a name: in memory, or a file that is read chunk by chunk. Its bytes may be anything; all tokenizers but
/// the byte tokenizer expect UTF-8. The byte order mark with which some editors begin UTF-8 is no part of the text of a
/// file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    name: String,
    source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Memory(Arc<[u8]>),
    /// `start` is where the text begins, after a byte order mark.
    File {
        path: PathBuf,
        start: u64,
        len: u64,
    },
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
        // A file that may not be read should fail now, not hours later.
        let file = File::open(path).map_err(Error::io("read", path))?;
        if !metadata.is_file() {
            return Self::read_from(name, file);
        }
        let mut mark = vec![];
        file.take(BYTE_ORDER_MARK.len() as u64).read_to_end(&mut mark).map_err(Error::io("read", path))?;
        let start = if mark == BYTE_ORDER_MARK { BYTE_ORDER_MARK.len() as u64 } else { 0 };
        let len = metadata.len().saturating_sub(start);
        Self { name, source: Source::File { path: path.to_path_buf(), start, len } }.expect_some("an empty file")
    }

    /// What can be read only once, such as standard input, and is kept in memory.
    ///
    /// # Errors
    /// If it can't be read or is empty.
    pub fn read_from(name: impl Into<String>, mut reader: impl Read) -> Result<Self> {
        let (name, mut bytes) = (name.into(), vec![]);
        reader.read_to_end(&mut bytes).map_err(Error::io("read", Path::new(&name)))?;
        if bytes.starts_with(BYTE_ORDER_MARK) {
            bytes.drain(..BYTE_ORDER_MARK.len());
        }
        Self::new(name, bytes).expect_some("nothing")
    }

    fn expect_some(self, got: &str) -> Result<Self> {
        if self.is_empty() {
            bail!("expected text in {}, got {got}", self.name);
        }
        Ok(self)
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

    /// All its bytes.
    ///
    /// # Errors
    /// If it can't be read or has changed.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        self.read(0..self.len())
    }

    /// All of it as text.
    ///
    /// # Errors
    /// Those of [`Document::bytes`], and if it is not UTF-8.
    pub fn text(&self) -> Result<String> {
        self.expect_utf8()?;
        String::from_utf8(self.bytes()?).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            EncodeError::not_utf8(error.as_bytes(), at).in_document(self, 0)
        })
    }

    /// Refuses UTF-16 and UTF-32, which can be told from the first bytes.
    pub(super) fn expect_utf8(&self) -> Result<()> {
        /// Enough to tell a pattern from chance.
        const BYTES: u64 = 1024;
        match encoding(&self.read(0..self.len().min(BYTES))?) {
            Some(other) => bail!(
                "{}: expected utf-8 text, got {other}; this converts it: iconv -f {other} -t UTF-8 FILE > NEW",
                self.name
            ),
            None => Ok(()),
        }
    }

    /// A reader of a range of the bytes.
    pub(super) fn reader(&self, range: Range<u64>) -> Result<Box<dyn Read + Send + '_>> {
        match &self.source {
            Source::Memory(bytes) => Ok(Box::new(&bytes[range.start as usize..range.end as usize])),
            Source::File { path, start, len } => {
                let mut file = File::open(path).map_err(Error::io("read", path))?;
                let now = file.metadata().map_err(Error::io("read", path))?.len();
                let before = start + len;
                if now != before {
                    bail!("{} has changed while it was in use: it had {before} bytes and has {now}", self.name);
                }
                file.seek(SeekFrom::Start(start + range.start)).map_err(Error::io("read", path))?;
                Ok(Box::new(file.take(range.end - range.start)))
            }
        }
    }

    /// The first bytes, at most so many.
    ///
    /// # Errors
    /// If it can't be read or has changed.
    pub fn first_bytes(&self, most: u64) -> Result<Vec<u8>> {
        self.read(0..self.len().min(most))
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
    fn a_byte_order_mark_is_no_part_of_the_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text.txt");
        std::fs::write(&path, "\u{feff}a\r\n\u{feff}bc").unwrap();
        let file = Document::open(&path).unwrap();
        let pipe = Document::read_from("-", std::fs::File::open(&path).unwrap()).unwrap();
        for document in [file, pipe] {
            assert_eq!((document.text().unwrap().as_str(), document.len()), ("a\r\n\u{feff}bc", 8));
            assert_eq!(read(&document).unwrap(), "a\r\n\u{feff}bc");
            assert_eq!(document.read(1..3).unwrap(), b"\r\n");
        }
        std::fs::write(&path, "\u{feff}").unwrap();
        assert!(Document::open(&path).unwrap_err().to_string().contains("got an empty file"));
        // In memory a text is what it is.
        assert_eq!(Document::new("text", "\u{feff}a").text().unwrap(), "\u{feff}a");
    }

    #[test]
    fn other_encodings_of_text_are_named_with_the_command_that_converts_them() {
        let text: String = "Uma linha de texto.\r\n".repeat(3);
        let utf16 = |bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
        let utf32 = |bytes: fn(u32) -> [u8; 4]| text.chars().flat_map(|c| bytes(c as u32)).collect::<Vec<u8>>();
        for (bytes, expected) in [
            (utf16(u16::to_le_bytes), "UTF-16LE"),
            (utf16(u16::to_be_bytes), "UTF-16BE"),
            (utf32(u32::to_le_bytes), "UTF-32LE"),
            (utf32(u32::to_be_bytes), "UTF-32BE"),
            (
                [b"\xff\xfe", "漢字".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>().as_slice()]
                    .concat(),
                "UTF-16",
            ),
            ([&b"\xff\xfe\0\0"[..], &utf32(u32::to_le_bytes)].concat(), "UTF-32"),
            (b"\xfe\xff\x04\x10".to_vec(), "UTF-16"),
        ] {
            let document = Document::new("a.txt", bytes);
            let expected = format!(
                "a.txt: expected utf-8 text, got {expected}; this converts it: iconv -f {expected} -t UTF-8 FILE > NEW"
            );
            assert_eq!(document.text().unwrap_err().to_string(), expected);
            assert_eq!(read(&document).unwrap_err().to_string(), expected);
        }
        // A few zeros are characters like any other.
        for text in ["a\0b", "\0\0", "name\0value\0name\0value\0", "a", ""] {
            assert_eq!(Document::new("a.txt", text).text().unwrap(), text);
        }
    }

    #[test]
    fn a_text_is_read_whole_over_the_ends_of_chunks() {
        for text in ["aé🦀\n".repeat(CHUNK_BYTES / 4), format!("x{}", "漢".repeat(CHUNK_BYTES))] {
            assert_eq!(read(&Document::new("text", text.as_bytes())).unwrap(), text);
        }
    }
}
