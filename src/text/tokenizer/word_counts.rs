//! How often each word stands in a text of any length, in bounded memory.

use ahash::AHashMap;
use compact_str::CompactString;
use rayon::prelude::*;

use super::place::Fault;
use super::words::{check_words, words};

/// Different words that are counted: where there are more, the rarer half is forgotten.
const MOST_WORDS: usize = 1 << 19;

/// Different words that merges are learned from, and for each id of a large vocabulary. The library takes about a kilobyte
/// for each.
const MOST_LEARNED: usize = 1 << 17;
const LEARNED_AN_ID: usize = 8;

/// The words of a text and how often each stands in it.
///
/// Exact up to 2^19 different words. Above, the rarer half is forgotten each time, so a word that comes back after that
/// has lost what it had: at most as many as the words that were kept had then. Merges come from what is frequent, which
/// this leaves alone. Which of equally rare words go is drawn by a hash, the same each time: neither the place in the text
/// nor in the alphabet decides.
#[derive(Debug)]
pub(in crate::text) struct WordCounts {
    counts: AHashMap<CompactString, u64>,
    most: usize,
}

impl Default for WordCounts {
    fn default() -> Self {
        Self { counts: AHashMap::new(), most: MOST_WORDS }
    }
}

impl WordCounts {
    /// Counts the words of some pieces of a text, all threads together; pieces begin and end where words do. On error,
    /// the number of the piece.
    pub(in crate::text) fn add(&mut self, texts: &[&str]) -> Result<(), (usize, Fault)> {
        let counted: Vec<_> = texts.par_iter().map(|text| count(text)).collect();
        // In their order and, where words are forgotten, after as many pieces as ever: not as the threads go.
        for (number, counts) in counted.into_iter().enumerate() {
            for (word, count) in counts.map_err(|fault| (number, fault))? {
                match self.counts.get_mut(word) {
                    Some(sum) => *sum += count,
                    None => drop(self.counts.insert(word.into(), count)),
                }
            }
        }
        if self.counts.len() > self.most {
            self.keep(self.most / 2);
        }
        Ok(())
    }

    /// The words to learn a vocabulary of so many ids from, with their counts.
    pub(super) fn finish(mut self, vocab_size: usize) -> AHashMap<CompactString, u64> {
        self.keep(MOST_LEARNED.max(vocab_size.saturating_mul(LEARNED_AN_ID)));
        self.counts
    }

    #[cfg(test)]
    pub(super) fn set(&mut self, word: &str, count: u64) {
        self.counts.insert(word.into(), count);
    }

    /// Forgets all but the `most` most frequent words.
    fn keep(&mut self, most: usize) {
        if self.counts.len() <= most {
            return;
        }
        let mut ranks: Vec<(u64, u64)> = self.counts.iter().map(|(word, &count)| rank(word, count)).collect();
        let first = ranks.len() - most;
        let (_, &mut least, _) = ranks.select_nth_unstable(first);
        self.counts.retain(|word, count| rank(word, *count) >= least);
    }
}

fn count(text: &str) -> Result<AHashMap<&str, u64>, Fault> {
    check_words(text)?;
    let mut counts = AHashMap::new();
    for word in words(text) {
        *counts.entry(word).or_default() += 1;
    }
    Ok(counts)
}

/// By what words are kept: the count, then the FNV-1a hash, which is the same on every machine.
fn rank(word: &str, count: u64) -> (u64, u64) {
    let hash = word
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (count, hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str], most: usize) -> WordCounts {
        let mut counts = WordCounts { most, ..Default::default() };
        counts.add(texts).unwrap();
        counts
    }

    #[test]
    fn counts_add_up_over_pieces() {
        let counts = of(&["a b a", " a c", " b"], 100).counts;
        let expected = [("a", 1), (" a", 2), (" b", 2), (" c", 1)].map(|(word, count)| (word.into(), count));
        assert_eq!(counts, AHashMap::from(expected));
    }

    #[test]
    fn frequent_words_stay_and_rare_ones_go() {
        let rare: String = (0..1000).map(|i| format!("{i}.")).collect();
        let mut counts = of(&[&" often seldom often".repeat(10)], 64);
        counts.add(&[&rare]).unwrap();
        assert_eq!((counts.counts.len(), counts.counts["."]), (32, 1000));
        assert_eq!((counts.counts[" often"], counts.counts[" seldom"]), (20, 10));
        // The rare ones that stay are the same ones, from anywhere in the text.
        let mut again = of(&[&" often seldom often".repeat(10)], 64);
        again.add(&[&rare]).unwrap();
        assert_eq!(counts.counts, again.counts);
        let kept: Vec<usize> = counts.counts.keys().filter_map(|word| word.parse().ok()).collect();
        assert!(kept.iter().any(|&i| i < 500) && kept.iter().any(|&i| i >= 500), "{kept:?}");
    }
}
