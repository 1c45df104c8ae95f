//! Encoding with a third-party `tokenizer.json` such that no text is lost silently.
//!
//! The library drops what a BPE without an unknown token doesn't know. This can be detected: no token's offsets cover
//! it or, if single bytes are dropped, decoding gives U+FFFD where the text has none.

use std::collections::HashSet;
use std::ops::Range;

use candle_core::{Error, Result};
use tokenizers::{Encoding, Tokenizer as HfTokenizer};

use super::encode::EncodeError;
use super::guard::guarded;
use super::place::Fault;
use super::{outside_vocabulary, unknown_character};

pub(super) fn encode(
    inner: &HfTokenizer,
    unknown_id: Option<u32>,
    text: &str,
) -> std::result::Result<Vec<u32>, EncodeError> {
    guarded("this text", || encode_or_panic(inner, unknown_id, text))
}

fn encode_or_panic(
    inner: &HfTokenizer,
    unknown_id: Option<u32>,
    text: &str,
) -> std::result::Result<Vec<u32>, EncodeError> {
    let encoding = inner.encode(text, false).map_err(|error| refused(inner, text, &error))?;
    let lost = unknown_token(&encoding, unknown_id)
        .or_else(|| dropped(inner, &encoding, text))
        .or_else(|| missing_bytes(inner, &encoding, text));
    match lost {
        Some(offset) => Err(unknown_character(text, offset).into()),
        None => Ok(encoding.get_ids().to_vec()),
    }
}

pub(super) fn decode(inner: &HfTokenizer, ids: &[u32], vocab_size: usize) -> Result<String> {
    match ids.iter().find(|&&id| inner.id_to_token(id).is_none()) {
        Some(&id) => Err(outside_vocabulary(id, vocab_size)),
        None => guarded("to decode", || inner.decode(ids, true).map_err(Error::wrap)),
    }
}

/// The start of the first unknown token.
fn unknown_token(encoding: &Encoding, unknown_id: Option<u32>) -> Option<usize> {
    let token = encoding.get_ids().iter().position(|&id| Some(id) == unknown_id)?;
    Some(encoding.get_offsets()[token].0)
}

/// The first character that is covered by no token and isn't white space.
fn dropped(inner: &HfTokenizer, encoding: &Encoding, text: &str) -> Option<usize> {
    let (mut covered, mut word_start, mut word) = (0, 0, None);
    let words = encoding.get_word_ids().iter().copied();
    for ((start, end), this) in
        encoding.get_offsets().iter().copied().zip(words).chain([((text.len(), text.len()), None)])
    {
        if let Some(gap) = first_solid(text, covered..start) {
            // Inside a word the library's offsets ignore what it dropped, so the gap appears at the end of the word.
            return lost_alone(inner, text, word_start..gap + 1).or(Some(gap));
        }
        if this != word {
            (word_start, word) = (covered.max(start), this);
        }
        covered = covered.max(end);
    }
    None
}

/// The first character with missing bytes, if decoding shows that there are any.
fn missing_bytes(inner: &HfTokenizer, encoding: &Encoding, text: &str) -> Option<usize> {
    let replaced = |text: &str| text.matches(char::REPLACEMENT_CHARACTER).count();
    let decoded = inner.decode(encoding.get_ids(), false).ok()?;
    (replaced(&decoded) > replaced(text)).then(|| lost_alone(inner, text, 0..text.len()))?
}

fn first_solid(text: &str, range: Range<usize>) -> Option<usize> {
    let solid = text.get(range.clone())?.find(|c: char| !c.is_whitespace())?;
    Some(range.start + solid)
}

/// The first character starting in a range that is lost even when encoded alone.
fn lost_alone(inner: &HfTokenizer, text: &str, range: Range<usize>) -> Option<usize> {
    let mut kept = HashSet::new();
    let from = range.start;
    text.get(from..)?
        .char_indices()
        .take_while(|(offset, _)| from + offset < range.end)
        .find(|&(_, c)| !c.is_whitespace() && kept.insert(c) && is_lost(inner, c))
        .map(|(offset, _)| from + offset)
}

fn is_lost(inner: &HfTokenizer, c: char) -> bool {
    let Ok(encoding) = inner.encode(c.to_string(), false) else {
        return true;
    };
    let decoded = inner.decode(encoding.get_ids(), false).unwrap_or_default();
    encoding.is_empty() || (c != char::REPLACEMENT_CHARACTER && decoded.contains(char::REPLACEMENT_CHARACTER))
}

/// The library says what it can't encode but not where: at the first word that fails alone.
fn refused(inner: &HfTokenizer, text: &str, error: &tokenizers::Error) -> EncodeError {
    let mut offset = 0;
    for word in text.split_inclusive(char::is_whitespace) {
        if inner.encode(word, false).is_err() {
            let before = format!("the tokenizer has no token for {:?}", word.trim_end());
            return Fault::new(offset, before, format!(": {error}")).into();
        }
        offset += word.len();
    }
    Error::Msg(format!("the tokenizer refuses the text: {error}")).into()
}
