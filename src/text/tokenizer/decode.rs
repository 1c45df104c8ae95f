//! Ids to text.

use super::{Tokenizer, clean_up, hugging_face};
use crate::host::{Error, Result};

impl Tokenizer {
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
}

pub(super) fn outside_vocabulary(id: u32, vocab_size: usize) -> Error {
    Error::Input(format!("unknown token id {id}: the vocabulary has {vocab_size} ids"))
}
