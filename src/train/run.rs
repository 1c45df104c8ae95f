//! The training loop.

use std::ops::ControlFlow;

use candle_core::{Error, Result, bail};
use serde::Serialize;

use super::{BadStep, RunFolder, StatisticsReport, StepOutcome, StepReport, Trainer, ValidationReport};
use crate::errors::bare;

/// What [`train`] tells while it runs.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A step is done.
    Step(&'a StepReport),
    /// A step was bad, and is left out.
    Skipped(&'a BadStep),
    /// What the last step did to each tensor.
    Statistics(&'a StatisticsReport),
    /// A batch of a validation is next: a long validation can be broken off here.
    Validating {
        /// Batches that are done, or in work beside each other.
        done: usize,
        /// Batches in all.
        batches: usize,
    },
    /// A pass over the validation part is done.
    Validation(&'a ValidationReport),
    /// A checkpoint of this step is safe on disk.
    Saved(u64),
    /// Loss plot and event file can no longer be written; training goes on without them.
    ChartsLost(&'a Error),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// The validation loss has not become lower for as long as the options have patience; the run is saved.
    StoppedEarly,
    /// The listener broke off; the run can be resumed.
    Interrupted,
}

/// Trains up to the last step of the options, with a validation, where the corpus has a part for it, and a checkpoint every
/// `eval_every` steps and at the end, and a checkpoint alone where [some minutes](RunFolder::save_every) have passed without
/// one. `on_event` hears of everything, and may break off at any time: the step is finished and saved, a validation is left
/// for whoever resumes.
///
/// # Errors
/// If a step or a validation fails, or a checkpoint cannot be written; the last checkpoint stays good. Before a failure ends
/// the run, it is told in the metrics, and what was good is saved. A state is good where the step after it is: from another,
/// who resumes would come to that step again, whatever the rate.
pub fn train(
    trainer: &mut Trainer,
    mut folder: Option<&mut RunFolder>,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Outcome> {
    let (steps, eval_every) = (trainer.options().steps, trainer.options().eval_every);
    if let Some(folder) = &mut folder {
        folder.begin(trainer)?;
    }
    while trainer.step() < steps || trainer.validation_is_pending() {
        let mut interrupted = false;
        let is_pending = trainer.validation_is_pending();
        if !is_pending {
            if trainer.is_out_of_patience() {
                return Ok(Outcome::StoppedEarly);
            }
            interrupted = match trainer.next_step() {
                Ok(StepOutcome::Done(report)) => tell_step(trainer, &report, folder.as_deref_mut(), on_event)?,
                Ok(StepOutcome::Skipped(bad)) => {
                    log(folder.as_deref_mut(), &bad)?;
                    on_event(Event::Skipped(&bad)).is_break()
                }
                Ok(StepOutcome::Failed(bad)) => return fail_at(&bad, folder),
                Err(error) => return save_before(trainer, trainer.step() + 1, &error, folder, on_event),
            };
        }
        let step = trainer.step();
        let is_due = is_pending || step == steps || step.is_multiple_of(eval_every);
        if is_due && !trainer.corpus().validation.is_empty() {
            interrupted |= match validate(trainer, interrupted, on_event) {
                Ok(Some(report)) => {
                    log(folder.as_deref_mut(), &report)?;
                    on_event(Event::Validation(&report)).is_break()
                }
                Ok(None) => true,
                Err(error) => return save_before(trainer, step, &error, folder, on_event),
            };
        }
        if let Some(folder) = folder.as_deref_mut()
            && (is_due || interrupted || folder.is_save_due())
        {
            let is_last = interrupted || step == steps;
            match bad_ahead(trainer) {
                Some(bad) if is_last || !trainer.may_skip()? => return fail_at(&bad, Some(folder)),
                // It is skipped, and what comes then decides.
                Some(_) => {}
                None => {
                    folder.save(trainer)?;
                    interrupted |= on_event(Event::Saved(step)).is_break();
                }
            }
        }
        if let Some(error) = folder.as_mut().and_then(|folder| folder.take_charts_error()) {
            // Who breaks off here is heard at the next step, which is saved.
            let _ = on_event(Event::ChartsLost(&error));
        }
        if interrupted && (step < steps || trainer.validation_is_pending()) {
            return Ok(Outcome::Interrupted);
        }
    }
    // Where steps were skipped, there were fewer to look at than it waits for.
    trainer.audit.conclude()?;
    Ok(Outcome::Finished)
}

/// The next step, where it is a reason not to save what stands before it: it is bad, and cannot be skipped or, as no sequence
/// of it is good, is not worth skipping.
fn bad_ahead(trainer: &Trainer) -> Option<BadStep> {
    // A run is done with a validation, and needs no next step.
    if trainer.step() == trainer.options().steps && !trainer.corpus().validation.is_empty() {
        return None;
    }
    // An error is that step's to tell.
    let bad = trainer.foresee().ok().flatten()?;
    let may_skip = trainer.may_skip().is_ok_and(|may_skip| may_skip);
    (bad.is_everywhere() || !may_skip).then_some(bad)
}

fn log(folder: Option<&mut RunFolder>, report: &impl Serialize) -> Result<()> {
    folder.map_or(Ok(()), |folder| folder.log(report))
}

/// Logs a step and tells of it; gives whether the listener broke off.
fn tell_step(
    trainer: &Trainer,
    report: &StepReport,
    mut folder: Option<&mut RunFolder>,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<bool> {
    log(folder.as_deref_mut(), report)?;
    let mut interrupted = on_event(Event::Step(report)).is_break();
    if let Some(statistics) = trainer.statistics() {
        log(folder, statistics)?;
        interrupted |= on_event(Event::Statistics(statistics)).is_break();
    }
    Ok(interrupted)
}

/// Tells of the bad step that ends the run. Nothing is saved: from what stands before it, nobody could go on.
fn fail_at(bad: &BadStep, folder: Option<&mut RunFolder>) -> Result<Outcome> {
    let failure = format!("{bad}; {}", BadStep::ADVICE);
    log_failure(folder, bad.step, &failure)?;
    bail!("{failure}")
}

/// Saves the state before a failure, if it is good, and gives the error that ends the run.
fn save_before(
    trainer: &Trainer,
    step: u64,
    error: &Error,
    mut folder: Option<&mut RunFolder>,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Outcome> {
    let failure = bare(error).to_string();
    let is_good = trainer.unsound_weight()?.is_none() && bad_ahead(trainer).is_none();
    // Where nothing is saved it is cut off with the steps that are made again.
    log_failure(folder.as_deref_mut(), step, &failure)?;
    if let Some(folder) = folder.filter(|_| is_good) {
        if let Err(error) = folder.save(trainer) {
            bail!("{failure}; the state before it cannot be saved: {}", bare(&error));
        }
        let _ = on_event(Event::Saved(trainer.step()));
    }
    bail!("{failure}")
}

fn log_failure(folder: Option<&mut RunFolder>, step: u64, failure: &str) -> Result<()> {
    #[derive(Serialize)]
    struct Failure<'a> {
        step: u64,
        failed: &'a str,
    }
    match log(folder, &Failure { step, failed: failure }) {
        Err(error) => bail!("{failure}; it cannot be told in the metrics: {}", bare(&error)),
        Ok(()) => Ok(()),
    }
}

/// Validates unless `interrupted`; there is no report where the listener has broken off.
fn validate(
    trainer: &mut Trainer,
    mut interrupted: bool,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Option<ValidationReport>> {
    let (mut done, batches) = (0, trainer.validation_batches());
    trainer.validate_while(&mut || match interrupted {
        true => ControlFlow::Break(()),
        false => {
            let flow = on_event(Event::Validating { done, batches });
            interrupted = flow.is_break();
            done += 1;
            flow
        }
    })
}
