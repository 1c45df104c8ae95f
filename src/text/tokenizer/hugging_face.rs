//! Encoding with a third-party `tokenizer.json` such that no text is lost silently.
//!
//! The library drops what a BPE without an unknown token doesn't know. This can be detected: no token's offsets cover
//! it or, if single bytes are dropped, decoding gives U+FFFD where the text has none.

use tokenizers::{Encoding, Tokenizer as HfTokenizer};

use super::guard::guarded;
use super::outside_vocabulary;
use crate::host::{Error, Result};
use crate::text::encode_error::EncodeError;

/// The ids of a text, with their places in it.
pub(super) fn encode(inner: &HfTokenizer, unknown_id: Option<u32>, text: &str) -> Result<Encoding, EncodeError> {
    let refused = |reason: String| {
        let message = format!("the tokenizer refuses the text: {reason}");
        EncodeError { offset: first_refused(inner, text), message, hint: "" }
    };
    let encoding = encoded(inner, text).map_err(refused)?;
    let unknown = encoding.get_ids().iter().position(|&id| Some(id) == unknown_id);
    if let Some(offset) = unknown.map(|token| encoding.get_offsets()[token].0).or_else(|| uncovered(&encoding, text)) {
        return Err(EncodeError::unknown_character(text, offset));
    }
    let replaced = |text: &str| text.matches(char::REPLACEMENT_CHARACTER).count();
    let decoded = guarded(|| inner.decode(encoding.get_ids(), false)).map_err(refused)?;
    match decoded.is_ok_and(|decoded| replaced(&decoded) > replaced(text)) {
        true => Err(refused("it has no token for a byte of it".into())),
        false => Ok(encoding),
    }
}

fn encoded(inner: &HfTokenizer, text: &str) -> Result<Encoding, String> {
    guarded(|| inner.encode(text, false))?.map_err(|error| error.to_string())
}

/// The start of the first word that is refused alone: the library doesn't say what it refuses.
fn first_refused(inner: &HfTokenizer, text: &str) -> usize {
    let words = text.split_inclusive(char::is_whitespace);
    let accepted: usize = words.clone().take_while(|word| encoded(inner, word).is_ok()).map(str::len).sum();
    if accepted < text.len() { accepted } else { 0 }
}

/// The text of some ids.
pub(super) fn decode(inner: &HfTokenizer, ids: &[u32], vocab_size: usize) -> Result<String> {
    if let Some(&id) = ids.iter().find(|&&id| inner.id_to_token(id).is_none()) {
        return Err(outside_vocabulary(id, vocab_size));
    }
    let decoded = guarded(|| inner.decode(ids, true)).map_err(Error::Input)?;
    decoded.map_err(|error| Error::Input(error.to_string()))
}

/// The first character that is covered by no token and isn't white space. Inside a word the library's offsets ignore
/// what it dropped, so the place may be later in the word.
fn uncovered(encoding: &Encoding, text: &str) -> Option<usize> {
    let mut covered = 0;
    for &(start, end) in encoding.get_offsets().iter().chain(&[(text.len(), text.len())]) {
        let gap = text.get(covered..start.max(covered))?;
        if let Some(solid) = gap.find(|c: char| !c.is_whitespace()) {
            return Some(covered + solid);
        }
        covered = covered.max(end);
    }
    None
}
