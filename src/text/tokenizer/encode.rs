//! Text to ids, several pieces at once on all threads.

use ahash::AHashMap;
use candle_core::Error;
use compact_str::CompactString;
use rayon::prelude::*;
use tokenizers::{Model, Tokenizer as HfTokenizer};

use super::kind::Kind;
use super::place::Fault;
use super::words::{check_words, words};
use super::{Tokenizer, byte_alphabet, unknown_character};
use crate::text::Document;

/// The most words whose ids are cached; once there are as many, new ones are encoded every time.
const MOST_CACHED_WORDS: usize = 1 << 17;

/// Longer words, in bytes, are not cached: they hardly ever come again.
const LONGEST_CACHED_WORD: usize = 64;

type WordIds = AHashMap<CompactString, Box<[u32]>>;

/// Why a text cannot be encoded: a fault at a place in it, or something else.
#[derive(Debug)]
pub(in crate::text) enum EncodeError {
    Fault(Fault),
    Other(Error),
}

impl From<Fault> for EncodeError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Error> for EncodeError {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl EncodeError {
    /// The error, with its place in `text`, of a text that starts `offset` bytes into it.
    pub(super) fn within(self, text: &str, offset: usize) -> Error {
        match self {
            Self::Fault(fault) => fault.shifted(offset).within(text),
            Self::Other(error) => error,
        }
    }

    /// The error, with its place in `document`, of a text that starts `offset` bytes into it.
    pub(in crate::text) fn in_document(self, document: &Document, offset: u64) -> Error {
        match self {
            Self::Fault(fault) => document.fault(offset, &fault),
            Self::Other(error) => document.named(&error),
        }
    }
}

/// Encodes the pieces of a long text with a tokenizer of this crate, caching words.
pub(in crate::text) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    alphabet: [char; 256],
    known: WordIds,
}

impl<'a> Encoder<'a> {
    /// `None` for a third-party tokenizer, which may need the text as a whole.
    pub(in crate::text) fn new(tokenizer: &'a Tokenizer) -> Option<Self> {
        let is_ours = !matches!(tokenizer.kind, Kind::Other { .. });
        is_ours.then(|| Self { tokenizer, alphabet: byte_alphabet::characters(), known: WordIds::new() })
    }

    /// Whether pieces must start and end at word boundaries.
    pub(in crate::text) fn merges_words(&self) -> bool {
        matches!(self.tokenizer.kind, Kind::ByteLevelBpe { .. })
    }

    /// The ids of each piece, or the number of the first piece that cannot be encoded and why.
    pub(in crate::text) fn encode(&mut self, texts: &[&str]) -> Result<Vec<Vec<u32>>, (usize, EncodeError)> {
        let encoded: Vec<_> = match &self.tokenizer.kind {
            Kind::Characters { sorted, .. } => {
                texts.par_iter().map(|text| Ok((characters(sorted, text)?, WordIds::new()))).collect()
            }
            Kind::ByteLevelBpe { .. } => texts.par_iter().map(|text| self.merge_words(text)).collect(),
            Kind::Bytes { .. } | Kind::Other { .. } => {
                texts.iter().map(|text| Ok((text.bytes().map(u32::from).collect(), WordIds::new()))).collect()
            }
        };
        let mut all = Vec::with_capacity(encoded.len());
        for (number, result) in encoded.into_iter().enumerate() {
            let (ids, learned) = result.map_err(|error| (number, error))?;
            if self.known.len() < MOST_CACHED_WORDS {
                self.known.extend(learned);
            }
            all.push(ids);
        }
        Ok(all)
    }

    /// The ids of a text, encoded word by word, and those of the words that were not cached yet.
    fn merge_words(&self, text: &str) -> Result<(Vec<u32>, WordIds), EncodeError> {
        check_words(text)?;
        let (mut ids, mut learned) = (Vec::with_capacity(text.len() / 3), WordIds::new());
        for word in words(text) {
            if let Some(known) = self.known.get(word).or_else(|| learned.get(word)) {
                ids.extend_from_slice(known);
                continue;
            }
            let merged = merge(&self.tokenizer.inner, &self.alphabet, word)?;
            ids.extend_from_slice(&merged);
            if word.len() <= LONGEST_CACHED_WORD && self.known.len() < MOST_CACHED_WORDS {
                learned.insert(word.into(), merged);
            }
        }
        Ok((ids, learned))
    }
}

fn merge(inner: &HfTokenizer, alphabet: &[char; 256], word: &str) -> Result<Box<[u32]>, EncodeError> {
    let word: String = word.bytes().map(|byte| alphabet[usize::from(byte)]).collect();
    let tokens = inner.get_model().tokenize(&word).map_err(|error| EncodeError::Other(Error::wrap(error)))?;
    Ok(tokens.into_iter().map(|token| token.id).collect())
}

/// Since the characters are sorted, the index of a character is its id.
fn characters(sorted: &[char], text: &str) -> Result<Vec<u32>, EncodeError> {
    let id = |c: char| sorted.binary_search(&c).ok().map(|id| id as u32);
    let ascii: [Option<u32>; 128] = std::array::from_fn(|byte| id(char::from(byte as u8)));
    let mut ids = Vec::with_capacity(text.len());
    for (offset, c) in text.char_indices() {
        match ascii.get(c as usize).map_or_else(|| id(c), |&id| id) {
            Some(id) => ids.push(id),
            None => return Err(unknown_character(text, offset).into()),
        }
    }
    Ok(ids)
}
