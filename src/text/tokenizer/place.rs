//! Positions in a text, as people and editors count them.

use std::fmt;

use candle_core::Error;

/// Line and column (in characters), counted from 1, and the offset in bytes, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::text) struct Place {
    line: usize,
    column: usize,
    offset: usize,
}

impl Place {
    /// The start of a text.
    pub(in crate::text) const START: Self = Self { line: 1, column: 1, offset: 0 };

    /// The place `offset` bytes into a text whose bytes before that are UTF-8.
    pub(in crate::text) fn of(bytes: &[u8], offset: usize) -> Self {
        Self::START.after(&bytes[..offset])
    }

    /// The place after some more bytes. A character counts where its first byte is.
    pub(in crate::text) fn after(self, bytes: &[u8]) -> Self {
        let begins = |bytes: &[u8]| bytes.iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
        let offset = self.offset + bytes.len();
        match bytes.iter().rposition(|&byte| byte == b'\n') {
            None => Self { column: self.column + begins(bytes), offset, ..self },
            Some(newline) => {
                let lines = bytes.iter().filter(|&&byte| byte == b'\n').count();
                Self { line: self.line + lines, column: 1 + begins(&bytes[newline + 1..]), offset }
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {} (byte {})", self.line, self.column, self.offset)
    }
}

/// What is wrong with a text, and at which byte. Line and column are added once the start of the text is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::text) struct Fault {
    pub(in crate::text) offset: usize,
    before: String,
    after: String,
}

impl Fault {
    /// An error whose message is `before`, the place and `after`.
    pub(super) fn new(offset: usize, before: impl Into<String>, after: impl Into<String>) -> Self {
        Self { offset, before: before.into(), after: after.into() }
    }

    /// The same fault in a longer text, of which this one starts at byte `offset`.
    pub(super) fn shifted(self, offset: usize) -> Self {
        Self { offset: self.offset + offset, ..self }
    }

    pub(in crate::text) fn at(&self, place: Place) -> Error {
        Error::Msg(format!("{} at {place}{}", self.before, self.after))
    }

    pub(super) fn within(&self, text: &str) -> Error {
        self.at(Place::of(text.as_bytes(), self.offset))
    }
}

#[cfg(test)]
mod tests {
    use super::Place;

    #[test]
    fn columns_count_characters_and_offsets_bytes() {
        let text = "a\nção x";
        let offset = text.find('x').unwrap();
        assert_eq!(Place::of(text.as_bytes(), offset), Place { line: 2, column: 5, offset: 8 });
        assert_eq!(Place::of(b"", 0).to_string(), "line 1, column 1 (byte 0)");
    }

    #[test]
    fn a_place_is_the_same_however_the_text_before_it_comes() {
        let text = "um\ndois três\n\nçãé 🦀 x";
        for end in 0..=text.len() {
            let whole = Place::of(text.as_bytes(), end);
            for cut in 0..=end {
                let (head, tail) = text.as_bytes()[..end].split_at(cut);
                assert_eq!(Place::START.after(head).after(tail), whole, "{end}, cut at {cut}");
            }
        }
    }
}
