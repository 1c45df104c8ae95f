//! Reads a document piece by piece, so that it is never in memory as a whole.

use std::io::Read;
use std::ops::Range;

use candle_core::{Result, bail};

use super::Document;
use super::tokenizer::{check_words, cut_between_words, not_utf8};

/// Approximate bytes in a piece.
pub(super) const PIECE_BYTES: usize = 1 << 18;

/// Pieces that are processed together, by all threads.
pub(super) const PIECES_AT_ONCE: usize = 16;

/// Bytes read past a piece's end at first to find the end of a word.
const WORD_LOOKAHEAD_BYTES: usize = 1 << 12;

/// A range of a document's bytes, read as they are needed.
struct Buffered<'a> {
    document: &'a Document,
    reader: Box<dyn Read + Send + 'a>,
    /// Offset of `buffer` in the document.
    offset: u64,
    end: u64,
    /// Bytes read but not yet handed out.
    buffer: Vec<u8>,
}

impl<'a> Buffered<'a> {
    fn new(document: &'a Document, range: Range<u64>) -> Result<Self> {
        let reader = document.reader(range.clone())?;
        Ok(Self { document, reader, offset: range.start, end: range.end, buffer: Vec::new() })
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

    /// The first `len` bytes of the buffer and their offset in the document.
    fn take(&mut self, len: usize) -> (u64, Vec<u8>) {
        let rest = self.buffer.split_off(len);
        let offset = self.offset;
        self.offset += len as u64;
        (offset, std::mem::replace(&mut self.buffer, rest))
    }
}

/// The pieces of a range of a document as bytes, in order.
pub(super) struct BytePieces<'a>(Buffered<'a>);

impl<'a> BytePieces<'a> {
    pub(super) fn new(document: &'a Document, range: Range<u64>) -> Result<Self> {
        Ok(Self(Buffered::new(document, range)?))
    }

    /// The next piece.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>> {
        self.0.fill(PIECE_BYTES)?;
        let (_, bytes) = self.0.take(self.0.buffer.len());
        Ok(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }
}

/// Part of a document's text.
pub(super) struct TextPiece {
    /// Its offset in bytes in the document.
    pub(super) offset: u64,
    pub(super) text: String,
}

/// Where a text piece may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Between two characters.
    Characters,
    /// At a place that is certainly the end of a GPT-2 word.
    Words,
}

/// The pieces of a range of a document as text, in order.
pub(super) struct TextPieces<'a> {
    buffered: Buffered<'a>,
    cut: Cut,
}

impl<'a> TextPieces<'a> {
    /// Pieces that end between two characters.
    pub(super) fn characters(document: &'a Document, range: Range<u64>) -> Result<Self> {
        Ok(Self { buffered: Buffered::new(document, range)?, cut: Cut::Characters })
    }

    /// Pieces that end where a GPT-2 word does.
    pub(super) fn words(document: &'a Document, range: Range<u64>) -> Result<Self> {
        Ok(Self { buffered: Buffered::new(document, range)?, cut: Cut::Words })
    }

    /// The next piece.
    ///
    /// # Errors
    /// Invalid UTF-8 and, when cutting between words, a word that is too long; both with document and place.
    pub(super) fn next(&mut self) -> Result<Option<TextPiece>> {
        let mut len = match self.cut {
            Cut::Characters => PIECE_BYTES,
            Cut::Words => PIECE_BYTES + WORD_LOOKAHEAD_BYTES,
        };
        loop {
            self.buffered.fill(len)?;
            if self.buffered.buffer.is_empty() {
                return Ok(None);
            }
            let valid = self.valid_len()?;
            let text = std::str::from_utf8(&self.buffered.buffer[..valid]).unwrap_or_default();
            let cut = match self.cut {
                Cut::Words if !self.buffered.is_at_end() => cut_between_words(text, PIECE_BYTES),
                Cut::Words | Cut::Characters => Some(valid),
            };
            if let Some(cut) = cut {
                let (offset, bytes) = self.buffered.take(cut);
                let text = String::from_utf8(bytes).map_err(candle_core::Error::wrap)?;
                return Ok(Some(TextPiece { offset, text }));
            }
            // A long word: more is read, unless it is longer than allowed already.
            check_words(text).map_err(|fault| self.buffered.document.fault(self.buffered.offset, &fault))?;
            len += PIECE_BYTES;
        }
    }

    /// The next pieces, to be processed together; empty at the end.
    pub(super) fn next_group(&mut self) -> Result<Vec<TextPiece>> {
        let mut group = Vec::new();
        while group.len() < PIECES_AT_ONCE
            && let Some(piece) = self.next()?
        {
            group.push(piece);
        }
        Ok(group)
    }

    /// The bytes of the buffer that are UTF-8: all but an incomplete last character.
    fn valid_len(&self) -> Result<usize> {
        let Buffered { document, offset, buffer, .. } = &self.buffered;
        match std::str::from_utf8(buffer) {
            Ok(text) => Ok(text.len()),
            Err(error) if error.error_len().is_none() && !self.buffered.is_at_end() => Ok(error.valid_up_to()),
            Err(error) => {
                let fault = not_utf8(buffer[error.valid_up_to()], error.valid_up_to());
                Err(document.fault(*offset, &fault))
            }
        }
    }
}
