//! The parts of the training loop: each does one thing, logs it and reports it.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use candle_core::{Error, Result};
use serde::Serialize;

use super::validation::Validated;
use super::{BadStep, Event, Outcome, Remedy, RunFolder, StepOutcome, StepReport, Trainer};
use crate::errors::bare;

/// A run of [`train`](super::train).
pub(super) struct Session<'a> {
    pub(super) trainer: &'a mut Trainer,
    folder: Option<&'a mut RunFolder>,
    on_event: &'a mut dyn FnMut(Event) -> ControlFlow<()>,
    /// Whether the listener has broken off.
    pub(super) interrupted: bool,
    /// The time that the last validation took.
    validation_time: Duration,
}

/// A failure, as it is logged.
#[derive(Serialize)]
struct Failure<'a> {
    step: u64,
    failed: &'a str,
}

impl<'a> Session<'a> {
    pub(super) fn begin(
        trainer: &'a mut Trainer,
        folder: Option<&'a mut RunFolder>,
        on_event: &'a mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Self> {
        let mut session = Self { trainer, folder, on_event, interrupted: false, validation_time: Duration::ZERO };
        if let Some(folder) = &mut session.folder {
            folder.begin(session.trainer)?;
            if let Some(best) = folder.take_lost_best() {
                session.tell(Event::BestLost(best));
            }
        }
        Ok(session)
    }

    pub(super) fn is_unfinished(&self) -> bool {
        self.trainer.step() < self.trainer.options().steps || self.trainer.validation_is_pending()
    }

    /// Whether this step ends with a checkpoint, after a validation if there is one.
    pub(super) fn checkpoint_is_due(&self) -> bool {
        let (step, options) = (self.trainer.step(), self.trainer.options());
        self.trainer.validation_is_pending() || step == options.steps || step.is_multiple_of(options.eval_every)
    }

    pub(super) fn has_validation(&self) -> bool {
        !self.trainer.corpus().validation.is_empty()
    }

    /// Makes the next step, or skips it.
    pub(super) fn step(&mut self) -> Result<()> {
        match self.trainer.next_step() {
            Ok(StepOutcome::Done(report)) => self.report_step(&report),
            Ok(StepOutcome::Skipped(bad)) => {
                self.log(&bad)?;
                self.tell(Event::Skipped(&bad));
                Ok(())
            }
            Ok(StepOutcome::Failed(bad)) => Err(self.fail_at(&bad)?),
            // As that of the gradient audit: nothing is wrong with the state before it.
            Err(error) => Err(self.fail(self.trainer.step() + 1, &bare(&error).to_string(), true)),
        }
    }

    fn report_step(&mut self, report: &StepReport) -> Result<()> {
        self.log(report)?;
        self.tell(Event::Step(report));
        if let Some(statistics) = self.trainer.statistics().cloned() {
            self.log(&statistics)?;
            self.tell(Event::Statistics(&statistics));
        }
        Ok(())
    }

