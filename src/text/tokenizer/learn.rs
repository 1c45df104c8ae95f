//! Learning a byte-level BPE.

use ahash::AHashMap;
use compact_str::CompactString;
use serde_json::json;
use tokenizers::ProgressFormat;
use tokenizers::models::bpe::{BPE, BpeTrainer};

use super::build::JsonParts;
use super::word_counts::WordCounts;
use super::{Tokenizer, byte_alphabet};
use crate::host::{Error, Result, bail_option};

impl Tokenizer {
    /// A byte-level BPE like GPT-2's, learned from the words of some texts: the 256 bytes, so that nothing is unknown,
    /// then merges of pairs that occur at least twice and, with `end_of_text`, the end of a document. The same words give
    /// the same tokenizer. It has `vocab_size` ids, or fewer if there is no further pair.
    pub(in crate::text) fn learn_bpe(counts: WordCounts, vocab_size: usize, end_of_text: bool) -> Result<Self> {
        check_vocab_size(vocab_size, end_of_text)?;
        let words = in_alphabet(counts.finish(vocab_size));
        // The library allocates the vocabulary beforehand; a word has fewer merges than bytes.
        let max_merges: usize = words.keys().map(|word| word.chars().count()).sum();
        let trainer = BpeTrainer::builder()
            .show_progress(false)
            .progress_format(ProgressFormat::Silent)
            .min_frequency(2)
            .vocab_size(256 + max_merges.min(vocab_size - min_vocab_size(end_of_text)))
            .initial_alphabet(byte_alphabet::characters().into())
            .build();
        let (mut model, refused) = (BPE::default(), |error: &dyn std::fmt::Display| Error::Input(error.to_string()));
        trainer.do_train(&words, &mut model).map_err(|error| refused(&error))?;
        let learned = serde_json::to_value(&model).map_err(|error| refused(&error))?;
        let mut vocab: Vec<(String, u32)> = model.get_vocab().into_iter().collect();
        vocab.sort_unstable_by_key(|&(_, id)| id);
        JsonParts { vocab, model: json!({ "type": "BPE", "merges": learned["merges"] }), ..JsonParts::byte_level(true) }
            .assemble(end_of_text)
    }
}

/// Refuses impossible vocabulary sizes before any text is read.
pub(in crate::text) fn check_vocab_size(vocab_size: usize, end_of_text: bool) -> Result<()> {
    /// Four times the largest of published models.
    const MAX: usize = 1 << 20;
    let min = min_vocab_size(end_of_text);
    if !(min..=MAX).contains(&vocab_size) {
        let end = if end_of_text { " and the end of text" } else { "" };
        bail_option!("tokenizer", "expected a bpe of {min} (256 bytes{end}) to {MAX} tokens, got {vocab_size}");
    }
    Ok(())
}

fn min_vocab_size(end_of_text: bool) -> usize {
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
        let counts = [(" the", 1 << 40), (" a", 1 << 20), (" x", 5)].map(|(word, count)| (word.into(), count));
        let scaled = in_alphabet(AHashMap::from(counts));
        assert_eq!(scaled.len(), 2, "{scaled:?}");
        assert_eq!(scaled["Ġthe"] / scaled["Ġa"], 1 << 20);
        let pairs: u64 = scaled.iter().map(|(word, count)| word.chars().count() as u64 * count).sum();
        assert!((1 << 30..1 << 31).contains(&pairs), "{pairs}");
    }

    #[test]
    fn counts_that_fit_stay_as_they_are() {
        let scaled = in_alphabet(AHashMap::from([("\né".into(), 1 << 20), ("b".into(), 1)]));
        assert_eq!(scaled, AHashMap::from([("ĊÃ©".into(), 1 << 20), ("b".into(), 1)]));
    }
}
