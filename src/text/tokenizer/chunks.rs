//! Byte-level BPE of a large text, a piece at a time: what the library returns is many times larger than its text.
//!
//! GPT-2's regular expression splits a text into words, and merges stay inside a word. No alternative of it matches
//! white space after anything else, so between a character that isn't white space and one that is, words always end;
//! and it never looks back. Encoding from there on is therefore the same as encoding in one go.

use candle_core::{Error, Result, bail};
use tokenizers::Tokenizer as HfTokenizer;

use super::place::Place;

/// Bytes of text in a chunk, about: each ends at the first place after that where a cut is certain to be harmless.
pub(super) const CHUNK_LEN: usize = 1 << 16;

/// Chunks encoded together, by all threads; their encodings are in memory at once.
const CHUNKS_AT_ONCE: usize = 8;

pub(super) fn encode(inner: &HfTokenizer, text: &str) -> Result<Vec<u32>> {
    check_words(text)?;
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

/// Characters that a word may have: merging takes time quadratic in them, here about a second.
const MOST_CHARACTERS: usize = 1 << 16;

/// Refuses a text in which letters, digits, white space or other characters stand together without end: that is one
/// word to GPT-2's regex.
pub(super) fn check_words(text: &str) -> Result<()> {
    let class = |c: char| (c.is_alphabetic(), c.is_numeric(), c.is_whitespace());
    let (mut run, mut last) = (0, None);
    for (offset, c) in text.char_indices() {
        run = if last == Some(class(c)) { run + 1 } else { 1 };
        last = Some(class(c));
        if run > MOST_CHARACTERS {
            let place = Place::of(text.as_bytes(), offset);
            bail!("expected words of at most {MOST_CHARACTERS} characters for a bpe, got one that goes on at {place}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{MOST_CHARACTERS, check_words, chunks};

    #[test]
    fn a_word_without_end_is_refused_with_its_place() {
        for c in ['x', ' ', '7', '='] {
            let word: String = std::iter::repeat_n(c, MOST_CHARACTERS).collect();
            check_words(&word).unwrap();
            let error = check_words(&format!("a. 1\n{word}{c}")).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{error}");
        }
    }

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
