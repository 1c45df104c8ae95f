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
/// If a step or a validation fails, or a checkpoint cannot be written; the last checkpoint stays good. Before a bad step that
/// is not skipped ends the run, what was good is saved.
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
            interrupted = match trainer.next_step()? {
                StepOutcome::Done(report) => tell_step(trainer, &report, folder.as_deref_mut(), on_event)?,
                StepOutcome::Skipped(bad) => {
                    log(folder.as_deref_mut(), &bad)?;
                    on_event(Event::Skipped(&bad)).is_break()
                }
                StepOutcome::Failed(bad) => return save_before(trainer, &bad, folder),
            };
        }
        let step = trainer.step();
        let is_due = is_pending || step == steps || step.is_multiple_of(eval_every);
        if is_due && !trainer.corpus().validation.is_empty() {
            interrupted |= validate(trainer, folder.as_deref_mut(), interrupted, on_event)?;
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

/// Saves the state before a bad step, if it is sound, and gives the error that ends the run.
fn save_before(trainer: &Trainer, bad: &BadStep, folder: Option<&mut RunFolder>) -> Result<Outcome> {
    if let Some(folder) = folder
        && trainer.unsound_weight()?.is_none()
        && let Err(error) = folder.save(trainer)
    {
        bail!("{bad}; {}; the state before it cannot be saved: {}", BadStep::ADVICE, bare(&error));
    }
    bail!("{bad}; {}", BadStep::ADVICE)
}

/// Validates unless `interrupted`, and says whether the listener has broken off by now.
fn validate(
    trainer: &mut Trainer,
    folder: Option<&mut RunFolder>,
    mut interrupted: bool,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<bool> {
    let report = trainer.validate_while(&mut || match interrupted {
        true => ControlFlow::Break(()),
        false => {
            let flow = on_event(Event::Validating);
            interrupted = flow.is_break();
            flow
        }
    })?;
    let Some(report) = report else { return Ok(true) };
    log(folder, &report)?;
    Ok(on_event(Event::Validation(&report)).is_break())
}
