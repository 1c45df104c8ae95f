//! Text to token ids and back.
//!
//! | constructor | a token is | what cannot be encoded |
//! |---|---|---|
//! | [`Tokenizer::characters`] | a character of the text it was made from | any other character |
//! | [`Tokenizer::bytes`] | a byte, whose value is the id | nothing: it takes any bytes, even invalid UTF-8 |
//! | [`Tokenizer::train_bpe`] | a frequent sequence of bytes (as in GPT-2) | invalid UTF-8 |
//! | [`Tokenizer::from_file`] | whatever the `tokenizer.json` says | what it has no token for |
//!
//! Each can be saved as a Hugging Face `tokenizer.json`, and reading that gives the same tokenizer.
//!
//! The first three are exact: `decode(encode(text)) == text` for any text they encode, even one that contains the
//! string `<|endoftext|>`, which is ordinary text to them and never the special token.
//!
//! ```
//! use candle_attention::text::Tokenizer;
//!
//! # fn main() -> candle_core::Result<()> {
//! let tokenizer = Tokenizer::characters(&["banana"], false)?;
//! assert_eq!(tokenizer.encode("nab")?, [2, 0, 1]);
//! assert_eq!(tokenizer.decode(&[1, 0, 2])?, "ban");
//!
//! let error = tokenizer.encode("bandana").unwrap_err().to_string();
//! assert!(error.contains("'d' (U+0064) at line 1, column 4"), "{error}");
//! # Ok(())
//! # }
//! ```

mod build;
mod byte_alphabet;
mod encode;
mod file;
mod foreign;
mod guard;
mod kind;
mod place;
mod stream;
mod train;
mod word_counts;
mod words;

use candle_core::{Error, Result};
use tokenizers::Tokenizer as HfTokenizer;

use super::pieces::{PIECE_BYTES, PIECES_AT_ONCE};
use encode::EncodeError;
use kind::Kind;

pub use guard::hide_caught_panics;
pub use stream::TextStream;

pub(super) use build::CharacterSet;
pub(super) use encode::Encoder;
pub(super) use place::{Fault, Place};
pub(super) use train::check_vocab_size;
pub(super) use word_counts::WordCounts;
pub(super) use words::{check_words, cut_between_words};

/// The token that ends a document.
const END_OF_TEXT: &str = "<|endoftext|>";

/// A tokenizer; see the constructors for the kinds, and the [module](crate::text) for its use.
#[derive(Clone)]
pub struct Tokenizer {
    inner: HfTokenizer,
    kind: Kind,
    /// Its `tokenizer.json`, verbatim.
    json: String,
    /// The `tokenizer_config.json` beside it, if there was one.
    config: Option<serde_json::Map<String, serde_json::Value>>,
    end_of_text_id: Option<u32>,
    vocab_size: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("kind", &self.kind_name())
            .field("vocab_size", &self.vocab_size)
            .field("end_of_text_id", &self.end_of_text_id)
            .finish()
    }
}

impl Tokenizer {
    /// The number of ids, including special tokens: one more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of the token that ends a document: `<|endoftext|>` or, in a third-party `tokenizer.json`, the first of
    /// `<|endoftext|>`, `</s>` and `<|end_of_text|>` that it has as an added token. A tokenizer with none of these
    /// joins several documents with nothing in between; see [`Separator`](crate::text::Separator).
    pub fn end_of_text_id(&self) -> Option<u32> {
        self.end_of_text_id
    }

