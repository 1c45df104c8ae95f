//! A document piece by piece, so that none is ever in memory whole.

use std::io::Read;
use std::ops::Range;

use candle_core::{Result, bail};

use super::Document;
use super::tokenizer::{check_words, cut_between_words, not_utf8};

/// Bytes of a piece, about.
pub(super) const PIECE_LEN: usize = 1 << 18;

/// Pieces that are worked on together, by all threads.
pub(super) const PIECES_AT_ONCE: usize = 16;

/// Part of a document's text.
pub(super) struct Piece {
    /// Bytes of the document before it.
    pub(super) offset: u64,
    pub(super) text: String,
}

/// Where a piece may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Anywhere,
    /// Between two characters.
    Characters,
    /// Where a word of GPT-2's ends for certain.
    Words,
}

/// The pieces of a part of a document, in order.
pub(super) struct Pieces<'a> {
    document: &'a Document,
    reader: Box<dyn Read + Send + 'a>,
    cut: Cut,
    /// Bytes of the document before `buffer`.
    offset: u64,
    end: u64,
    /// What is read and not given yet.
    buffer: Vec<u8>,
}

impl<'a> Pieces<'a> {
    pub(super) fn bytes(document: &'a Document, range: Range<u64>) -> Result<Self> {
        Self::new(document, range, Cut::Anywhere)
    }

    pub(super) fn characters(document: &'a Document, range: Range<u64>) -> Result<Self> {
        Self::new(document, range, Cut::Characters)
    }

    pub(super) fn words(document: &'a Document, range: Range<u64>) -> Result<Self> {
        Self::new(document, range, Cut::Words)
    }

    fn new(document: &'a Document, range: Range<u64>, cut: Cut) -> Result<Self> {
        let reader = document.reader(range.clone())?;
        Ok(Self { document, reader, cut, offset: range.start, end: range.end, buffer: Vec::new() })
    }

    /// The next piece as bytes, with the bytes of the document before it.
    pub(super) fn next_bytes(&mut self) -> Result<Option<(u64, Vec<u8>)>> {
        self.fill(PIECE_LEN)?;
        Ok(Some(self.take(self.buffer.len())).filter(|(_, bytes)| !bytes.is_empty()))
    }

    /// The next piece as text.
    ///
    /// # Errors
    /// What isn't UTF-8, and for words those that are too long, with document and place.
    pub(super) fn next(&mut self) -> Result<Option<Piece>> {
        let mut len = PIECE_LEN;
        loop {
            self.fill(len)?;
            if self.buffer.is_empty() {
                return Ok(None);
            }
            let valid = self.valid_len()?;
            let text = std::str::from_utf8(&self.buffer[..valid]).unwrap_or_default();
            let cut = match self.cut {
                _ if self.is_at_end() => Some(valid),
                Cut::Words => cut_between_words(text, PIECE_LEN),
                Cut::Anywhere | Cut::Characters => Some(valid),
            };
            if let Some(cut) = cut {
                let (offset, bytes) = self.take(cut);
                let text = String::from_utf8(bytes).map_err(candle_core::Error::wrap)?;
                return Ok(Some(Piece { offset, text }));
            }
            // One word so far: as long as it may be, the rest of it is read too.
            check_words(text).map_err(|fault| self.document.fault(self.offset, &fault))?;
            len += PIECE_LEN;
        }
    }

    /// The next pieces as text, some to be worked on together; none at the end.
    pub(super) fn next_group(&mut self) -> Result<Vec<Piece>> {
        let mut group = Vec::new();
        while group.len() < PIECES_AT_ONCE
            && let Some(piece) = self.next()?
        {
            group.push(piece);
        }
        Ok(group)
    }

    /// Reads until the buffer has `len` bytes, or all that are left.
    fn fill(&mut self, len: usize) -> Result<()> {
        let missing = len.saturating_sub(self.buffer.len()) as u64;
        let read = self.reader.by_ref().take(missing).read_to_end(&mut self.buffer);
        let read = read.map_err(|error| self.document.unreadable(&error))?;
        if (read as u64) < missing && !self.is_at_end() {
            bail!("{} has changed while it was in use: it has become shorter", self.document.name());
        }
        Ok(())
    }

    fn is_at_end(&self) -> bool {
        self.offset + self.buffer.len() as u64 == self.end
    }

    /// The bytes in the buffer that are UTF-8: all but the beginning of a last character.
    fn valid_len(&self) -> Result<usize> {
        match std::str::from_utf8(&self.buffer) {
            Ok(text) => Ok(text.len()),
            Err(error) if error.error_len().is_none() && !self.is_at_end() => Ok(error.valid_up_to()),
            Err(error) => {
                let fault = not_utf8(self.buffer[error.valid_up_to()], error.valid_up_to());
                Err(self.document.fault(self.offset, &fault))
            }
        }
    }

    fn take(&mut self, len: usize) -> (u64, Vec<u8>) {
        let rest = self.buffer.split_off(len);
        let offset = self.offset;
        self.offset += len as u64;
        (offset, std::mem::replace(&mut self.buffer, rest))
    }
}
