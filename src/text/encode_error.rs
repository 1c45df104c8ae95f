//! Why a text cannot be encoded, and where.

use std::fmt::Display;

use super::Document;
use super::chunks::Chunks;
use crate::host::Error;

/// Why a text cannot be encoded, at which byte of it, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EncodeError {
    pub(super) offset: usize,
    pub(super) message: String,
    pub(super) hint: &'static str,
}

impl EncodeError {
    /// For bytes that are not UTF-8 from `offset` on.
    pub(super) fn not_utf8(bytes: &[u8], offset: usize) -> Self {
        let message = format!("expected utf-8 text, got the byte 0x{:02x}", bytes[offset]);
        Self { offset, message, hint: "; attn train --tokenizer byte takes any bytes" }
    }

    /// For a character at `offset` that the tokenizer has no token for.
    pub(super) fn unknown_character(text: &str, offset: usize) -> Self {
        let c = text[offset..].chars().next().unwrap_or_default();
        let message = format!("unknown character {c:?} (U+{:04X})", c as u32);
        Self { offset, message, hint: ": the tokenizer has no token for it" }
    }

    /// This error in the whole text `text`.
    pub(super) fn within(&self, text: &str) -> Error {
        let mut place = Place::START;
        place.advance(&text.as_bytes()[..self.offset]);
        self.at("the text", place)
    }

    /// This error in a text that begins `start` bytes into a document, which is read again to find the line.
    pub(super) fn in_document(&self, document: &Document, start: u64) -> Error {
        let find = || {
            let (mut chunks, mut place) = (Chunks::bytes(document, 0..start + self.offset as u64)?, Place::START);
            while let Some(chunk) = chunks.next()? {
                place.advance(&chunk.bytes);
            }
            Ok(self.at(document.name(), place))
        };
        find().unwrap_or_else(|error| error)
    }

    fn at(&self, text: impl Display, Place { line, column, offset }: Place) -> Error {
        let Self { message, hint, .. } = self;
        Error::Input(format!("{text}: {message} at line {line}, column {column} (byte {offset}){hint}"))
    }
}

/// A line and a column in characters, counted from 1, and an offset in bytes, counted from 0.
#[derive(Clone, Copy)]
struct Place {
    line: usize,
    column: usize,
    offset: usize,
}

impl Place {
    const START: Self = Self { line: 1, column: 1, offset: 0 };

    /// Goes past some bytes. A character counts where its first byte is.
    fn advance(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.offset += 1;
            match byte {
                b'\n' => (self.line, self.column) = (self.line + 1, 1),
                byte => self.column += usize::from(byte & 0xc0 != 0x80),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_offsets_bytes() {
        let text = "a\nção x";
        let error = EncodeError::unknown_character(text, 8);
        let expected =
            "the text: unknown character 'x' (U+0078) at line 2, column 5 (byte 8): the tokenizer has no token";
        assert!(error.within(text).to_string().starts_with(expected), "{}", error.within(text));
    }

    #[test]
    fn a_place_in_a_document_counts_from_its_beginning() {
        let text = "um\ndois três\n\nçãé 🦀 x";
        let document = Document::new("doc", text);
        for (end, _) in text.char_indices() {
            let whole = EncodeError::unknown_character(text, end).within(text).to_string();
            for (start, _) in text.char_indices().filter(|(start, _)| *start <= end) {
                let error = EncodeError::unknown_character(&text[start..], end - start);
                let error = error.in_document(&document, start as u64).to_string();
                assert_eq!(error.replace("doc: ", "the text: "), whole, "{end} from {start}");
            }
        }
    }
}
