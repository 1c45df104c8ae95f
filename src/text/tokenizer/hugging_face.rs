//! Encoding with a third-party `tokenizer.json` such that no text is lost silently.
//!
//! A word, as the normalizer and the pre-tokenizer leave it, is encoded by the model. The model says what it doesn't know
//! by its unknown token, or by tokens that do not cover the word: a BPE without such a token drops what it doesn't know.
//! What the normalizer maps or composes is no loss.

use std::cell::Cell;

use tokenizers::normalizer::Range;
use tokenizers::tokenizer::Result as LibraryResult;
use tokenizers::{Model, ModelWrapper, NormalizedString, OffsetType, PreTokenizer, Token, Tokenizer as HfTokenizer};

use super::Encoded;
use super::decode::outside_vocabulary;
use super::guard::guarded;
use crate::host::{Error, Result};
use crate::text::encode_error::EncodeError;

/// The ids of a text.
pub(super) fn encode(inner: &HfTokenizer, unknown_id: Option<u32>, text: &str) -> Result<Encoded, EncodeError> {
    encoded(inner, unknown_id, text).map_err(|reason| {
        let message = format!("the tokenizer refuses the text: {reason}");
        EncodeError { offset: first_refused(inner, text), message, hint: "" }
    })
}

fn encoded(inner: &HfTokenizer, unknown_id: Option<u32>, text: &str) -> Result<Encoded, String> {
    guarded(|| encode_words(inner, unknown_id, text))?.map_err(|error| error.to_string())
}

/// What the library does in its own `encode`, with a look at each word.
fn encode_words(inner: &HfTokenizer, unknown_id: Option<u32>, text: &str) -> LibraryResult<Encoded> {
    let mut words = inner.get_added_vocabulary().extract_and_normalize(inner.get_normalizer(), text);
    if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
        pre_tokenizer.pre_tokenize(&mut words)?;
    }
    let (unknown, first) = (Cell::new(0), Cell::new(None));
    words.tokenize(|word| {
        let tokens = inner.get_model().tokenize(word.get())?;
        for range in unknown_in(inner.get_model(), unknown_id, word.get(), &tokens) {
            unknown.set(unknown.get() + 1);
            first.set(first.get().or_else(|| Some(original_offset(word, range))));
        }
        Ok(tokens)
    })?;
    let ids = words.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec();
    Ok(Encoded { ids, unknown: unknown.get(), first_unknown: first.get(), cut_words: 0 })
}

/// The parts of a word that became an unknown token, or nothing.
fn unknown_in(
    model: &ModelWrapper,
    unknown_id: Option<u32>,
    word: &str,
    tokens: &[Token],
) -> Vec<std::ops::Range<usize>> {
    let covered = |tokens: &[Token]| tokens.last().map_or(0, |token| token.offsets.1);
    if covered(tokens) < word.len() {
        let parts = word.char_indices().map(|(at, c)| at..at + c.len_utf8());
        let is_dropped = |part: &std::ops::Range<usize>| {
            model.tokenize(&word[part.clone()]).is_ok_and(|tokens| covered(&tokens) < part.len())
        };
        let dropped: Vec<_> = parts.filter(is_dropped).collect();
        let whole = std::iter::once(0..word.len());
        return if dropped.is_empty() { whole.collect() } else { dropped };
    }
    let is_unknown = |token: &&Token| Some(token.id) == unknown_id;
    tokens.iter().filter(is_unknown).map(|token| token.offsets.0..token.offsets.1).collect()
}

/// Where a part of a word begins in the text.
fn original_offset(word: &NormalizedString, part: std::ops::Range<usize>) -> usize {
    let start = word.offsets_original().0;
    word.convert_offsets(Range::Normalized(part)).map_or(start, |range| start + range.start)
}

/// The start of the first word that is refused alone: the library doesn't say what it refuses.
fn first_refused(inner: &HfTokenizer, text: &str) -> usize {
    let words = text.split_inclusive(char::is_whitespace);
    let accepted: usize = words.clone().take_while(|word| encoded(inner, None, word).is_ok()).map(str::len).sum();
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

pub(super) fn is_bpe(inner: &HfTokenizer) -> bool {
    matches!(inner.get_model(), ModelWrapper::BPE(_))
}
