//! Where in a text something stands, as people and editors count.

use std::fmt;

/// Line and column (in characters) from 1, and the offset in bytes from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    line: usize,
    column: usize,
    offset: usize,
}

impl Place {
    /// The place `offset` bytes into a text whose bytes before that are UTF-8.
    pub(super) fn of(bytes: &[u8], offset: usize) -> Self {
        let before = &bytes[..offset];
        let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        Self {
            line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
            column: 1 + String::from_utf8_lossy(&before[line_start..]).chars().count(),
            offset,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {} (byte {})", self.line, self.column, self.offset)
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
}
