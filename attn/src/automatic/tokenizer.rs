//! The tokenizer of a recipe that is chosen.

use candle_attention::text::{Document, TokenizerChoice};

/// How the tokenizer is made for these documents and so many floating-point operations: a BPE, or characters for a short text
/// and for one whose many characters it would mostly spell byte by byte; bytes where there are too many characters for that
/// too, or a single one.
pub fn tokenizer(documents: &[Document], work: f64) -> TokenizerChoice {
    let Characters { different, all, bytes } = Characters::of(documents);
    let is_script_of_many = |tokens: usize| bytes >= 2 * all && tokens < 2 * different;
    match vocabulary(documents.iter().map(Document::len).sum(), work) {
        Some(tokens) if !is_script_of_many(tokens) => TokenizerChoice::Bpe(tokens),
        _ if (2..=256).contains(&different) || different > 1 && all >= 10 * different => TokenizerChoice::Characters,
        _ => TokenizerChoice::Bytes,
    }
}

/// The characters at the beginning of a text.
#[derive(Default)]
struct Characters {
    different: usize,
    all: usize,
    bytes: usize,
}

impl Characters {
    fn of(documents: &[Document]) -> Self {
        /// So many bytes say enough, and are counted in less than a tenth of a second.
        const MAX_BYTES: u64 = 1 << 22;
        let (mut counted, mut is_known) = (Self::default(), vec![false; char::MAX as usize + 1]);
        for document in documents {
            let left = MAX_BYTES - counted.bytes as u64;
            if left == 0 {
                break;
            }
            // What cannot be read, or is not UTF-8, is refused later, with its place.
            let bytes = document.first_bytes(left).unwrap_or_default();
            for c in String::from_utf8_lossy(&bytes).chars() {
                counted.different += usize::from(!std::mem::replace(&mut is_known[c as usize], true));
                counted.all += 1;
            }
            counted.bytes += bytes.len();
        }
        counted
    }
}

/// The tokens of a BPE for so many bytes of text and so many floating-point operations; `None` where it does not pay.
pub(super) fn vocabulary(bytes: u64, work: f64) -> Option<usize> {
    /// Bytes of text for each token of a vocabulary.
    const BYTES_PER_TOKEN: f64 = 600.0;
    /// The tokens for so many floating-point operations; twice as many are worth 64 times the work.
    const TOKENS: f64 = 4096.0;
    const WORK: f64 = 3e12;
    const SIZES: [usize; 13] = [512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12_288, 16_384, 24_576, 32_768];
    let affordable = (bytes as f64 / BYTES_PER_TOKEN).min(TOKENS * (work / WORK).powf(1.0 / 6.0));
    SIZES.into_iter().rev().find(|size| *size as f64 <= affordable)
}

#[cfg(test)]
mod tests {
    use super::super::tests::SECOND;
    use super::*;

    #[test]
    fn a_vocabulary_grows_with_the_text_and_with_the_time() {
        let sizes = |bytes: u64, seconds: f64| vocabulary(bytes, seconds * SECOND);
        for seconds in [5.0, 60.0, 1000.0] {
            assert!([0, 10_000, 1_000_000, 10_000_000, u64::MAX].map(|bytes| sizes(bytes, seconds)).is_sorted());
            assert_eq!(sizes(50_000, seconds), None);
        }
        assert!([0.1, 1.0, 60.0, 1e9].map(|seconds| sizes(100_000_000, seconds)).is_sorted());
        assert_eq!(sizes(u64::MAX, 1e9), Some(32_768));
    }

    #[test]
    fn a_short_text_is_one_of_characters_if_they_are_few() {
        let chosen = |text: &str| tokenizer(&[Document::new("text", text)], 60.0 * SECOND);
        assert_eq!(chosen("O gato preto correu."), TokenizerChoice::Characters);
        let ideographs: String = ('\u{4e00}'..).take(257).collect();
        assert_eq!(chosen(&ideographs), TokenizerChoice::Bytes);
        assert_eq!(chosen("aaaa"), TokenizerChoice::Bytes);
        assert_eq!(chosen(&ideographs.repeat(10)), TokenizerChoice::Characters);
    }

    /// A BPE of 1024 tokens has 768 beside those of the bytes.
    #[test]
    fn a_script_of_many_characters_has_a_token_for_each() {
        let chosen = |first: char, count: u32| {
            let alphabet: Vec<char> = (0..count).filter_map(|i| char::from_u32(u32::from(first) + i)).collect();
            let text: String = alphabet.iter().cycle().take(700_000 / first.len_utf8()).collect();
            tokenizer(&[Document::new("text", text)], 60.0 * SECOND)
        };
        assert_eq!(chosen('\u{4e00}', 1400), TokenizerChoice::Characters);
        assert_eq!(chosen('\u{4e00}', 300), TokenizerChoice::Bpe(1024));
        assert_eq!(chosen('a', 20), TokenizerChoice::Bpe(1024));
    }
}
