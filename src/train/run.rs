//! The training loop.

use std::ops::ControlFlow;

use candle_core::{Error, Result};

use super::{RunFolder, StepReport, Trainer, ValidationReport};

/// What [`train`] tells while it runs.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A step is done.
    Step(&'a StepReport),
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
    /// The listener broke off; the run can be resumed.
    Interrupted,
}

/// Trains up to the last step of the options, with a validation, where the corpus has a part for it, and a checkpoint every
/// `eval_every` steps and at the end. `on_event` hears of everything, and may break off at any time: the step is finished
/// and saved, a validation is left for whoever resumes.
///
/// # Errors
/// If a step or a validation fails, or a checkpoint cannot be written; the last checkpoint stays good.
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
        let mut is_due = trainer.validation_is_pending();
        if !is_due {
            let report = trainer.train_step()?;
            if let Some(folder) = &mut folder {
                folder.log(&report)?;
            }
            interrupted = on_event(Event::Step(&report)).is_break();
            is_due = report.step == steps || report.step.is_multiple_of(eval_every);
        }
        if is_due && !trainer.corpus().validation.is_empty() {
            interrupted |= validate(trainer, folder.as_deref_mut(), interrupted, on_event)?;
        }
        if (is_due || interrupted)
            && let Some(folder) = &mut folder
        {
            folder.save(trainer)?;
            interrupted |= on_event(Event::Saved(trainer.step())).is_break();
        }
        if let Some(error) = folder.as_mut().and_then(|folder| folder.take_charts_error()) {
            // Who breaks off here is heard at the next step, which is saved.
            let _ = on_event(Event::ChartsLost(&error));
        }
        if interrupted && (trainer.step() < steps || trainer.validation_is_pending()) {
            return Ok(Outcome::Interrupted);
        }
    }
    Ok(Outcome::Finished)
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
    if let Some(folder) = folder {
        folder.log(&report)?;
    }
    Ok(on_event(Event::Validation(&report)).is_break())
}
