//! From text to batches of token ids: a tokenizer, a corpus split into training and validation ids, and windows over
//! them. This layer knows nothing about models.
//!
//! ```
//! use candle_attention::text::{BatchSampler, Document, IdsStore, TextOptions, TokenizerChoice, Validation, prepare};
//! use candle_core::Device;
//!
//! # fn main() -> candle_attention::Result<()> {
//! let documents = [Document::new("poem", "roses are red\n".repeat(20))];
//! let choice: TokenizerChoice = "char".parse()?;
//! let (validation, options) = (Validation::Fraction(0.1), TextOptions::default());
//! let (tokenizer, corpus) = prepare(&documents, &validation, &choice, options, IdsStore::Temporary, &mut |_| {})?;
//! assert_eq!(tokenizer.vocab_size(), "\n adeors".len());
//!
//! let sampler = BatchSampler::new(1, 3, 8);
//! let batch = sampler.batch(&corpus.train, 0, &Device::Cpu)?;
//! assert_eq!(batch.inputs.dims(), [3, 8]); // (B, T)
//! # Ok(())
//! # }
//! ```

mod batches;
mod chat_template;
mod chunks;
mod conversations;
mod corpus;
mod document;
mod encode;
mod encode_error;
mod files;
mod ids;
mod ids_file;
mod permutation;
mod prepare;
mod reader;
mod split;
mod tokenizer;
mod utf;

pub use batches::{Batch, BatchSampler, windows};
pub use chat_template::{ChatTemplate, Message};
pub use conversations::needed_chat_template;
pub use corpus::{Corpus, Remarks};
pub use document::Document;
pub use encode::{TextOptions, encode};
pub use files::Files;
pub use ids::Ids;
pub use ids_file::IdsStore;
pub use prepare::{Stage, TextProgress, TokenizerChoice, prepare};
pub use split::Validation;
pub use tokenizer::{GgufTokens, TextStream, Tokenizer, hide_caught_panics};
