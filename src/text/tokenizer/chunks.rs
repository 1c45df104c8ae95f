//! Byte-level BPE of a large text, a piece at a time: what the library returns is many times larger than its text.
//!
//! GPT-2's regular expression splits a text into words, and merges stay inside a word. No alternative of it matches
//! white space after anything else, so between a character that isn't white space and one that is, words always end;
//! and it never looks back. Encoding from there on is therefore the same as encoding in one go.

use candle_core::{Error, Result};
use tokenizers::Tokenizer as HfTokenizer;

/// Bytes of text in a chunk, about: each ends at the first place after that where a cut is certain to be harmless.
pub(super) const CHUNK_LEN: usize = 1 << 16;

/// Chunks encoded together, by all threads; their encodings are in memory at once.
const CHUNKS_AT_ONCE: usize = 8;

pub(super) fn encode(inner: &HfTokenizer, text: &str) -> Result<Vec<u32>> {
    let chunks: Vec<&str> = chunks(text, CHUNK_LEN).collect();
    let mut ids = Vec::with_capacity(text.len() / 3);
    for together in chunks.chunks(CHUNKS_AT_ONCE) {
        let encodings = inner.encode_batch_fast(together.to_vec(), false).map_err(Error::wrap)?;
        encodings.iter().for_each(|encoding| ids.extend_from_slice(encoding.get_ids()));
    }
    Ok(ids)
}

/// The text in pieces of at least `len` bytes (the last may be shorter), cut before white space only.
pub(super) fn chunks(mut text: &str, len: usize) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (chunk, rest) = text.split_at(cut(text, len));
        text = rest;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// The first place from `len` bytes on where white space follows something else, or the end.
fn cut(text: &str, len: usize) -> usize {
    let mut after_space = true;
    for (offset, c) in text[text.floor_char_boundary(len)..].char_indices() {
        if c.is_whitespace() && !after_space {
            return text.floor_char_boundary(len) + offset;
        }
        after_space = c.is_whitespace();
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::chunks;

    #[test]
    fn cuts_only_between_a_word_and_white_space() {
        let text = "one  two\n\nthrée four's   five";
        for len in 0..text.len() + 2 {
            let pieces: Vec<&str> = chunks(text, len).collect();
            assert_eq!(pieces.concat(), text, "len {len}");
            for pair in pieces.windows(2) {
                assert!(!pair[0].ends_with(char::is_whitespace), "len {len}: {pieces:?}");
                assert!(pair[1].starts_with(char::is_whitespace), "len {len}: {pieces:?}");
            }
        }
        assert_eq!(chunks(text, 3).collect::<Vec<_>>(), ["one  two", "\n\nthrée", " four's", "   five"]);
        assert_eq!(chunks("", 3).count(), 0);
    }
}
