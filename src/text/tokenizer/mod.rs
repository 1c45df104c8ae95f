//! Text to token ids and back.
//!
//! | constructor | a token is | what cannot be encoded |
//! |---|---|---|
//! | [`Tokenizer::characters`] | a character of the text it was made from | any other character |
//! | [`Tokenizer::bytes`] | a byte, whose value is the id | nothing: it takes any bytes, even invalid UTF-8 |
//! | [`prepare`](super::prepare) with `bpe:N` | a frequent sequence of bytes (as in GPT-2) | invalid UTF-8 |
//! | [`Tokenizer::open`] | whatever the `tokenizer.json` says | what it has no token for |
//!
//! Each can be saved as a Hugging Face `tokenizer.json`, and reading that gives the same tokenizer.
//!
//! The first three are exact: `decode(encode(text)) == text` for any text they encode, even one that contains the
//! string `<|endoftext|>`, which is ordinary text to them and never the special token.
//!
//! ```
//! use candle_attention::text::Tokenizer;
//!
//! # fn main() -> candle_attention::Result<()> {
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
mod guard;
mod hugging_face;
mod kind;
mod learn;
mod stream;
mod tokenizer_json;
mod word_counts;
mod words;

use std::ops::Range;

use ahash::AHashMap;
use tokenizers::{Model, Tokenizer as HfTokenizer};

use super::encode_error::EncodeError;
use crate::host::{Error, Result};
use kind::Kind;

pub use guard::hide_caught_panics;
pub use stream::TextStream;

pub(super) use build::CharacterSet;
pub(super) use learn::check_vocab_size;
pub(super) use tokenizer_json::token_text;
pub(super) use word_counts::WordCounts;
pub(super) use words::{MAX_WORD_BYTES, cut_between_words};

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

    /// The id of the token that ends a document: `<|endoftext|>` or, in a third-party folder, the `eos_token` of its
    /// `tokenizer_config.json`, else the first of `<|endoftext|>`, `</s>` and `<|end_of_text|>` that is an added token.
    pub fn end_of_text_id(&self) -> Option<u32> {
        self.end_of_text_id
    }

    /// The same tokenizer with another end of text, such as the one that a model's configuration names.
    pub fn with_end_of_text(self, id: Option<u32>) -> Self {
        Self { end_of_text_id: id, ..self }
    }

    /// Its name in messages: `char`, `byte`, `bpe`, or `tokenizer.json` for any other.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Characters { .. } => "char",
            Kind::Bytes { .. } => "byte",
            Kind::ByteLevelBpe { .. } => "bpe",
            Kind::HuggingFace { .. } => "tokenizer.json",
        }
    }

    /// Whether the id has a token: the ids of a third-party tokenizer.json may have gaps.
    pub fn has_token(&self, id: u32) -> bool {
        match self.kind.token_bytes() {
            Some(tokens) => (id as usize) < tokens.len(),
            None => self.inner.id_to_token(id).is_some(),
        }
    }

    /// The id of a token, special or not.
    pub(crate) fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The content of its `tokenizer_config.json`, if there was one.
    pub(super) fn config(&self) -> Option<&serde_json::Map<String, serde_json::Value>> {
        self.config.as_ref()
    }

    /// Whether it encodes any bytes, not only UTF-8.
    pub fn takes_any_bytes(&self) -> bool {
        matches!(self.kind, Kind::Bytes { .. })
    }

    /// Whether a text may be encoded chunk by chunk.
    pub(super) fn reads_chunks(&self) -> bool {
        !matches!(self.kind, Kind::HuggingFace { .. })
    }

    /// The ids of a text. No special token is added.
    ///
    /// # Errors
    /// An unknown character, which is named with its place. The tokenizers of this crate detect every one. With any
    /// other `tokenizer.json` it is an error if a token is its unknown token, if no token covers a character other than
    /// white space, or if decoding shows that bytes are missing; changes by its normalizer (case, accents) and dropped
    /// white space are accepted. Such a tokenizer also reads its special tokens from the text, as its makers' models
    /// expect.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.try_encode(text).map_err(|error| error.within(text))
    }

    /// [`Tokenizer::encode`], with an error whose place is an offset in the text.
    pub(super) fn try_encode(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        match &self.kind {
            Kind::Characters { sorted, .. } => characters(sorted, text),
            Kind::Bytes { .. } => Ok(text.bytes().map(u32::from).collect()),
            Kind::ByteLevelBpe { .. } => self.merge_words(text),
            Kind::HuggingFace { unknown_id } => {
                Ok(hugging_face::encode(&self.inner, *unknown_id, text)?.get_ids().to_vec())
            }
        }
    }

    /// The ids of a text, and for each the bytes of the text that it stands for.
    pub(super) fn encode_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let unknown_id = if let Kind::HuggingFace { unknown_id } = self.kind { unknown_id } else { None };
        let encoding = hugging_face::encode(&self.inner, unknown_id, text).map_err(|error| error.within(text))?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok((encoding.get_ids().to_vec(), offsets))
    }

    /// The ids of each word of a text. Those of a word that has come before are copied: the library's own cache is too
    /// small for the words of a long text.
    fn merge_words(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let (alphabet, mut ids, mut spelled) = (byte_alphabet::characters(), vec![], String::new());
        let mut known: AHashMap<&str, Range<usize>> = AHashMap::new();
        for (offset, word) in words::words(text) {
            if let Some(earlier) = known.get(word) {
                ids.extend_from_within(earlier.clone());
                continue;
            }
            spelled.clear();
            spelled.extend(word.bytes().map(|byte| alphabet[usize::from(byte)]));
            let tokens = self.inner.get_model().tokenize(&spelled);
            let refused = |error: tokenizers::Error| EncodeError { offset, message: error.to_string(), hint: "" };
            let start = ids.len();
            ids.extend(tokens.map_err(refused)?.into_iter().map(|token| token.id));
            known.insert(word, start..ids.len());
        }
        Ok(ids)
    }

    /// The text of some ids. The end-of-text token gives no text. Bytes that aren't UTF-8, such as part of a character,
    /// become U+FFFD.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match self.kind.token_bytes() {
            Some(_) => Ok(String::from_utf8_lossy(&self.decode_bytes(ids)?).into_owned()),
            None => hugging_face::decode(&self.inner, ids, self.vocab_size),
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
            let token = token_bytes.get(id as usize).ok_or_else(|| outside_vocabulary(id, self.vocab_size))?;
            bytes.extend_from_slice(token);
        }
        Ok(bytes)
    }
}

/// Since the characters are sorted, the index of a character is its id.
fn characters(sorted: &[char], text: &str) -> Result<Vec<u32>, EncodeError> {
    let id = |c: char| sorted.binary_search(&c).ok().map(|id| id as u32);
    let ascii: [Option<u32>; 128] = std::array::from_fn(|byte| id(char::from(byte as u8)));
    let mut ids = Vec::with_capacity(text.len());
    for (offset, c) in text.char_indices() {
        match ascii.get(c as usize).map_or_else(|| id(c), |&id| id) {
            Some(id) => ids.push(id),
            None => return Err(EncodeError::unknown_character(text, offset)),
        }
    }
    Ok(ids)
}

fn outside_vocabulary(id: u32, vocab_size: usize) -> Error {
    Error::Input(format!("unknown token id {id}: the vocabulary has {vocab_size} ids"))
}

#[cfg(test)]
mod tests;
