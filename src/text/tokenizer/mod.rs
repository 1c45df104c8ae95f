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
//! The first three are exact: `decode(encode(text)) == text` for any text they encode.
//!
//! Where the string of an added token occurs in a text, such as `<|endoftext|>`, it is read as that token, as
//! `transformers` reads it; a special token gives no text when it is decoded. A tokenizer without that token reads the
//! string as ordinary text.
//!
//! A byte-level BPE merges within words, and a word of more than 4096 bytes, such as a line of DNA or of `=`, is cut into
//! sections of at most that: other programs merge across their borders, and give other ids there.
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

mod added_tokens;
mod build;
mod byte_alphabet;
mod class;
mod clean_up;
mod folder;
mod gguf;
mod guard;
mod hugging_face;
mod kind;
mod learn;
mod markers;
mod stream;
mod template;
mod tokenizer_json;
mod word_counts;
mod words;

use std::ops::Range;

use ahash::AHashMap;
use tokenizers::{Model, Tokenizer as HfTokenizer};

use super::encode_error::EncodeError;
use crate::host::{Error, Result, bail};
use kind::Kind;
use template::Template;

pub use crate::host::hide_caught_panics;
pub use gguf::GgufTokens;
pub use stream::TextStream;

pub(super) use build::CharacterSet;
pub(super) use learn::check_vocab_size;
pub(super) use markers::Markers;
pub(super) use word_counts::WordCounts;
pub(super) use words::{MAX_WORD_BYTES, cut_between_words};

/// The token that ends a document.
pub(super) const END_OF_TEXT: &str = "<|endoftext|>";

/// A tokenizer; see the constructors for the kinds, and the [module](crate::text) for its use.
#[derive(Clone)]
pub struct Tokenizer {
    inner: HfTokenizer,
    kind: Kind,
    /// Its `tokenizer.json`: the file verbatim, unless other files completed it.
    json: String,
    /// Whether `json` was written here, with all that other files say.
    json_is_whole: bool,
    /// The `tokenizer_config.json` beside it, if there was one.
    config: Option<serde_json::Map<String, serde_json::Value>>,
    /// The added tokens.
    markers: Markers,
    /// What it puts around a text.
    template: Template,
    /// Whether decoded text loses spaces before punctuation.
    cleans_up: bool,
    end_of_text_id: Option<u32>,
    vocab_size: usize,
    /// The ids that the model has rows for, if not all.
    rows: Option<usize>,
}

/// The ids of a text, and what was met in it.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    pub(super) ids: Vec<u32>,
    /// The number of places for which there is no token, and the offset of the first.
    pub(super) unknown: usize,
    pub(super) first_unknown: Option<usize>,
    /// The number of sections into which words that are too long were cut.
    pub(super) cut_words: usize,
}

impl Encoded {
    /// The ids, if there is a token for everything.
    pub(super) fn known(self, text: &str) -> Result<Vec<u32>, EncodeError> {
        self.first_unknown.map_or(Ok(self.ids), |offset| Err(EncodeError::unknown_character(text, offset)))
    }
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

    /// The same tokenizer for a model with `rows` ids: a text that needs a token beyond them is an error.
    pub(crate) fn with_rows(self, rows: usize) -> Result<Self> {
        let of_model = Self { rows: (rows < self.vocab_size).then_some(rows), ..self };
        let Template { front, rear } = &of_model.template;
        of_model.check_rows("", &[&front[..], rear].concat()).map_err(|error| Error::Input(error.message))?;
        Ok(of_model)
    }

    /// Refuses ids that the model has no rows for.
    fn check_rows(&self, text: &str, ids: &[u32]) -> Result<(), EncodeError> {
        let Some(rows) = self.rows else { return Ok(()) };
        let Some(&id) = ids.iter().find(|&&id| id as usize >= rows) else { return Ok(()) };
        let token = self.inner.id_to_token(id).unwrap_or_default();
        let message = format!("expected tokens of the model, which has {rows}, got {token:?} (id {id})");
        // Most such tokens are added ones, which stand in the text as they are called.
        Err(EncodeError { offset: text.find(&token).unwrap_or_default(), message, hint: "" })
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

    /// Whether it encodes any bytes, not only UTF-8.
    pub fn takes_any_bytes(&self) -> bool {
        matches!(self.kind, Kind::Bytes { .. })
    }

    /// Whether a text may be encoded chunk by chunk.
    pub(super) fn reads_chunks(&self) -> bool {
        !matches!(self.kind, Kind::HuggingFace { .. })
    }

    /// The ids of a text, with what the tokenizer puts in front of it and behind it, such as a beginning-of-text token:
    /// those that `transformers` gives.
    ///
    /// # Errors
    /// An unknown character, which is named with its place: one that becomes the unknown token, or nothing. Changes by
    /// the normalizer of a third-party tokenizer (case, accents, composed characters) and dropped white space are
    /// accepted.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let Template { front, rear } = &self.template;
        Ok([front, &self.encode_plain(text)?[..], rear].concat())
    }

