//! Learning a byte-level BPE from text.

use std::sync::mpsc::{Sender, channel};

use candle_core::{Error, Result, bail};
use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, ProgressFormat, Trainer};

use super::build::Parts;
use super::chunks::{CHUNK_LEN, check_words, chunks};
use super::{Tokenizer, byte_alphabet};

/// A pair of tokens is merged when it stands in the text at least this often: one seen once is a memory, not a rule.
const MIN_FREQUENCY: u64 = 2;

/// Far above any vocabulary, and as much as can be allocated beforehand.
const MOST_TOKENS: usize = 1 << 24;

/// How far [`Tokenizer::train_bpe`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BpeProgress {
    /// Words are being counted.
    Counting {
        /// Bytes of text taken so far.
        done: usize,
        /// Bytes of text in all.
        total: usize,
    },
    /// The words are counted, and merges are being learned; said once.
    Merging {
        /// Merges asked for.
        merges: usize,
    },
}

impl Tokenizer {
    /// A byte-level BPE as GPT-2's, learned from some texts: the 256 bytes, so that nothing is ever unknown, then
    /// merges of what often stands together, then with `end_of_text` the end of a document. The same texts give the
    /// same tokenizer.
    ///
    /// The vocabulary has `vocab_size` ids, or fewer where no further pair of tokens stands in the texts twice.
    ///
    /// # Errors
    /// A `vocab_size` that doesn't hold the 256 bytes and the end of text, or above 2^24; and a word of more than 2^16
    /// characters, whose merging takes time quadratic in them.
    pub fn train_bpe(
        texts: &[&str],
        vocab_size: usize,
        end_of_text: bool,
        progress: &mut dyn FnMut(BpeProgress),
    ) -> Result<Self> {
        let least = 256 + usize::from(end_of_text);
        if vocab_size < least {
            let end = if end_of_text { " and the end of text" } else { "" };
            bail!("expected a bpe vocabulary of at least {least} tokens (256 bytes{end}), got {vocab_size}");
        }
        if vocab_size > MOST_TOKENS {
            bail!("expected a bpe vocabulary of at most {MOST_TOKENS} tokens, got {vocab_size}");
        }
        for text in texts {
            check_words(text)?;
        }
        let mut trainer = BpeTrainer::builder()
            .show_progress(false)
            .progress_format(ProgressFormat::Silent)
            .min_frequency(MIN_FREQUENCY)
            .vocab_size(vocab_size - usize::from(end_of_text))
            .initial_alphabet(byte_alphabet::characters().into())
            .build();
        // The library takes the text on threads of its own, the callback stays on this one.
        let (sender, receiver) = channel();
        let model = std::thread::scope(|scope| {
            let learning = scope.spawn(|| learn(&mut trainer, texts, sender, vocab_size - least));
            receiver.iter().for_each(progress);
            learning.join().unwrap_or_else(|_| bail!("learning the merges failed"))
        })?;
        let learned = serde_json::to_value(&model).map_err(Error::wrap)?;
        let mut vocab: Vec<(String, u32)> = model.get_vocab().into_iter().collect();
        vocab.sort_unstable_by_key(|&(_, id)| id);
        Parts { vocab, model: json!({ "type": "BPE", "merges": learned["merges"] }), ..Parts::byte_level(true) }
            .assemble(end_of_text)
    }
}

fn learn(trainer: &mut BpeTrainer, texts: &[&str], sender: Sender<BpeProgress>, merges: usize) -> Result<BPE> {
    let total = texts.iter().map(|text| text.len()).sum();
    let mut done = 0;
    let counting = sender.clone();
    let counted = texts.iter().flat_map(|text| chunks(text, CHUNK_LEN)).inspect(move |chunk| {
        done += chunk.len();
        counting.send(BpeProgress::Counting { done, total }).ok(); // Nobody listens any more: nothing to tell.
    });
    trainer.feed(counted, words).map_err(Error::wrap)?;
    sender.send(BpeProgress::Merging { merges }).ok();
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(Error::wrap)?;
    Ok(model)
}

/// The words of a text, in GPT-2's alphabet.
fn words(text: &str) -> tokenizers::Result<Vec<String>> {
    let mut split = PreTokenizedString::from(text);
    ByteLevel::new(false, true, true).pre_tokenize(&mut split)?;
    let words = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
    Ok(words.into_iter().map(|(word, _, _)| word.to_owned()).collect())
}
