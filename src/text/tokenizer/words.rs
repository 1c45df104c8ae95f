//! The words within which GPT-2's byte-level BPE merges:
//!
//! ```text
//! 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//! ```
//!
//! The look-ahead is done by hand, which leaves a regular expression that is matched many times as fast. A word of more
//! than [`MAX_WORD_BYTES`] is cut into sections, and merges do not cross their borders.

use std::sync::LazyLock;

use regex_automata::meta::Regex;
use regex_automata::{Anchored, Input};

/// The longest word that is merged as a whole, in bytes: the time of merging grows faster than the length.
pub(in crate::text) const MAX_WORD_BYTES: usize = 1 << 12;

/// GPT-2's expression without the look-ahead.
static WORD: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+").ok());

/// The words of a text, in order, each with its offset; concatenated, they are the text.
pub(super) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut cache = WORD.as_ref().map(Regex::create_cache);
    let mut offset = 0;
    std::iter::from_fn(move || {
        // The start is known, so only the end is looked for.
        let rest = Input::new(text).range(offset..).anchored(Anchored::Yes);
        let end = WORD.as_ref()?.search_half_with(cache.as_mut()?, &rest)?.offset();
        let found = &text[offset..end];
        let word = &found[..word_len(found, end == text.len())];
        offset += word.len();
        Some((offset - word.len(), word))
    })
}

/// Whether a word is as long as the sections of a word that is cut.
pub(super) fn is_section(word: &str) -> bool {
    word.len() + char::MAX.len_utf8() > MAX_WORD_BYTES
}

/// The length of the word that a match begins with. White space before something else leaves its last character to that,
/// unless it has only one.
fn word_len(found: &str, is_last: bool) -> usize {
    let len = found.floor_char_boundary(found.len().min(MAX_WORD_BYTES));
    match found.chars().next_back() {
        Some(last) if last.is_whitespace() && !is_last && len == found.len() && len > last.len_utf8() => {
            len - last.len_utf8()
        }
        _ => len,
    }
}

/// The first place from `len` bytes on where a word ends whatever precedes and follows, so that both sides can be
/// encoded separately: after anything but white space, and before white space.
pub(in crate::text) fn cut_between_words(text: &str, len: usize) -> Option<usize> {
    let from = text.floor_char_boundary(len);
    let mut is_word = text[..from].chars().next_back().is_some_and(|c| !c.is_whitespace());
    for (offset, c) in text[from..].char_indices() {
        if is_word && c.is_whitespace() {
            return Some(from + offset);
        }
        is_word = !c.is_whitespace();
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;
    use crate::text::tokenizer::byte_alphabet;

    /// The words as the library's regular expression finds them.
    fn library_words(text: &str) -> Vec<String> {
        let bytes = byte_alphabet::bytes();
        let mut split = PreTokenizedString::from(text);
        ByteLevel::new(false, true, true).pre_tokenize(&mut split).unwrap();
        let words = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let back = |word: &str| String::from_utf8(word.chars().map(|c| bytes[&c]).collect()).unwrap();
        words.into_iter().map(|(word, _, _)| back(word)).collect()
    }

    fn all_words(text: &str) -> Vec<&str> {
        words(text).map(|(_, word)| word).collect()
    }

    /// A text in chunks of about `len` bytes.
    fn chunks(mut text: &str, len: usize) -> impl Iterator<Item = &str> {
        std::iter::from_fn(move || {
            let (chunk, rest) = text.split_at(cut_between_words(text, len).unwrap_or(text.len()));
            text = rest;
            (!chunk.is_empty()).then_some(chunk)
        })
    }

    #[test]
    fn every_character_is_of_the_librarys_class() {
        // Between two letters, two digits and two marks, and after a space: each class splits differently.
        for c in ('\0'..=char::MAX).step_by(7).chain('\0'..'\u{3000}') {
            let text = format!("a{c}a 1{c}1 !{c}! {c}{c}");
            assert!(all_words(&text).eq(&library_words(&text)), "{c:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        #[test]
        fn words_are_the_librarys(text in "([a-cÀ-Ã]|[ \t\n\r\u{a0}\u{3000}]|'|'(s|t|re|ve|m|ll|d|x)|[0-9½٣]|[.!—\u{301}🦀]|\\PC){0,40}") {
            prop_assert_eq!(all_words(&text), library_words(&text));
        }

        #[test]
        fn words_end_where_a_text_is_cut(text in "([ab]|[ \n]|'(s|ll)?|[1٣]|[.!🦀]|é){0,40}", len in 0..50usize) {
            let apart: Vec<&str> = chunks(&text, len).flat_map(all_words).collect();
            prop_assert_eq!(apart, all_words(&text));
            prop_assert_eq!(chunks(&text, len).collect::<String>(), text);
        }
    }

    #[test]
    fn an_endless_word_is_cut_between_characters() {
        for c in ['x', ' ', '7', '=', 'é', '漢'] {
            let text = format!("a. 1\n{}b!", String::from_iter(std::iter::repeat_n(c, 2 * MAX_WORD_BYTES)));
            let words = all_words(&text);
            assert_eq!(words.concat(), text);
            let longest = words.iter().map(|word| word.len()).max().unwrap();
            assert!((MAX_WORD_BYTES - 3..=MAX_WORD_BYTES).contains(&longest), "{c:?}: {longest}");
        }
    }

    #[test]
    fn is_cut_before_white_space() {
        let text = "one  two\n\nthrée,four's 5five";
        assert_eq!(chunks(text, 3).collect::<Vec<_>>(), ["one", "  two", "\n\nthrée,four's", " 5five"]);
        assert_eq!(chunks("", 3).count(), 0);
    }
}
