//! From text to batches of token ids: a tokenizer, a corpus split into training and validation ids, and windows over
//! them. This layer knows nothing about models.
//!
//! ```
//! use candle_attention::text::{BatchSampler, CorpusOptions, Document, TokenizerChoice, Validation, prepare};
//!
//! # fn main() -> candle_core::Result<()> {
//! let documents = [Document::new("poem", "roses are red\n".repeat(20))];
//! let choice: TokenizerChoice = "char".parse()?;
//! let options = CorpusOptions::in_memory(8);
//! let (tokenizer, corpus) = prepare(&documents, &Validation::Fraction(0.1), &choice, &options, &mut |_| {})?;
//! assert_eq!(tokenizer.vocab_size(), "\n adeors".len());
//!
//! let sampler = BatchSampler { seed: 1, batch_size: 3, context_len: 8 };
//! let batch = sampler.batch(&corpus.train, 0)?;
//! let inputs = batch.inputs_tensor(&candle_core::Device::Cpu)?; // (B, T)
//! assert_eq!(inputs.dims(), [3, 8]);
//! # Ok(())
//! # }
//! ```

mod batches;
mod choice;
mod corpus;
mod document;
mod encode;
mod files;
mod fingerprint;
mod ids;
mod ids_file;
mod ids_writer;
mod parts;
mod pieces;
mod progress;
mod tokenizer;
mod verified_cuts;

pub use batches::{Batch, BatchSampler, Rest, windows};
pub use choice::{TokenizerChoice, prepare};
pub use corpus::{Corpus, CorpusOptions, Separator, Spill, Validation};
pub use document::Document;
pub use files::{Files, SkippedFiles};
pub use ids::{Ids, remove_temporary_files};
pub use progress::TextProgress;
pub use tokenizer::{TextStream, Tokenizer, hide_caught_panics};
