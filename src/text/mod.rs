//! From text to batches of token ids: a tokenizer, a corpus in two parts, windows over it. This floor knows no model.
//!
//! ```
//! use candle_attention::text::{BatchSampler, Document, TokenizerChoice, Validation, prepare};
//!
//! # fn main() -> candle_core::Result<()> {
//! let documents = [Document { name: "poem".into(), bytes: "roses are red\n".repeat(20).into_bytes() }];
//! let choice: TokenizerChoice = "char".parse()?;
//! let (tokenizer, corpus) = prepare(&documents, &Validation::Fraction(0.1), &choice, 8, &mut |_| {})?;
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
mod tokenizer;

pub use batches::{Batch, BatchSampler, Rest, windows};
pub use choice::{TokenizerChoice, prepare};
pub use corpus::{Corpus, Validation};
pub use document::Document;
pub use tokenizer::{BpeProgress, TextStream, Tokenizer};
