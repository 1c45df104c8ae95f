//! The training loop.

use std::ops::ControlFlow;
use std::time::Instant;

use super::metrics::Line;
use super::pace::Pace;
use super::{RunDir, StepReport, Trainer, ValidationReport};
use crate::host::Result;
use crate::processes::Processes;

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
/// Of several processes ([`Trainer::divide`]) each calls this, the first with the run's folder, if there is one. Each may stop
/// the run, after the same step; a validation is then finished.
///
/// # Errors
/// If a step or a validation fails, or a checkpoint cannot be written. A failing run saves nothing: the last checkpoint
/// stands, and [`resume`](super::resume) goes on from it, with a lower rate if the run has diverged.
pub fn train(
    trainer: &mut Trainer,
    mut run: Option<&mut RunDir>,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<Outcome> {
    let (mut pace, mut stop) = (Pace::new(trainer.options()), false);
    loop {
        let turn = Instant::now();
        // Before the first step too, for a run that was interrupted in a validation.
        let is_due = trainer.validation_is_due();
        if is_due {
            stop |= validate(trainer, &mut run, on_event)?.is_break();
        }
        run.as_ref().map_or(Ok(()), |run| run.watch(trainer))?;
        // A run that fails saves nothing.
        let is_over = trainer.is_finished() || trainer.is_out_of_patience();
        if is_over {
            trainer.state.audit.conclude()?;
        }
        let saves = is_due || run.as_ref().is_some_and(|run| run.is_save_due(trainer));
        let decay = pace.decay_now(trainer, run.as_deref());
        let own = Turn { stop, saves, decay, has_run: run.is_some() };
        let mut all = own.agreed(trainer.processes())?;
        // After the validation, so that the checkpoint knows of it.
        if all.has_run && (all.saves || all.stop) {
            all.stop |= save(trainer, &mut run, on_event)?.is_break();
            // It has taken time.
            all.decay = pace.decay_now(trainer, run.as_deref());
            all = all.agreed(trainer.processes())?;
        }
        stop = all.stop;
        if is_over {
            return Ok(if trainer.is_finished() { Outcome::Finished } else { Outcome::StoppedEarly });
        }
        if stop {
            return Ok(Outcome::Interrupted);
        }
        if let Some(steps) = all.decay {
            trainer.begin_decay(steps);
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

/// What to do in a turn.
#[derive(Clone, Copy)]
struct Turn {
    stop: bool,
    /// Whether a checkpoint is due.
    saves: bool,
    /// The steps of the decay, if it begins now.
    decay: Option<u64>,
    /// Whether there is a folder to save it in.
    has_run: bool,
}

impl Turn {
    /// What all processes do: stop, if one of them wants to, and else what the first says, whose clock counts and which has the
    /// run's folder.
    fn agreed(self, processes: &dyn Processes) -> Result<Self> {
        let mut own = [0; 12];
        let (flags, steps) = own.split_at_mut(4);
        flags.copy_from_slice(&[self.stop, self.saves, self.has_run, self.decay.is_some()].map(u8::from));
        steps.copy_from_slice(&self.decay.unwrap_or_default().to_le_bytes());
        let mut all = vec![[0; 12]; processes.count()];
        processes.all_gather(&own, all.as_flattened_mut(), &vec![own.len(); processes.count()])?;
        let [_, saves, has_run, decays, steps @ ..] = all[0];
        Ok(Self {
            stop: all.iter().any(|[stop, ..]| *stop > 0),
            saves: saves > 0,
            decay: (decays > 0).then_some(u64::from_le_bytes(steps)),
            has_run: has_run > 0,
        })
    }
}

/// Saves a checkpoint in the folder of the run; a process that has none gives its part to the first. Says whether to stop.
fn save(
    trainer: &mut Trainer,
    run: &mut Option<&mut RunDir>,
    on_event: &mut dyn FnMut(Event) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    let Some(run) = run else {
        drop(trainer.tensors()?);
        return Ok(ControlFlow::Continue(()));
    };
    run.save(trainer)?;
    Ok(on_event(Event::Saved(trainer.steps_done())))
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
    let mut stop = false;
    let report = trainer.validate(&mut |done, total| {
        let flow = on_event(Event::Validating { done, total });
        stop |= flow.is_break();
        flow
    })?;
    let Some(report) = report else { return Ok(ControlFlow::Break(())) };
    run.as_mut().map_or(Ok(()), |run| run.log(Line::of_validation(&report)))?;
    stop |= on_event(Event::Validation(&report)).is_break();
    Ok(if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
}