    /// Validates; an interrupt leaves the validation pending.
    pub(super) fn validate(&mut self) -> Result<()> {
        let (begun, step) = (Instant::now(), self.trainer.step());
        let (mut done, batches) = (0, self.trainer.validation_batches());
        let Self { trainer, on_event, interrupted, .. } = self;
        let validated = trainer.attempt_validation(&mut || {
            *interrupted = *interrupted || on_event(Event::Validating { done, batches }).is_break();
            done += 1;
            if *interrupted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match validated {
            Ok(Validated::Done(report)) => {
                self.validation_time = begun.elapsed();
                self.log(&report)?;
                self.tell(Event::Validation(&report));
                Ok(())
            }
            Ok(Validated::BrokenOff) => Ok(()),
            // From this state a resumed run would come to the same validation.
            Ok(Validated::NotFinite(cause)) => Err(self.fail_diverged(step, &cause)),
            Err(error) => Err(self.fail(step, &bare(&error).to_string(), true)),
        }
    }

    /// Saves the current state, unless training has diverged: then it ends here, and the last checkpoint is the better
    /// one. A run that is complete and validated needs no next step.
    pub(super) fn save(&mut self) -> Result<()> {
        let step = self.trainer.step();
        let is_validated = self.has_validation() && !self.trainer.validation_is_pending();
        let is_complete = is_validated && step == self.trainer.options().steps;
        if self.folder.is_some()
            && !is_complete
            && let Some(cause) = self.trainer.divergence()?
        {
            return Err(self.fail_diverged(step, &cause));
        }
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        let Some(folder) = &mut self.folder else { return Ok(()) };
        let step = self.trainer.step();
        match folder.save(self.trainer) {
            Ok(()) => {
                self.tell(Event::Saved(step));
                Ok(())
            }
            Err(error) => Err(self.fail(step, &bare(&error).to_string(), false)),
        }
    }

    /// Saves if the last checkpoint is old.
    pub(super) fn save_on_time(&mut self) -> Result<()> {
        self.save_if_due_within(Duration::ZERO)
    }

    /// Saves the state before its validation if afterwards the last checkpoint would be old.
    pub(super) fn save_before_long_validation(&mut self) -> Result<()> {
        self.trainer.postpone_validation();
        // An interrupt saves anyway.
        if self.interrupted { Ok(()) } else { self.save_if_due_within(self.validation_time) }
    }

    /// Saves if the last checkpoint is old after another `time`, unless training has diverged, which the next step or
    /// validation will show.
    fn save_if_due_within(&mut self, time: Duration) -> Result<()> {
        let is_due = self.folder.as_ref().is_some_and(|folder| folder.is_save_due_within(time));
        if is_due && self.trainer.divergence()?.is_none() { self.write() } else { Ok(()) }
    }

    /// Reports, once, that loss plot and event file have been given up.
    pub(super) fn report_lost_charts(&mut self) {
        if let Some(error) = self.folder.as_mut().and_then(|folder| folder.take_charts_error()) {
            // A break here takes effect at the next event, after which there is a save.
            let _ = (self.on_event)(Event::ChartsLost(&error));
        }
    }

    /// Ends a run that is saved.
    pub(super) fn end(&mut self, outcome: Outcome) -> Result<Outcome> {
        match self.trainer.audit.conclude() {
            Ok(()) => Ok(outcome),
            Err(error) => Err(self.fail(self.trainer.step(), &bare(&error).to_string(), false)),
        }
    }

    fn log(&mut self, report: &impl Serialize) -> Result<()> {
        self.folder.as_mut().map_or(Ok(()), |folder| folder.log(report))
    }

    fn tell(&mut self, event: Event) {
        self.interrupted |= (self.on_event)(event).is_break();
    }

    /// The error of a bad step that ends the run.
    fn fail_at(&mut self, bad: &BadStep) -> Result<Error> {
        if self.trainer.divergence()?.is_some() {
            return Ok(self.fail_diverged(bad.step, &bad.to_string()));
        }
        let remedy = Remedy::SkipOrLowerRate;
        let error = self.fail(bad.step, &format!("{bad}; {remedy}"), true);
        self.tell(Event::Failed(remedy));
        Ok(error)
    }

    /// The error of a run that has diverged. Its state is not saved: nothing good could come of it.
    fn fail_diverged(&mut self, step: u64, cause: &str) -> Error {
        let saved = self.folder.as_ref().and_then(|folder| folder.saved_step());
        // Steps skipped since the checkpoint have changed nothing.
        let since = self.trainer.step().saturating_sub(self.trainer.counters().skipped_in_a_row);
        let remedy = if saved.is_some_and(|saved| saved >= since) { Remedy::StartAnew } else { Remedy::LowerRate };
        let error = self.fail(step, &format!("{cause}; {remedy}"), false);
        self.tell(Event::Failed(remedy));
        error
    }

    /// The error that ends the run, after logging it and, where that `saves`, the state before it. Each is attempted
    /// whatever becomes of the other.
    fn fail(&mut self, step: u64, cause: &str, saves: bool) -> Error {
        let mut message = cause.to_string();
        if let Err(error) = self.log(&Failure { step, failed: cause }) {
            message += &format!("; it cannot be logged: {}", bare(&error));
        }
        if let Some(folder) = self.folder.as_mut().filter(|_| saves) {
            match folder.save(self.trainer) {
                Ok(()) => self.tell(Event::Saved(self.trainer.step())),
                Err(error) => message += &format!("; the state before it cannot be saved: {}", bare(&error)),
            }
        }
        Error::Msg(message)
    }
}
