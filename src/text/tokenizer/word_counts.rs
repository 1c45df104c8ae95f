//! Counts the words of a text of any length in bounded memory.

use ahash::AHashMap;
use compact_str::CompactString;
use rayon::prelude::*;

use super::place::Fault;
use super::words::{check_words, words};

/// How many different words there may be, and how many bytes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    words: usize,
    bytes: usize,
}

impl Bounds {
    /// Words that are counted. With their table they take up to 110 MB, and those of the text being read some 10 MB.
    const COUNTED: Self = Self { words: 1 << 19, bytes: 32 << 20 };

    /// Words that merges are learned from, by the size of the vocabulary: 2^17 words of 2 MiB together and, above 2^16
    /// ids, two words of 16 bytes for each id, up to 2^19 words of 8 MiB.
    ///
    /// The library takes up to some 200 bytes for each byte of them, so these are 0.4 GB, and 1.6 GB for the largest.
    fn learned(vocab_size: usize) -> Self {
        const BYTES_PER_WORD: usize = 16;
        let words = vocab_size.saturating_mul(2).clamp(1 << 17, Self::COUNTED.words);
        Self { words, bytes: words * BYTES_PER_WORD }
    }
}

/// Longer words are counted in sections of at most this many bytes. This changes what merges are learned from, not how
/// text is encoded: a merge of two sections would be a token longer than this.
const SECTION_BYTES: usize = 256;

/// The words of a text and their counts.
///
/// Counts are exact up to 2^19 different words with 32 MiB together. Beyond that, the rarer ones are dropped, down to
/// half as many words and bytes, so a word that comes back later has lost its count so far, which was at most that of
/// the words that were kept. Words that are frequent throughout are not affected; a word that comes back rarely enough
/// may be dropped each time, and then teaches no merges. Ties are broken by a hash of
/// the word, so neither the position in the text nor the alphabet decides, and the result is always the same.
#[derive(Debug)]
pub(in crate::text) struct WordCounts {
    counts: AHashMap<CompactString, u64>,
    /// Bytes of all words in `counts`.
    bytes: usize,
    bounds: Bounds,
}

impl Default for WordCounts {
    fn default() -> Self {
        Self { counts: AHashMap::new(), bytes: 0, bounds: Bounds::COUNTED }
    }
}

impl WordCounts {
    /// Counts the words of some pieces of a text on all threads; pieces start and end at word boundaries. An error
    /// comes with the number of the piece.
    pub(in crate::text) fn add(&mut self, texts: &[&str]) -> Result<(), (usize, Fault)> {
        let counted: Vec<_> = texts.par_iter().map(|text| count(text)).collect();
        // Merged in order, and words are dropped between pieces, so the threads' timing does not matter.
        for (number, counts) in counted.into_iter().enumerate() {
            for (word, count) in counts.map_err(|fault| (number, fault))? {
                match self.counts.get_mut(word) {
                    Some(sum) => *sum += count,
                    None => {
                        self.counts.insert(word.into(), count);
                        self.bytes += word.len();
                    }
                }
            }
            let Bounds { words, bytes } = self.bounds;
            if self.counts.len() > words || self.bytes > bytes {
                self.keep(Bounds { words: words / 2, bytes: bytes / 2 });
            }
        }
        Ok(())
    }

    /// The words, with counts, to learn a vocabulary of this size from.
    pub(super) fn finish(mut self, vocab_size: usize) -> AHashMap<CompactString, u64> {
        self.keep(Bounds::learned(vocab_size));
        self.counts
    }

    #[cfg(test)]
    pub(super) fn set(&mut self, word: &str, count: u64) {
        self.counts.insert(word.into(), count);
        self.bytes = self.counts.keys().map(|word| word.len()).sum();
    }

    /// Drops all but the most frequent words within `bounds`.
    fn keep(&mut self, bounds: Bounds) {
        if self.counts.len() <= bounds.words && self.bytes <= bounds.bytes {
            return;
        }
        let ranked = self.counts.iter().map(|(word, &count)| (rank(word, count), word.len()));
        let mut ranked: Vec<((u64, u64), usize)> = ranked.collect();
        ranked.sort_unstable_by(|a, b| b.cmp(a));
        let (mut words, mut bytes) = (0, 0);
        let first_dropped = ranked.iter().find(|(_, len)| {
            (words, bytes) = (words + 1, bytes + len);
            words > bounds.words || bytes > bounds.bytes
        });
        if let Some(&(dropped, _)) = first_dropped {
            self.counts.retain(|word, count| rank(word, *count) > dropped);
            self.bytes = self.counts.keys().map(|word| word.len()).sum();
            self.counts.shrink_to_fit();
        }
    }
}

