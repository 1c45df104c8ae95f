//! Training a byte-level BPE.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use candle_core::{Error, Result, bail};
use compact_str::CompactString;
use serde_json::json;
use tokenizers::ProgressFormat;
use tokenizers::models::bpe::{BPE, BpeTrainer};

use super::build::JsonParts;
use super::word_counts::WordCounts;
use super::words::chunks;
use super::{Tokenizer, byte_alphabet};
use crate::text::TextProgress;
use crate::text::pieces::{PIECE_BYTES, PIECES_AT_ONCE};

/// A pair of tokens is merged if it occurs at least this often: a single occurrence is not a pattern.
const MIN_FREQUENCY: u64 = 2;

/// The largest vocabulary: four times the largest of published models.
const MOST_TOKENS: usize = 1 << 20;

/// The time between two reports while merges are learned.
const REPORT_EVERY: Duration = Duration::from_secs(1);

impl Tokenizer {
    /// A byte-level BPE like GPT-2's, trained on some texts: the 256 bytes, so that nothing is unknown, then merges of
    /// frequent pairs and, with `end_of_text`, the end of a document. The same texts give the same tokenizer.
    ///
    /// The vocabulary has `vocab_size` ids, or fewer if no further pair of tokens occurs twice. Memory is bounded
    /// whatever the texts are: up to 2^19 different words with 32 MiB together are counted exactly, and beyond that the
    /// rarer ones are dropped. Merges are learned from the most frequent words: 2^17 with 2 MiB together, which takes
    /// up to 0.4 GB of memory, and for vocabularies above 2^16 two words and 32 bytes per id, up to 2^19 with 8 MiB
    /// together. Words longer than 256 bytes are learned from in sections of this length.
    ///
    /// # Errors
    /// A `vocab_size` that doesn't hold the 256 bytes and the end of text, or above 2^20; and a word of more than 2^16
    /// characters, since encoding one takes time quadratic in its length.
    pub fn train_bpe(
        texts: &[&str],
        vocab_size: usize,
        end_of_text: bool,
        progress: &mut dyn FnMut(TextProgress),
    ) -> Result<Self> {
        check_vocab_size(vocab_size, end_of_text)?;
        let total = texts.iter().map(|text| text.len() as u64).sum();
        let (mut counts, mut done) = (WordCounts::default(), 0);
        for text in texts {
            let pieces: Vec<&str> = chunks(text, PIECE_BYTES).collect();
            for pieces in pieces.chunks(PIECES_AT_ONCE) {
                counts.add(pieces).map_err(|(number, fault)| {
                    let before = pieces[..number].iter().map(|piece| piece.len()).sum::<usize>();
                    fault.shifted(before + pieces[0].as_ptr().addr() - text.as_ptr().addr()).within(text)
                })?;
                done += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
                progress(TextProgress::Counting { done, total });
            }
        }
        Self::learn_bpe(counts, vocab_size, end_of_text, progress)
    }

    /// A byte-level BPE from the words of a text; see [`Tokenizer::train_bpe`].
    pub(in crate::text) fn learn_bpe(
        counts: WordCounts,
        vocab_size: usize,
        end_of_text: bool,
        progress: &mut dyn FnMut(TextProgress),
    ) -> Result<Self> {
        check_vocab_size(vocab_size, end_of_text)?;
        let merges = vocab_size - least_size(end_of_text);
        let words = in_alphabet(counts.finish(vocab_size));
        let model = reporting_time(|| learn_merges(&words, merges), &mut |time| {
            progress(TextProgress::Merging { merges, seconds: time.as_secs() });
        })?;
        let learned = serde_json::to_value(&model).map_err(Error::wrap)?;
        let mut vocab: Vec<(String, u32)> = model.get_vocab().into_iter().collect();
        vocab.sort_unstable_by_key(|&(_, id)| id);
        JsonParts { vocab, model: json!({ "type": "BPE", "merges": learned["merges"] }), ..JsonParts::byte_level(true) }
            .assemble(end_of_text)
    }
}

/// At most `merges` merges of frequent pairs in words that are spelled in the alphabet of bytes.
fn learn_merges(words: &AHashMap<CompactString, u64>, merges: usize) -> Result<BPE> {
    // The library allocates the vocabulary beforehand; a word has fewer merges than bytes.
    let most_merges = words.keys().map(|word| word.chars().count()).sum();
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .progress_format(ProgressFormat::Silent)
        .min_frequency(MIN_FREQUENCY)
        .vocab_size(256 + merges.min(most_merges))
        .initial_alphabet(byte_alphabet::characters().into())
        .build();
    let mut model = BPE::default();
    trainer.do_train(words, &mut model).map_err(Error::wrap)?;
    Ok(model)
}

/// Runs `work` on a thread of its own; `report` is told the time spent, at first and about every second.
fn reporting_time<T: Send>(work: impl FnOnce() -> Result<T> + Send, report: &mut dyn FnMut(Duration)) -> Result<T> {
    let begun = Instant::now();
    report(Duration::ZERO);
    std::thread::scope(|scope| {
        let (sender, done) = channel::<()>();
        let worker = std::thread::Builder::new().spawn_scoped(scope, move || {
            let result = work();
            // Dropping the sender, even in a panic, ends the wait below.
            drop(sender);
            result
        });
        let worker = worker.map_err(Error::wrap)?;
        while done.recv_timeout(REPORT_EVERY) == Err(RecvTimeoutError::Timeout) {
            report(begun.elapsed());
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Refuses impossible vocabulary sizes before any text is read.
pub(in crate::text) fn check_vocab_size(vocab_size: usize, end_of_text: bool) -> Result<()> {
    let least = least_size(end_of_text);
    if vocab_size < least {
        let end = if end_of_text { " and the end of text" } else { "" };
        bail!("expected a bpe vocabulary of at least {least} tokens (256 bytes{end}), got {vocab_size}");
    }
    if vocab_size > MOST_TOKENS {
        bail!("expected a bpe vocabulary of at most {MOST_TOKENS} tokens, got {vocab_size}");
    }
    Ok(())
}

fn least_size(end_of_text: bool) -> usize {
    256 + usize::from(end_of_text)
}

/// The words in GPT-2's alphabet, with counts scaled down such that the library can add up those of a pair: it does so
/// in 32 bits.
fn in_alphabet(counts: AHashMap<CompactString, u64>) -> AHashMap<CompactString, u64> {
    let alphabet = byte_alphabet::characters();
    let pairs: u128 = counts.iter().map(|(word, &count)| word.len() as u128 * u128::from(count)).sum();
    let shift = (0..64).find(|shift| pairs >> shift <= i32::MAX as u128).unwrap_or_default();
    let spelled = |word: &str| word.bytes().map(|byte| alphabet[usize::from(byte)]).collect();
    let scaled = counts.into_iter().map(|(word, count)| (word, count >> shift)).filter(|&(_, count)| count > 0);
    scaled.map(|(word, count)| (spelled(&word), count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_beyond_32_bits_are_scaled_down() {
        let mut counts = WordCounts::default();
        counts.add(&[" the a"]).unwrap();
        for (word, count) in [(" the", 1 << 40), (" a", 1 << 20), (" x", 5)] {
            counts.set(word, count);
        }
        let scaled = in_alphabet(counts.finish(300));
        assert_eq!(scaled.len(), 2, "{scaled:?}");
        assert_eq!(scaled["Ġthe"] / scaled["Ġa"], 1 << 20);
        assert!(scaled.iter().map(|(word, count)| word.len() as u64 * count).sum::<u64>() <= i32::MAX as u64 * 2);
    }
}
