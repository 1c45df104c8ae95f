//! Counts the words of a text of any length in bounded memory.

use ahash::AHashMap;
use compact_str::CompactString;

use super::markers::Markers;
use super::words::words;
use crate::cpu::parallel::map;

/// The maximum of different words that are counted, and of their bytes together. With their table they take up to
/// 110 MB, and those of the text being read some 10 MB.
const MAX_COUNTED: (usize, usize) = (1 << 19, 32 << 20);

/// The maximum of words that merges are learned from, and of their bytes together, by the size of the vocabulary. The
/// library takes up to some 200 bytes for each byte of them: 0.4 GB, and 1.6 GB for the largest vocabulary.
fn max_learned(vocab_size: usize) -> (usize, usize) {
    let words = vocab_size.saturating_mul(2).clamp(1 << 17, MAX_COUNTED.0);
    (words, 16 * words)
}

/// The words of a text and their counts.
///
/// Counts are exact up to 2^19 different words with 32 MiB together. Beyond that the rarer half is dropped: a word that
/// comes back later has lost its count so far. Words that are frequent throughout are not affected.
///
/// Words longer than 256 bytes are counted in sections, which changes what merges are learned from, not how text is
/// encoded: a merge of two sections would be a token longer than this.
#[derive(Debug, Default)]
pub(in crate::text) struct WordCounts {
    counts: AHashMap<CompactString, u64>,
    /// Bytes of all words in `counts`.
    bytes: usize,
}

impl WordCounts {
    /// Counts the words between the markers in some chunks of a text, on all threads; chunks start and end between words.
    pub(in crate::text) fn add(&mut self, chunks: &[&str], markers: &Markers) {
        let counted = map(chunks.len(), |i| count(chunks[i], markers));
        // Merged in order, and words are dropped between chunks, so the threads' timing does not matter.
        for counts in counted {
            for (word, count) in counts {
                match self.counts.get_mut(word) {
                    Some(sum) => *sum += count,
                    None => {
                        self.counts.insert(word.into(), count);
                        self.bytes += word.len();
                    }
                }
            }
            let (words, bytes) = MAX_COUNTED;
            self.keep_frequent(MAX_COUNTED, (words / 2, bytes / 2));
        }
    }

    /// The words, with counts, to learn a vocabulary of this size from.
    pub(super) fn finish(mut self, vocab_size: usize) -> AHashMap<CompactString, u64> {
        let max = max_learned(vocab_size);
        self.keep_frequent(max, max);
        self.counts
    }

    /// Keeps the most frequent words if there are more than `max`, in number or bytes.
    fn keep_frequent(&mut self, max: (usize, usize), kept: (usize, usize)) {
        if self.counts.len() <= max.0 && self.bytes <= max.1 {
            return;
        }
        let mut ranked: Vec<_> = self.counts.drain().map(|(word, count)| (rank(&word, count), word, count)).collect();
        ranked.sort_unstable_by_key(|(rank, ..)| std::cmp::Reverse(*rank));
        self.bytes = 0;
        for (_, word, count) in ranked.into_iter().take(kept.0) {
            if self.bytes + word.len() > kept.1 {
                break;
            }
            self.bytes += word.len();
            self.counts.insert(word, count);
        }
    }
}

/// The order in which words are kept: by count, then by FNV-1a hash, so that neither the position in the text nor the
/// alphabet decides, and the result is the same on every machine.
fn rank(word: &str, count: u64) -> (u64, u64) {
    let hash = word
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (count, hash)
}

fn count<'a>(text: &'a str, markers: &'a Markers) -> AHashMap<&'a str, u64> {
    let mut counts = AHashMap::new();
    for section in markers.between(text).flat_map(words).flat_map(|(_, word)| sections(word)) {
        *counts.entry(section).or_default() += 1;
    }
    counts
}

/// A word in sections of at most 256 bytes.
fn sections(mut word: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (section, rest) = word.split_at(word.floor_char_boundary(256));
        word = rest;
        (!section.is_empty()).then_some(section)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts of texts of which at most `words` words and `bytes` bytes are kept.
    fn of(texts: &[&str], words: usize, bytes: usize) -> WordCounts {
        let mut counts = WordCounts::default();
        for text in texts {
            counts.add(&[text], &Markers::default());
            counts.keep_frequent((words, bytes), (words / 2, bytes / 2));
        }
        counts
    }

    #[test]
    fn counts_add_up_over_chunks() {
        let mut counts = WordCounts::default();
        counts.add(&["a b<|endoftext|> a", " a c", " b"], &Markers::end_of_text().unwrap());
        let expected = [("a", 1), (" a", 2), (" b", 2), (" c", 1)].map(|(word, count)| (word.into(), count));
        assert_eq!((counts.counts, counts.bytes), (AHashMap::from(expected), 7));
    }

    #[test]
    fn frequent_words_stay_and_rare_ones_go() {
        let rare: String = (0..1000).map(|i| format!("{i}.")).collect();
        let texts = [&*" often seldom often".repeat(10), &rare];
        let counts = of(&texts, 64, 10_000);
        assert_eq!((counts.counts.len(), counts.counts["."]), (32, 1000));
        assert_eq!((counts.counts[" often"], counts.counts[" seldom"]), (20, 10));
        // The rare ones that stay are the same ones, from anywhere in the text.
        assert_eq!(counts.counts, of(&texts, 64, 10_000).counts);
        let kept: Vec<usize> = counts.counts.keys().filter_map(|word| word.parse().ok()).collect();
        assert!(kept.iter().any(|&i| i < 500) && kept.iter().any(|&i| i >= 500), "{kept:?}");
    }

    /// A line of 1,300 letters, another one for each number.
    fn long_line(number: u64) -> String {
        let mut state = number;
        let letters = std::iter::repeat_with(move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            char::from(b'a' + (state >> 60) as u8)
        });
        format!("{}\n", letters.take(1300).collect::<String>())
    }

    #[test]
    fn the_bytes_of_long_words_are_bounded() {
        let lines: Vec<String> = (0..200).map(long_line).collect();
        let often = " often".repeat(10);
        let texts: Vec<&str> = [&*often].into_iter().chain(lines.iter().map(String::as_str)).collect();
        let counts = of(&texts, 1000, 20_000);
        let bytes: usize = counts.counts.keys().map(|word| word.len()).sum();
        assert!(bytes == counts.bytes && (5000..=20_000).contains(&bytes), "{bytes} bytes, {} counted", counts.bytes);
        assert!(counts.counts.keys().all(|word| word.len() <= 256));
        assert_eq!(counts.counts[" often"], 10);
    }

    #[test]
    fn what_merges_are_learned_from_is_bounded_for_any_vocabulary() {
        for vocab_size in [0, 512, 1 << 17, usize::MAX] {
            let (words, bytes) = max_learned(vocab_size);
            assert!((1 << 17..=1 << 19).contains(&words) && (2 << 20..=8 << 20).contains(&bytes));
        }
        let words = (0..12_000).map(|number| (format!("{number:0200}").into(), 1));
        let counts = WordCounts { counts: words.collect(), bytes: 12_000 * 200 };
        let learned: usize = counts.finish(512).keys().map(|word| word.len()).sum();
        assert!((1 << 20..=2 << 20).contains(&learned), "{learned}");
    }

    #[test]
    fn a_long_word_is_counted_in_sections() {
        let word = format!(" {}", "é".repeat(300));
        let sections: Vec<&str> = sections(&word).collect();
        assert_eq!(sections.concat(), word);
        assert_eq!(sections.iter().map(|section| section.len()).collect::<Vec<_>>(), [255, 256, 90]);
    }
}
