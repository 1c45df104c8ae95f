//! The words within which GPT-2's byte-level BPE merges:
//!
//! ```text
//! 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//! ```
//!
//! Split by hand-written code, about ten times as fast as a regular expression with look-ahead; tests compare it with
//! the library's.

use std::sync::LazyLock;

use regex_syntax::hir::{Class as RegexClass, HirKind};

use super::place::Fault;

/// The character classes of the regular expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

/// The class of each character, from the tables that the library's regular expressions use.
static CLASSES: LazyLock<Box<[Class]>> = LazyLock::new(|| {
    let mut classes = vec![Class::Other; char::MAX as usize + 1];
    for (pattern, class) in [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)] {
        let hir = regex_syntax::parse(pattern).map(regex_syntax::hir::Hir::into_kind);
        if let Ok(HirKind::Class(RegexClass::Unicode(ranges))) = hir {
            ranges.iter().for_each(|range| classes[range.start() as usize..=range.end() as usize].fill(class));
        }
    }
    classes.into()
});

const ASCII: [Class; 128] = {
    let mut classes = [Class::Other; 128];
    let mut byte = 0;
    while byte < 128 {
        classes[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
            b'0'..=b'9' => Class::Number,
            b'\t'..=b'\r' | b' ' => Class::Space,
            _ => Class::Other,
        };
        byte += 1;
    }
    classes
};

fn class(c: char) -> Class {
    match ASCII.get(c as usize) {
        Some(&class) => class,
        None => CLASSES[c as usize],
    }
}

/// The words of a text, in order; concatenated, they are the text.
pub(super) fn words(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (word, rest) = text.split_at(first_word(text));
        text = rest;
        (!word.is_empty()).then_some(word)
    })
}

/// The length in bytes of the first word of a text.
fn first_word(text: &str) -> usize {
    let mut chars = text.chars();
    let (Some(first), next) = (chars.next(), chars.next()) else {
        return 0;
    };
    if first == '\''
        && let Some(len) = contraction(text)
    {
        return len;
    }
    match (class(first), next.map(class)) {
        (Class::Space, Some(next)) if first == ' ' && next != Class::Space => 1 + run(&text[1..], next),
        (Class::Space, _) => white_space(text),
        (class, _) => run(text, class),
    }
}

fn contraction(text: &str) -> Option<usize> {
    ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"].into_iter().find(|end| text.starts_with(end)).map(str::len)
}

/// The length of the leading white space, without its last character if something else follows, unless it has only one.
fn white_space(text: &str) -> usize {
    let len = run(text, Class::Space);
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if len == text.len() || len == last { len } else { len - last }
}

/// The length in bytes of the leading characters of a class.
fn run(text: &str, wanted: Class) -> usize {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match ASCII.get(usize::from(byte)) {
            Some(&class) if class == wanted => at += 1,
            Some(_) => break,
            None => match text[at..].chars().next() {
                Some(c) if CLASSES[c as usize] == wanted => at += c.len_utf8(),
                _ => break,
            },
        }
    }
    at
}

/// The first place from `len` bytes on where a word ends whatever precedes and follows, so that both sides can be
/// encoded separately.
///
/// This is a place where the class changes from anything but white space: only the contractions match across one, at an
/// apostrophe before a letter, and only white space looks ahead.
pub(in crate::text) fn cut_between_words(text: &str, len: usize) -> Option<usize> {
    let from = text.floor_char_boundary(len);
    let mut before = text[..from].chars().next_back().unwrap_or(' ');
    for (offset, c) in text[from..].char_indices() {
        let changes = class(before) != Class::Space && class(c) != class(before);
        if changes && !(before == '\'' && class(c) == Class::Letter) {
            return Some(from + offset);
        }
        before = c;
    }
    None
}

/// A text in pieces of about `len` bytes that can be encoded separately.
pub(super) fn chunks(mut text: &str, len: usize) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (chunk, rest) = text.split_at(cut_between_words(text, len).unwrap_or(text.len()));
        text = rest;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// The most characters in a word: merging takes time quadratic in them, about a second for this many.
const MOST_CHARACTERS: usize = 1 << 16;

/// Refuses a text with a longer run of letters, numbers, white space or other characters, which is one word.
pub(in crate::text) fn check_words(text: &str) -> Result<(), Fault> {
    let mut offset = 0;
    while offset < text.len() {
        let rest = &text[offset..];
        let len = rest.chars().next().map_or(1, |c| run(rest, class(c)));
        if len > MOST_CHARACTERS
            && let Some((past, _)) = rest[..len].char_indices().nth(MOST_CHARACTERS)
        {
            let before = format!("expected words of at most {MOST_CHARACTERS} characters for a bpe, got a longer one");
            return Err(Fault::new(offset + past, before, ""));
        }
        offset += len;
    }
    Ok(())
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

    #[test]
    fn every_character_is_of_the_librarys_class() {
        // Between two letters, two digits and two marks, and after a space: each class splits differently.
        for c in ('\0'..=char::MAX).step_by(7).chain('\0'..'\u{3000}') {
            let text = format!("a{c}a 1{c}1 !{c}! {c}{c}");
            assert!(words(&text).eq(library_words(&text)), "{c:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        #[test]
        fn words_are_the_librarys(text in "([a-cÀ-Ã]|[ \t\n\r\u{a0}\u{3000}]|'|'(s|t|re|ve|m|ll|d|x)|[0-9½٣]|[.!—\u{301}🦀]|\\PC){0,40}") {
            prop_assert_eq!(words(&text).collect::<Vec<_>>(), library_words(&text));
        }

        #[test]
        fn words_end_where_a_text_is_cut(text in "([ab]|[ \n]|'(s|ll)?|[1٣]|[.!🦀]|é){0,40}", len in 0..50usize) {
            let apart: Vec<&str> = chunks(&text, len).flat_map(words).collect();
            prop_assert_eq!(apart, words(&text).collect::<Vec<_>>());
            prop_assert_eq!(chunks(&text, len).collect::<String>(), text);
        }
    }

    #[test]
    fn an_endless_word_is_refused_with_its_place() {
        for c in ['x', ' ', '7', '=', 'é'] {
            let word: String = std::iter::repeat_n(c, MOST_CHARACTERS).collect();
            check_words(&word).unwrap();
            let error = check_words(&format!("a. 1\n0{word}{c}")).or(check_words(&format!("a. 1\nb{word}{c}")));
            let error = error.unwrap_err().within(&format!("a. 1\nb{word}{c}")).to_string();
            assert!(error.contains("line 2"), "{error}");
        }
    }

    #[test]
    fn is_cut_where_the_class_changes() {
        let text = "one  two\n\nthrée,four's 5five";
        assert_eq!(chunks(text, 3).collect::<Vec<_>>(), ["one", "  two", "\n\nthrée", ",four", "'s 5", "five"]);
        assert_eq!(chunks("", 3).count(), 0);
        // However many letters and digits come without white space.
        assert!(chunks(&"a1".repeat(500), 10).all(|chunk| chunk.len() <= 11));
    }
}
