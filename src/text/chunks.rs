//! Reads a document chunk by chunk, so that it is never in memory as a whole.

use std::io::Read;
use std::ops::Range;
use std::path::Path;

use super::Document;
use super::encode_error::EncodeError;
use super::tokenizer::{MAX_WORD_BYTES, Markers, cut_between_words};
use crate::host::{Error, Result, bail};

/// Approximate bytes in a chunk.
pub(super) const CHUNK_BYTES: usize = 1 << 18;

/// Part of a document.
pub(super) struct Chunk {
    /// Its offset in bytes in the document.
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

impl Chunk {
    /// The text of a chunk of [`Chunks::text`].
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes).unwrap_or_default()
    }
}

/// The chunks of a range of a document, in order.
pub(super) struct Chunks<'a> {
    document: &'a Document,
    reader: Box<dyn Read + Send + 'a>,
    /// Whether it is text.
    is_text: bool,
    /// What must not be cut.
    markers: Option<&'a Markers>,
    /// Offset of `buffer` in the document.
    offset: u64,
    end: u64,
    /// Bytes read but not yet handed out.
    buffer: Vec<u8>,
}

impl<'a> Chunks<'a> {
    /// Chunks of any bytes.
    pub(super) fn bytes(document: &'a Document, range: Range<u64>) -> Result<Self> {
        let reader = document.reader(range.clone())?;
        let (offset, end) = (range.start, range.end);
        Ok(Self { document, reader, is_text: false, markers: None, offset, end, buffer: Vec::new() })
    }

    /// Chunks of text that end before white space, or where there is none for long, between two characters.
    pub(super) fn text(document: &'a Document, range: Range<u64>) -> Result<Self> {
        Ok(Self { is_text: true, ..Self::bytes(document, range)? })
    }

    /// The same chunks, but none begins or ends inside a marker.
    pub(super) fn around(self, markers: &'a Markers) -> Self {
        Self { markers: Some(markers), ..self }
    }

    /// The next chunk.
    ///
    /// # Errors
    /// Invalid UTF-8, with document and place, unless chunks of bytes were asked for; and a file that can't be read.
    pub(super) fn next(&mut self) -> Result<Option<Chunk>> {
        self.fill()?;
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let len = self.chunk_len()?;
        let rest = self.buffer.split_off(len);
        let chunk = Chunk { offset: self.offset, bytes: std::mem::replace(&mut self.buffer, rest) };
        self.offset += len as u64;
        Ok(Some(chunk))
    }

    /// The length of the next chunk.
    fn chunk_len(&self) -> Result<usize> {
        let available = if self.is_text { self.valid()?.len() } else { self.buffer.len() };
        if self.is_at_end() {
            return Ok(available);
        }
        let between_words =
            if self.is_text { cut_between_words(self.valid().unwrap_or_default(), CHUNK_BYTES) } else { None };
        let Some(markers) = self.markers else { return Ok(between_words.unwrap_or(available)) };
        // All of a marker that begins before the cut must be in sight.
        let in_sight = available.saturating_sub(markers.reach());
        let at_marker = || markers.last_start(&self.buffer, in_sight).filter(|_| self.is_text);
        let mut len = between_words.or_else(at_marker).unwrap_or(available).min(in_sight);
        while self.is_text && self.buffer.get(len).is_some_and(|byte| byte & 0xc0 == 0x80) {
            len -= 1;
        }
        Ok(match markers.across(&self.buffer, len) {
            Some(marker) if marker.start > 0 => marker.start,
            Some(marker) => marker.end,
            None => len,
        })
    }

    /// The next chunks, to be processed together by all threads; empty at the end.
    pub(super) fn next_group(&mut self) -> Result<Vec<Chunk>> {
        const CHUNKS: usize = 16;
        let mut group = Vec::new();
        while group.len() < CHUNKS
            && let Some(chunk) = self.next()?
        {
            group.push(chunk);
        }
        Ok(group)
    }

    /// Reads until the buffer has a chunk and the end of its last word, or all bytes that are left.
    fn fill(&mut self) -> Result<()> {
        let missing = (CHUNK_BYTES + MAX_WORD_BYTES).saturating_sub(self.buffer.len()) as u64;
        let read = self.reader.by_ref().take(missing).read_to_end(&mut self.buffer);
        let read = read.map_err(Error::io("read", Path::new(self.document.name())))?;
        if (read as u64) < missing && !self.is_at_end() {
            bail!("{} has changed while it was in use: it has become shorter", self.document.name());
        }
        Ok(())
    }

    fn is_at_end(&self) -> bool {
        self.offset + self.buffer.len() as u64 == self.end
    }

    /// The buffer as text, without an incomplete last character.
    fn valid(&self) -> Result<&str> {
        match std::str::from_utf8(&self.buffer) {
            Ok(text) => Ok(text),
            Err(error) if error.error_len().is_none() && !self.is_at_end() => {
                Ok(std::str::from_utf8(&self.buffer[..error.valid_up_to()]).unwrap_or_default())
            }
            Err(error) => {
                let error = EncodeError::not_utf8(&self.buffer, error.valid_up_to());
                Err(error.in_document(self.document, self.offset))
            }
        }
    }
}
