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
mod decode;
mod encode;
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

use tokenizers::Tokenizer as HfTokenizer;

use crate::host::{Error, Result};
use kind::Kind;
use template::Template;

pub use crate::host::hide_caught_panics;
pub use gguf::GgufTokens;
pub use stream::TextStream;

pub(super) use build::CharacterSet;
pub(super) use encode::Encoded;
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

    /// The content of its `tokenizer_config.json`, if there was one.
    pub(super) fn config(&self) -> Option<&serde_json::Map<String, serde_json::Value>> {
        self.config.as_ref()
    }

    /// Whether the id is that of a special token, which gives no text when it is decoded.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some_and(|name| self.special_id(&name) == Some(id))
    }

    /// Whether it knows the bytes of each id, as the tokenizers of this crate do.
    pub(crate) fn knows_bytes(&self) -> bool {
        self.kind.token_bytes().is_some()
    }
}

#[cfg(test)]
mod tests;
