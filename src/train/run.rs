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
    Validating,
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
/// `eval_every` steps and at the end. `on_event` hears of everything, and may break off at any time: the step is finished
/// and saved, a validation is left for whoever resumes.
///
/// # Errors
/// If a step or a validation fails, or a checkpoint cannot be written; the last checkpoint stays good. Before a failure ends
/// the run, it is told in the metrics, and what was good is saved.
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
                Ok(StepOutcome::Failed(bad)) => {
                    let failure = format!("{bad}; {}", BadStep::ADVICE);
                    return save_before(trainer, trainer.step() + 1, &failure, folder);
                }
                Err(error) => return save_before(trainer, trainer.step() + 1, &bare(&error).to_string(), folder),
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
                Err(error) => return save_before(trainer, step, &bare(&error).to_string(), folder),
            };
        }
        if (is_due || interrupted)
            && let Some(folder) = &mut folder
        {
            folder.save(trainer)?;
            interrupted |= on_event(Event::Saved(step)).is_break();
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

/// Saves the state before a failure, if it is sound, and gives the error that ends the run.
fn save_before(trainer: &Trainer, step: u64, failure: &str, folder: Option<&mut RunFolder>) -> Result<Outcome> {
    #[derive(Serialize)]
    struct Failure<'a> {
        step: u64,
        failed: &'a str,
    }
    if let Some(folder) = folder {
        let is_sound = trainer.unsound_weight()?.is_none();
        // Where nothing is saved it is cut off with the steps that are made again.
        let told = folder.log(&Failure { step, failed: failure });
        if let Err(error) = told.and_then(|()| if is_sound { folder.save(trainer) } else { Ok(()) }) {
            bail!("{failure}; the state before it cannot be saved: {}", bare(&error));
        }
    }
    bail!("{failure}")
}

/// Validates unless `interrupted`; there is no report where the listener has broken off.
fn validate(
    trainer: &mut Trainer,
    mut interrupted: bool,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Option<ValidationReport>> {
    trainer.validate_while(&mut || match interrupted {
        true => ControlFlow::Break(()),
        false => {
            let flow = on_event(Event::Validating);
            interrupted = flow.is_break();
            flow
        }
    })
}
