//! From a corpus and a configuration to a trained model in a run's folder.
//!
//! A [`Trainer`] holds the model, the optimizer and the data, and makes one step at a time; [`train`] is the loop around
//! it; a [`RunDir`] keeps checkpoints and metrics; [`resume`] goes on from them.
//!
//! ```
//! use candle_attention::{model::ModelConfig, text, train};
//! use candle_core::Device;
//! use std::ops::ControlFlow;
//!
//! # fn main() -> candle_attention::Result<()> {
//! let documents = [text::Document::new("poem", "roses are red, violets are blue\n".repeat(20))];
//! let validation = text::Validation::Fraction(0.1);
//! let (tokenizer, corpus) =
//!     text::prepare(&documents, &validation, &"char".parse()?, Default::default(), text::IdsStore::Temporary, &mut |_| {})?;
//! let config = ModelConfig { context_len: 16, embed_dim: 16, num_layers: 1, ..ModelConfig::gpt2(tokenizer.vocab_size()) };
//! let options = train::TrainOptions { steps: 4, batch: 3, ..Default::default() };
//! let mut trainer = train::Trainer::new(&config, &options, corpus, &Device::Cpu)?;
//! let outcome = train::train(&mut trainer, None, &mut |_| ControlFlow::Continue(()))?;
//! assert_eq!((outcome, trainer.steps_done()), (train::Outcome::Finished, 4));
//! # Ok(())
//! # }
//! ```

mod audit;
mod average;
mod checkpoint;
mod divide;
mod evaluate;
mod frozen_base;
mod gradients;
mod join;
mod kept;
mod latest;
mod memory_needed;
pub mod metrics;
mod model_card;
mod one_batch;
mod ownership;
mod pace;
mod part;
mod resume;
mod run_dir;
mod run_start;
mod settings_file;
mod statistics;
mod train_options;
mod trainer;
mod training_loop;
mod watch;

pub use divide::agree;
pub use evaluate::{Evaluation, bits_per_byte, evaluate};
pub use frozen_base::FrozenBase;
pub use join::{join, lead};
pub use kept::{best_of, kept_model, kept_steps, watched_map, watched_steps};
pub use memory_needed::memory_needed;
pub use one_batch::{OverfitReport, overfit_one_batch};
pub use resume::{resume, resume_on};
pub use run_dir::{Best, RunDir};
pub use run_start::{first_batch, gradients, initial_weights};
pub use settings_file::{CHANGE_THE_RESULT, KEEP_THE_RESULT};
pub use statistics::TensorStatistics;
pub use train_options::{OptimizerKind, Precision, TrainOptions};
pub use trainer::{StepReport, Trainer, ValidationReport};
pub use training_loop::{Event, Outcome, train};
pub use watch::watch_bytes;

#[cfg(test)]
mod crash_tests;
