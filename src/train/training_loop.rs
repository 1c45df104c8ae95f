//! The training loop.

use std::ops::ControlFlow;
use std::time::Instant;

use super::metrics::Line;
use super::pace::Pace;
use super::{RunDir, StepReport, Trainer, ValidationReport};
use crate::host::Result;

/// What [`train`] reports while it runs.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A step is done.
    Step(&'a StepReport),
    /// The next batch of a validation is about to start: a long validation can be broken off here.
    Validating {
        /// Tokens that are done or in progress.
        done: usize,
        /// Tokens in total.
        total: usize,
    },
    /// A pass over the validation part is done.
    Validation(&'a ValidationReport),
    /// A checkpoint of this step is safe on disk.
    Saved(u64),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// The validation loss has not improved for as long as the options' patience.
    StoppedEarly,
    /// The listener broke off; the run can be resumed.
    Interrupted,
}

/// Trains up to the last step of the options. At the end and at intervals before that it validates, if the corpus has a
/// validation part, and saves a checkpoint; in between it saves one after the minutes of `save_every`. `on_event` is
/// called for every event and may stop the run at any time: the step is finished and saved, a validation is left to the
/// next session.
///
/// Where the options have `minutes`, these decide when the decay begins, counted from the creation of `run` over all its
/// sessions, or without it from now on. The number of steps is settled then, in the options and in the run's settings, which
/// repeat the run exactly.
///
/// # Errors
/// If a step or a validation fails, or a checkpoint cannot be written. A failing run saves nothing: the last checkpoint
/// stands, and [`resume`](super::resume) goes on from it, with a lower rate if the run has diverged.
pub fn train(
    trainer: &mut Trainer,
    mut run: Option<&mut RunDir>,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Outcome> {
    let (mut pace, mut stop) = (Pace::new(), false);
    loop {
        let turn = Instant::now();
        // Before the first step too, for a run that was interrupted in a validation.
        let (step, is_due) = (trainer.steps_done(), trainer.validation_is_due());
        if is_due {
            stop |= validate(trainer, &mut run, on_event)?.is_break();
        }
        run.as_ref().map_or(Ok(()), |run| run.watch(trainer))?;
        // A run that fails saves nothing.
        let is_over = trainer.is_finished() || trainer.is_out_of_patience();
        if is_over {
            trainer.state.audit.conclude()?;
        }
        // After the validation, so that the checkpoint knows of it.
        if let Some(run) = &mut run
            && (is_due || stop || run.is_save_due(trainer))
        {
            run.save(trainer)?;
            stop |= on_event(Event::Saved(step)).is_break();
        }
        if is_over {
            return Ok(if trainer.is_finished() { Outcome::Finished } else { Outcome::StoppedEarly });
        }
        if stop {
            return Ok(Outcome::Interrupted);
        }
        if pace.seconds_left(trainer, run.as_deref()).is_some_and(|left| pace.decay_is_due(trainer, left)) {
            trainer.begin_decay();
            run.as_mut().map_or(Ok(()), |run| run.settle(trainer))?;
            // A decay of no steps ends the run here.
            continue;
        }
        let begun = if is_due { Instant::now() } else { turn };
        if is_due {
            pace.validated(begun - turn);
        }
        let batch = trainer.next_batch()?;
        let mut report = trainer.step(&batch)?;
        if let Some(left) = pace.seconds_left(trainer, run.as_deref()) {
            report.steps = pace.expected_steps(trainer, left);
        }
        run.as_mut().map_or(Ok(()), |run| run.log(Line::of_step(&report)))?;
        stop |= on_event(Event::Step(&report)).is_break();
        pace.stepped(begun.elapsed());
    }
}

/// Validates, if there is something to validate on; says whether to stop.
fn validate(
    trainer: &mut Trainer,
    run: &mut Option<&mut RunDir>,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    if trainer.corpus().validation.is_empty() {
        trainer.state.validated = trainer.steps_done();
        return Ok(ControlFlow::Continue(()));
    }
    let report = trainer.validate(&mut |done, total| on_event(Event::Validating { done, total }))?;
    let Some(report) = report else { return Ok(ControlFlow::Break(())) };
    run.as_mut().map_or(Ok(()), |run| run.log(Line::of_validation(&report)))?;
    Ok(on_event(Event::Validation(&report)))
}
