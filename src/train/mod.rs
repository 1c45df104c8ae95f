//! From a corpus and a configuration to a trained model in a run folder.
//!
//! A [`Trainer`] holds the model, the optimizer and the data and makes one step at a time; [`train`] is the loop around
//! it; a [`RunFolder`] keeps the checkpoints and metrics.

mod average;
mod backward;
mod bounds;
mod checkpoint;
mod counters;
#[cfg(test)]
mod crash_tests;
mod fit;
mod folder;
mod forecast;
mod generations;
mod gradients;
mod inputs;
mod lock;
mod new_folder;
mod optimizer;
mod options;
mod overfit;
mod ramp;
mod run;
mod schedule;
mod session;
mod space;
mod statistics;
mod step;
mod trainer;
mod validation;

pub use checkpoint::{Best, Checkpoint, TrainState};
pub use counters::Counters;
pub use folder::RunFolder;
pub use forecast::Forecast;
pub use gradients::{GradientAudit, Gradients};
pub use new_folder::remove_unfinished_runs;
pub use optimizer::{FIRST_MOMENTUM, Optimizer, OptimizerKind};
pub use options::TrainOptions;
pub use overfit::{OverfitReport, overfit_one_batch};
pub use ramp::Ramp;
pub use run::{Event, Outcome, Remedy, train};
pub use schedule::Schedule;
pub use statistics::{StatisticsReport, TensorStatistics};
pub use step::{BadStep, StepOutcome, StepReport};
pub use trainer::Trainer;
pub use validation::{VALIDATION_BATCH_TOKENS, ValidationReport};
