//! Learning a byte-level BPE from text.

use ahash::AHashMap;
use candle_core::{Error, Result, bail};
use compact_str::CompactString;
use serde_json::json;
use tokenizers::ProgressFormat;
use tokenizers::models::bpe::{BPE, BpeTrainer};

use super::build::Parts;
use super::word_counts::WordCounts;
use super::words::chunks;
use super::{Tokenizer, byte_alphabet};
use crate::text::Progress;
use crate::text::pieces::{PIECE_LEN, PIECES_AT_ONCE};

/// A pair of tokens is merged when it stands in the text at least this often: one seen once is a memory, not a rule.
const MIN_FREQUENCY: u64 = 2;

/// Far above any vocabulary, and as much as can be allocated beforehand.
const MOST_TOKENS: usize = 1 << 24;

impl Tokenizer {
    /// A byte-level BPE as GPT-2's, learned from some texts: the 256 bytes, so that nothing is ever unknown, then
    /// merges of what often stands together, then with `end_of_text` the end of a document. The same texts give the
    /// same tokenizer.
    ///
    /// The vocabulary has `vocab_size` ids, or fewer where no further pair of tokens stands in the texts twice. Merges
    /// are learned from the 2^17 most frequent words, or eight for each id where that is more; up to 2^19 different words are
    /// counted exactly, and where there are more, the rarer half of them is forgotten each time.
    ///
    /// # Errors
    /// A `vocab_size` that doesn't hold the 256 bytes and the end of text, or above 2^24; and a word of more than 2^16
    /// characters, whose merging takes time quadratic in them.
    pub fn train_bpe(
        texts: &[&str],
        vocab_size: usize,
        end_of_text: bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        check_vocab_size(vocab_size, end_of_text)?;
        let total = texts.iter().map(|text| text.len() as u64).sum();
        let (mut counts, mut done) = (WordCounts::default(), 0);
        for text in texts {
            let pieces: Vec<&str> = chunks(text, PIECE_LEN).collect();
            for pieces in pieces.chunks(PIECES_AT_ONCE) {
                counts.add(pieces).map_err(|(number, fault)| {
                    let before = pieces[..number].iter().map(|piece| piece.len()).sum::<usize>();
                    fault.behind(before + pieces[0].as_ptr().addr() - text.as_ptr().addr()).within(text)
                })?;
                done += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
                progress(Progress::Counting { done, total });
            }
        }
        Self::learn_bpe(counts, vocab_size, end_of_text, progress)
    }

    /// A byte-level BPE from the words of a text; see [`Tokenizer::train_bpe`].
    pub(in crate::text) fn learn_bpe(
        counts: WordCounts,
        vocab_size: usize,
        end_of_text: bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        check_vocab_size(vocab_size, end_of_text)?;
        progress(Progress::Merging { merges: vocab_size - least_size(end_of_text) });
        let trainer = BpeTrainer::builder()
            .show_progress(false)
            .progress_format(ProgressFormat::Silent)
            .min_frequency(MIN_FREQUENCY)
            .vocab_size(vocab_size - usize::from(end_of_text))
            .initial_alphabet(byte_alphabet::characters().into())
            .build();
        let mut model = BPE::default();
        trainer.do_train(&in_alphabet(counts, vocab_size), &mut model).map_err(Error::wrap)?;
        let learned = serde_json::to_value(&model).map_err(Error::wrap)?;
        let mut vocab: Vec<(String, u32)> = model.get_vocab().into_iter().collect();
        vocab.sort_unstable_by_key(|&(_, id)| id);
        Parts { vocab, model: json!({ "type": "BPE", "merges": learned["merges"] }), ..Parts::byte_level(true) }
            .assemble(end_of_text)
    }
}

/// Refuses a vocabulary that cannot be, before any text is read.
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

/// The words in GPT-2's alphabet, with counts that the library can add up: it has 32 bits for a pair's.
fn in_alphabet(counts: WordCounts, vocab_size: usize) -> AHashMap<CompactString, u64> {
    let (counts, alphabet) = (counts.finish(vocab_size), byte_alphabet::characters());
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
        let scaled = in_alphabet(counts, 300);
        assert_eq!(scaled.len(), 2, "{scaled:?}");
        assert_eq!(scaled["Ġthe"] / scaled["Ġa"], 1 << 20);
        assert!(scaled.iter().map(|(word, count)| word.len() as u64 * count).sum::<u64>() <= i32::MAX as u64 * 2);
    }
}
