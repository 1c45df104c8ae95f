//! From a corpus and a configuration to a trained model in a run folder.
//!
//! A [`Trainer`] holds the model, the optimizer and the data, and makes one step at a time; [`train`] is the loop
//! around it; a [`RunFolder`] keeps its checkpoints and metrics.

mod adamw;
mod backward;
mod checkpoint;
#[cfg(test)]
mod crash_tests;
mod folder;
mod generations;
mod gradients;
mod options;
mod run;
mod trainer;

pub use adamw::AdamW;
pub use checkpoint::{Best, Checkpoint, TrainState};
pub use folder::RunFolder;
pub use gradients::{GradientAudit, Gradients};
pub use options::TrainOptions;
pub use run::{Event, Outcome, train};
pub use trainer::{StepReport, Trainer, ValidationReport};