    /// Its name in messages: `char`, `byte`, `bpe`, or `tokenizer.json` for any other.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Characters { .. } => "char",
            Kind::Bytes { .. } => "byte",
            Kind::ByteLevelBpe { .. } => "bpe",
            Kind::Other { .. } => "tokenizer.json",
        }
    }

    /// Whether the id has a token: the ids of a third-party tokenizer.json may have gaps.
    pub fn has_token(&self, id: u32) -> bool {
        match self.kind.token_bytes() {
            Some(tokens) => (id as usize) < tokens.len(),
            None => self.inner.id_to_token(id).is_some(),
        }
    }

    /// Whether it encodes any bytes, not only UTF-8.
    pub fn takes_any_bytes(&self) -> bool {
        matches!(self.kind, Kind::Bytes { .. })
    }

    /// The ids of a text. No special token is added.
    ///
    /// # Errors
    /// An unknown character, which is named with its place. The tokenizers of this crate detect every one. With any
    /// other `tokenizer.json` it is an error if a token is its unknown token, if no token covers a character other than
    /// white space, or if decoding shows that bytes are missing; changes by its normalizer (case, accents) and dropped
    /// white space are accepted. Such a tokenizer also reads its special tokens from the text, as its makers' models
    /// expect, and takes the text as a whole, which needs some fifty times its size in memory.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if let Kind::Other { unknown_id } = self.kind {
            return foreign::encode(&self.inner, unknown_id, text).map_err(|error| error.within(text, 0));
        }
        let Some(mut encoder) = Encoder::new(self) else { return Ok(vec![]) };
        let mut ids = Vec::new();
        let chunks: Vec<&str> = words::chunks(text, PIECE_BYTES).collect();
        let mut offset = 0;
        for chunks in chunks.chunks(PIECES_AT_ONCE) {
            let encoded = encoder.encode(chunks).map_err(|(number, error)| {
                let before = chunks[..number].iter().map(|chunk| chunk.len()).sum::<usize>();
                error.within(text, offset + before)
            })?;
            encoded.iter().for_each(|piece| ids.extend_from_slice(piece));
            offset += chunks.iter().map(|chunk| chunk.len()).sum::<usize>();
        }
        Ok(ids)
    }

    /// The ids of a text by a third-party tokenizer, and of any other as [`encode`](Self::encode).
    pub(super) fn encode_foreign(&self, text: &str) -> std::result::Result<Vec<u32>, EncodeError> {
        match self.kind {
            Kind::Other { unknown_id } => foreign::encode(&self.inner, unknown_id, text),
            _ => Ok(self.encode(text)?),
        }
    }

    /// The ids of the bytes of a file: any bytes for the byte tokenizer, UTF-8 for the others.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and invalid UTF-8, with its place.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<u32>> {
        if self.takes_any_bytes() {
            return Ok(bytes.iter().copied().map(u32::from).collect());
        }
        self.encode(utf8(bytes)?)
    }

    /// The text of some ids. The end-of-text token gives no text. Bytes that aren't UTF-8, such as part of a character,
    /// become U+FFFD.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match self.kind.token_bytes() {
            Some(_) => Ok(String::from_utf8_lossy(&self.decode_bytes(ids)?).into_owned()),
            None => foreign::decode(&self.inner, ids, self.vocab_size),
        }
    }

    /// Whether it knows the bytes of each id, as the tokenizers of this crate do.
    pub(crate) fn knows_bytes(&self) -> bool {
        self.kind.token_bytes().is_some()
    }

    /// The bytes of some ids: exact for the tokenizers of this crate, otherwise the bytes of [`decode`](Self::decode).
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>> {
        let Some(token_bytes) = self.kind.token_bytes() else {
            return Ok(self.decode(ids)?.into_bytes());
        };
        let mut bytes = Vec::with_capacity(ids.len());
        for &id in ids {
            match token_bytes.get(id as usize) {
                Some(token) => bytes.extend_from_slice(token),
                None => return Err(outside_vocabulary(id, self.vocab_size)),
            }
        }
        Ok(bytes)
    }
}

/// The text of some bytes, or an error that says where they stop being UTF-8.
pub(crate) fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let offset = error.valid_up_to();
        not_utf8(bytes[offset], offset).at(Place::of(bytes, offset))
    })
}

pub(super) fn not_utf8(byte: u8, offset: usize) -> Fault {
    Fault::new(
        offset,
        format!("expected utf-8 text, got the byte 0x{byte:02x}"),
        "; for any bytes use `--tokenizer byte`",
    )
}

fn unknown_character(text: &str, offset: usize) -> Fault {
    let c = text[offset..].chars().next().unwrap_or_default();
    let before = format!("unknown character {c:?} (U+{:04X})", c as u32);
    Fault::new(offset, before, ": the tokenizer has no token for it")
}

fn outside_vocabulary(id: u32, vocab_size: usize) -> Error {
    Error::Msg(format!("unknown token id {id}: the vocabulary has {vocab_size} ids"))
}

#[cfg(test)]
mod tests;