    /// The ids of a text alone, as for a part of one, or one that already has its special tokens, such as a chat
    /// template's.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        self.try_encode(text).and_then(|encoded| encoded.known(text)).map_err(|error| error.within(text))
    }

    /// The ids of a text alone, with what stands for an unknown character (an unknown token, or nothing), and the number
    /// of such places.
    ///
    /// # Errors
    /// A tokenizer that has nothing to stand for an unknown character, as `char`.
    pub fn encode_with_unknown(&self, text: &str) -> Result<(Vec<u32>, usize)> {
        let encoded = self.try_encode(text).map_err(|error| error.within(text))?;
        Ok((encoded.ids, encoded.unknown))
    }

    /// The ids of a text that goes on, or, with a tokenizer of bytes, of any bytes: with what the tokenizer puts in front of a
    /// text, without what it puts behind one. With `accept_unknown`, characters that it has no token for become its unknown
    /// token or nothing.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode); and if it is not UTF-8, or nothing is left of it.
    pub fn encode_prompt(&self, prompt: &[u8], accept_unknown: bool) -> Result<Vec<u32>> {
        let front = self.template().0;
        if self.takes_any_bytes() {
            return Ok([front, &self.encode_bytes(prompt)].concat());
        }
        let Ok(prompt) = std::str::from_utf8(prompt) else { bail!("expected utf-8 text, got other bytes") };
        let ids = match accept_unknown {
            true => self.encode_with_unknown(prompt).map(|(ids, _)| ids),
            false => self.encode_plain(prompt),
        };
        match &ids?[..] {
            [] => bail!("the tokenizer makes nothing of it"),
            ids => Ok([front, ids].concat()),
        }
    }

    /// What it puts around a text.
    pub(crate) fn template(&self) -> (&[u32], &[u32]) {
        (&self.template.front, &self.template.rear)
    }

    /// The strings that are read as tokens of their own.
    pub(super) fn markers(&self) -> &Markers {
        &self.markers
    }

    /// Whether the string is that of a token which is looked for in texts.
    pub(super) fn has_marker(&self, string: &str) -> bool {
        self.inner.get_added_vocabulary().get_vocab().contains_key(string)
    }

    /// The id of a special token, which gives no text when it is decoded.
    pub(crate) fn special_id(&self, string: &str) -> Option<u32> {
        let added = self.inner.get_added_vocabulary();
        added.get_vocab().get(string).copied().filter(|_| added.is_special_token(string))
    }

    /// The ids of a text alone, or an error whose place is an offset in the text.
    pub(super) fn try_encode(&self, text: &str) -> Result<Encoded, EncodeError> {
        if let Kind::HuggingFace { unknown_id } = self.kind {
            let encoded = hugging_face::encode(&self.inner, unknown_id, text)?;
            return self.check_rows(text, &encoded.ids).map(|()| encoded);
        }
        let mut encoded = Encoded::default();
        let mut known = AHashMap::new();
        for (range, marker) in self.markers.pieces(text.as_bytes()) {
            match (marker, &self.kind) {
                (Some(id), _) => encoded.ids.push(id),
                (None, Kind::Characters { sorted, .. }) => characters(sorted, text, range, &mut encoded.ids)?,
                (None, Kind::ByteLevelBpe { .. }) => self.merge_words(text, range, &mut known, &mut encoded)?,
                (None, _) => encoded.ids.extend(text[range].bytes().map(u32::from)),
            }
        }
        self.check_rows(text, &encoded.ids)?;
        Ok(encoded)
    }

    /// The ids of a text alone, as the library has them, and for each the bytes of the text that it stands for.
    pub(super) fn encode_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let encoding = guard::guarded(|| self.inner.encode(text, false)).map_err(Error::Input)?;
        let encoding = encoding.map_err(|error| Error::Input(error.to_string()))?;
        self.check_rows(text, encoding.get_ids()).map_err(|error| Error::Input(error.message))?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok((encoding.get_ids().to_vec(), offsets))
    }

    /// The content of its `tokenizer_config.json`, if there was one.
    pub(super) fn config(&self) -> Option<&serde_json::Map<String, serde_json::Value>> {
        self.config.as_ref()
    }

    /// The ids of any bytes, of a tokenizer that takes them.
    pub(crate) fn encode_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let mut ids = Vec::with_capacity(bytes.len());
        for (range, marker) in self.markers.pieces(bytes) {
            match marker {
                Some(id) => ids.push(id),
                None => ids.extend(bytes[range].iter().copied().map(u32::from)),
            }
        }
        ids
    }

    /// Adds the ids of each word in a range of a text. Those of a word that has come before are copied: the library's own
    /// cache is too small for the words of a long text.
    fn merge_words<'a>(
        &self,
        text: &'a str,
        range: Range<usize>,
        known: &mut AHashMap<&'a str, Range<usize>>,
        Encoded { ids, cut_words, .. }: &mut Encoded,
    ) -> Result<(), EncodeError> {
        let (alphabet, mut spelled) = (byte_alphabet::characters(), String::new());
        for (offset, word) in words::words(&text[range.clone()]) {
            *cut_words += usize::from(words::is_section(word));
            if let Some(earlier) = known.get(word) {
                ids.extend_from_within(earlier.clone());
                continue;
            }
            spelled.clear();
            spelled.extend(word.bytes().map(|byte| alphabet[usize::from(byte)]));
            let tokens = self.inner.get_model().tokenize(&spelled);
            let refused = |error: tokenizers::Error| EncodeError {
                offset: range.start + offset,
                message: error.to_string(),
                hint: "",
            };
            let start = ids.len();
            ids.extend(tokens.map_err(refused)?.into_iter().map(|token| token.id));
            known.insert(word, start..ids.len());
        }
        Ok(())
    }

    /// The text of some ids. Special tokens give no text. Bytes that aren't UTF-8, such as part of a character,
    /// become U+FFFD.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match self.kind.token_bytes() {
            Some(_) => Ok(String::from_utf8_lossy(&self.decode_bytes(ids)?).into_owned()),
            None => {
                let text = hugging_face::decode(&self.inner, ids, self.vocab_size)?;
                Ok(if self.cleans_up { clean_up::cleaned(&text) } else { text })
            }
        }
    }

    /// The text of each id within the whole, for showing tokens one by one: together they are [`decode`](Self::decode) of
    /// all of them, except that a special token gives its name, and an id that completes no character its bytes, as
    /// `<F0>`, or U+FFFD where a third-party tokenizer does not tell them.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn token_texts(&self, ids: &[u32]) -> Result<Vec<String>> {
        let mut stream = self.stream();
        ids.iter().map(|&id| Ok(self.shown(id, stream.push(id)?))).collect()
    }

    /// The text of an id that may follow the ids `before`, of which the last one or two are enough; as
    /// [`token_texts`](Self::token_texts) has it. An id that has no token, as where a model pads its vocabulary, gives U+FFFD.
    ///
    /// # Errors
    /// If one of `before` is outside the vocabulary.
    pub fn token_text_after(&self, before: &[u32], id: u32) -> Result<String> {
        let text = if self.has_token(id) { self.stream_after(before)?.push(id)? } else { String::new() };
        Ok(self.shown(id, text))
    }

    /// Whether the id is that of a special token, which gives no text when it is decoded.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some_and(|name| self.special_id(&name) == Some(id))
    }

    /// A text that can be seen.
    fn shown(&self, id: u32, text: String) -> String {
        const UNKNOWN: &str = "\u{fffd}";
        if !text.is_empty() && text != UNKNOWN {
            return text;
        }
        if let Some(name) = self.inner.id_to_token(id).filter(|_| self.is_special(id)) {
            return name;
        }
        let bytes = self.kind.token_bytes().and_then(|tokens| tokens.get(id as usize));
        let bytes: String = bytes.into_iter().flatten().map(|byte| format!("<{byte:02X}>")).collect();
        if bytes.is_empty() { UNKNOWN.into() } else { bytes }
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

/// Adds the ids of the characters in a range of a text. Since they are sorted, the index of a character is its id.
fn characters(sorted: &[char], text: &str, range: Range<usize>, ids: &mut Vec<u32>) -> Result<(), EncodeError> {
    let id = |c: char| sorted.binary_search(&c).ok().map(|id| id as u32);
    let ascii: [Option<u32>; 128] = std::array::from_fn(|byte| id(char::from(byte as u8)));
    ids.reserve(range.len());
    for (offset, c) in text[range.clone()].char_indices() {
        match ascii.get(c as usize).map_or_else(|| id(c), |&id| id) {
            Some(id) => ids.push(id),
            None => return Err(EncodeError::unknown_character(text, range.start + offset)),
        }
    }
    Ok(())
}

fn outside_vocabulary(id: u32, vocab_size: usize) -> Error {
    Error::Input(format!("unknown token id {id}: the vocabulary has {vocab_size} ids"))
}

#[cfg(test)]
mod tests;
