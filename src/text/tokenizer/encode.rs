//! Text to ids.

use std::ops::Range;

use ahash::AHashMap;
use tokenizers::Model;

use super::super::encode_error::EncodeError;
use super::kind::Kind;
use super::template::Template;
use super::{Tokenizer, byte_alphabet, guard, hugging_face, words};
use crate::host::{Error, Result, bail};

/// The ids of a text, and what was met in it.
#[derive(Debug, Default)]
pub(in crate::text) struct Encoded {
    pub(in crate::text) ids: Vec<u32>,
    /// The number of places for which there is no token, and the offset of the first.
    pub(in crate::text) unknown: usize,
    pub(in crate::text) first_unknown: Option<usize>,
    /// The number of sections into which words that are too long were cut.
    pub(in crate::text) cut_words: usize,
}

impl Encoded {
    /// The ids, if there is a token for everything.
    pub(in crate::text) fn known(self, text: &str) -> Result<Vec<u32>, EncodeError> {
        self.first_unknown.map_or(Ok(self.ids), |offset| Err(EncodeError::unknown_character(text, offset)))
    }
}

impl Tokenizer {
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

    /// The ids of a text alone, or an error whose place is an offset in the text.
    pub(in crate::text) fn try_encode(&self, text: &str) -> Result<Encoded, EncodeError> {
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
    pub(in crate::text) fn encode_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let encoding = guard::guarded(|| self.inner.encode(text, false)).map_err(Error::Input)?;
        let encoding = encoding.map_err(|error| Error::Input(error.to_string()))?;
        self.check_rows(text, encoding.get_ids()).map_err(|error| Error::Input(error.message))?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok((encoding.get_ids().to_vec(), offsets))
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

    /// Refuses ids that the model has no rows for.
    pub(super) fn check_rows(&self, text: &str, ids: &[u32]) -> Result<(), EncodeError> {
        let Some(rows) = self.rows else { return Ok(()) };
        let Some(&id) = ids.iter().find(|&&id| id as usize >= rows) else { return Ok(()) };
        let token = self.inner.id_to_token(id).unwrap_or_default();
        let message = format!("expected tokens of the model, which has {rows}, got {token:?} (id {id})");
        // Most such tokens are added ones, which stand in the text as they are called.
        Err(EncodeError { offset: text.find(&token).unwrap_or_default(), message, hint: "" })
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
