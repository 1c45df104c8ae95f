//! The training loop.

use std::fmt;
use std::ops::ControlFlow;

use candle_core::{Error, Result};

use super::session::Session;
use super::{BadStep, Best, RunFolder, StatisticsReport, StepReport, Trainer, ValidationReport};

/// What [`train`] reports while it runs.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A step is done.
    Step(&'a StepReport),
    /// A step was bad and is skipped.
    Skipped(&'a BadStep),
    /// The norms of every tensor at the last step.
    Statistics(&'a StatisticsReport),
    /// The next batch of a validation is about to start: a long validation can be broken off here.
    Validating {
        /// Batches that are done or in progress.
        done: usize,
        /// Batches in total.
        batches: usize,
    },
    /// A pass over the validation part is done.
    Validation(&'a ValidationReport),
    /// A checkpoint of this step is safe on disk.
    Saved(u64),
    /// The weights of the best model of the earlier sessions are lost; the current ones have taken their place.
    BestLost(Best),
    /// Loss plot and event file can no longer be written; training goes on without them.
    ChartsLost(&'a Error),
    /// Training is about to fail because of a loss, a gradient or a weight that is not finite.
    Failed(Remedy),
}

/// What may help after a loss, a gradient or a weight that is not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// At most half of the batch is bad, so the data is at fault: resume with `skip_bad_steps` or a lower learning
    /// rate.
    SkipOrLowerRate,
    /// Training has diverged since the last checkpoint: resume from it with a lower learning rate.
    LowerRate,
    /// Training has diverged, and nothing has been learned since the last checkpoint: start a new run with a lower
    /// learning rate, from the best weights or from scratch.
    StartAnew,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SkipOrLowerRate => "skip_bad_steps leaves such batches out, and a lower learning rate may avoid them",
            Self::LowerRate => "training has diverged, and a lower learning rate may help",
            Self::StartAnew => {
                "training cannot go on from the last checkpoint either: start a new run with a lower learning rate"
            }
        })
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// The validation loss has not improved for as long as the options' patience; the run is saved.
    StoppedEarly,
    /// The listener broke off; the run can be resumed.
    Interrupted,
}

/// Trains up to the last step of the options. Every `eval_every` steps and at the end it validates, if the corpus has a
/// validation part, and saves a checkpoint; in between it saves one after [some minutes](RunFolder::set_save_interval)
/// without. `on_event` is told everything, and may break off at any time: the step is finished and saved, a validation
/// is left to the next session.
///
/// # Errors
/// If a step or a validation fails, or a checkpoint cannot be written; the last checkpoint stays intact. The failure is
/// logged in the metrics. Before a bad step with at most half of its batch bad, and before any other error of a step, the
/// state is saved. It is not saved if training has diverged (most sequences of the next batches are bad, their gradients
/// are all zero, or a weight or the validation loss is not finite): resuming from there would fail again, whatever the
/// learning rate. [`Event::Failed`] says what may help. That is looked at before each checkpoint, at the cost of a
/// step, so an interrupted run that has diverged fails instead of replacing a good checkpoint.
pub fn train(
    trainer: &mut Trainer,
    folder: Option<&mut RunFolder>,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Outcome> {
    let mut session = Session::begin(trainer, folder, on_event)?;
    while session.is_unfinished() {
        if !session.trainer.validation_is_pending() {
            if session.trainer.is_out_of_patience() {
                return session.end(Outcome::StoppedEarly);
            }
            session.step()?;
        }
        if session.checkpoint_is_due() {
            if session.has_validation() {
                session.save_before_long_validation()?;
                session.validate()?;
            }
            session.save()?;
        } else if session.interrupted {
            session.save()?;
        } else {
            session.save_on_time()?;
        }
        session.report_lost_charts();
        if session.interrupted && session.is_unfinished() {
            return Ok(Outcome::Interrupted);
        }
    }
    session.end(Outcome::Finished)
}
