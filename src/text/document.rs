//! A text with a name.

use std::path::Path;

use candle_core::{Error, Result, bail};

use crate::errors::bare;

use super::tokenizer::utf8;

/// A text with a name, as it lies in a file: in any encoding, for only the byte tokenizer takes any bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What messages call it: for a file, its path.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl Document {
    /// The content of a file.
    ///
    /// # Errors
    /// A file that doesn't exist, is a folder, can't be read or is empty.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        if path.is_dir() {
            bail!("expected a text file, got a folder: {name}");
        }
        let bytes = std::fs::read(path).map_err(|error| Error::Msg(format!("cannot read {name}: {error}")))?;
        if bytes.is_empty() {
            bail!("expected text in {name}, got an empty file");
        }
        Ok(Self { name, bytes })
    }

    /// The content as text, or an error that names the document and the place.
    pub(super) fn text(&self) -> Result<&str> {
        utf8(&self.bytes).map_err(|error| self.named(&error))
    }

    pub(super) fn named(&self, error: &Error) -> Error {
        Error::Msg(format!("{}: {}", self.name, bare(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::Document;

    #[test]
    fn says_what_is_wrong_with_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &std::path::Path| Document::read(path).unwrap_err().to_string();
        let missing = dir.path().join("missing.txt");
        assert!(error(&missing).contains("missing.txt: No such file"), "{}", error(&missing));
        assert!(error(dir.path()).contains("got a folder"));
        let empty = dir.path().join("empty.txt");
        std::fs::write(&empty, "").unwrap();
        assert!(error(&empty).contains("empty.txt, got an empty file"));
        std::fs::write(&empty, [0xff, 0x00]).unwrap();
        let document = Document::read(&empty).unwrap();
        assert_eq!(document.bytes, [0xff, 0x00]);
        assert!(document.text().unwrap_err().to_string().contains("empty.txt: expected utf-8"));
    }
}