fn count(text: &str) -> Result<AHashMap<&str, u64>, Fault> {
    check_words(text)?;
    let mut counts = AHashMap::new();
    for section in words(text).flat_map(sections) {
        *counts.entry(section).or_default() += 1;
    }
    Ok(counts)
}

/// A word in sections of at most [`SECTION_BYTES`].
fn sections(mut word: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (section, rest) = word.split_at(word.floor_char_boundary(SECTION_BYTES));
        word = rest;
        (!section.is_empty()).then_some(section)
    })
}

/// The order in which words are kept: by count, then by FNV-1a hash, which is the same on every machine.
fn rank(word: &str, count: u64) -> (u64, u64) {
    let hash = word
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (count, hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str], words: usize, bytes: usize) -> WordCounts {
        let mut counts = WordCounts { bounds: Bounds { words, bytes }, ..Default::default() };
        counts.add(texts).unwrap();
        counts
    }

    #[test]
    fn counts_add_up_over_pieces() {
        let counts = of(&["a b a", " a c", " b"], 100, 100).counts;
        let expected = [("a", 1), (" a", 2), (" b", 2), (" c", 1)].map(|(word, count)| (word.into(), count));
        assert_eq!(counts, AHashMap::from(expected));
    }

    #[test]
    fn frequent_words_stay_and_rare_ones_go() {
        let rare: String = (0..1000).map(|i| format!("{i}.")).collect();
        let mut counts = of(&[&" often seldom often".repeat(10)], 64, 10_000);
        counts.add(&[&rare]).unwrap();
        assert_eq!((counts.counts.len(), counts.counts["."]), (32, 1000));
        assert_eq!((counts.counts[" often"], counts.counts[" seldom"]), (20, 10));
        // The rare ones that stay are the same ones, from anywhere in the text.
        let mut again = of(&[&" often seldom often".repeat(10)], 64, 10_000);
        again.add(&[&rare]).unwrap();
        assert_eq!(counts.counts, again.counts);
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
        let mut counts = of(&[&" often".repeat(10)], 1000, 20_000);
        for number in 0..200 {
            counts.add(&[&long_line(number), &long_line(number + 1000)]).unwrap();
            let bytes: usize = counts.counts.keys().map(|word| word.len()).sum();
            assert!(bytes == counts.bytes && bytes <= 20_000, "{bytes} bytes of words, {} counted", counts.bytes);
            assert!(counts.counts.keys().all(|word| word.len() <= SECTION_BYTES));
        }
        assert!(counts.bytes > 5000 && counts.counts[" often"] == 10, "{}", counts.bytes);

        // So are those that merges are learned from, for any vocabulary.
        for vocab_size in [0, 512, 1 << 17, usize::MAX] {
            let Bounds { words, bytes } = Bounds::learned(vocab_size);
            assert!((1 << 17..=1 << 19).contains(&words) && (2 << 20..=8 << 20).contains(&bytes));
        }
        let mut counts = WordCounts::default();
        for number in 0..12_000 {
            counts.set_long(number);
        }
        assert!(counts.bytes > 2 << 20);
        let learned: usize = counts.finish(512).keys().map(|word| word.len()).sum();
        assert!((1 << 20..=2 << 20).contains(&learned), "{learned}");
    }

    impl WordCounts {
        /// A word of 200 bytes.
        fn set_long(&mut self, number: usize) {
            self.counts.insert(format!("{number:0200}").into(), 1);
            self.bytes += 200;
        }
    }

    #[test]
    fn a_long_word_is_counted_in_sections() {
        let word = format!(" {}", "é".repeat(300));
        let sections: Vec<&str> = sections(&word).collect();
        assert_eq!(sections.concat(), word);
        assert_eq!(sections.iter().map(|section| section.len()).collect::<Vec<_>>(), [255, 256, 90]);
    }
}
