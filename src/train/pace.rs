//! How fast a run goes, which decides when its decay begins if the run has to end at a certain time.
//!
//! With `s` seconds left, `t` seconds for a step and `v` for a validation and its checkpoint, one every `e` steps and one at
//! the end, the decay of `d` steps begins after the last step `b` that leaves time for it: the first for which one more step
//! before it would not fit,
//!
//! ```text
//! (d + 1) t + (ceil((b + d + 1) / e) - floor(b / e)) v > s
//! ```
//!
//! `t` is the mean over the session, the best guess where a machine is only noisy. Where steps have become slower, or the time is
//! gone, a decay at the latest pace would end far too late: then it takes the steps that fit into what is left or, if that
//! is more, into a part of the run's time.

use std::mem;
use std::time::{Duration, Instant};

use super::{RunDir, TrainOptions, Trainer};

/// How much longer than its minutes a run may take before its decay becomes shorter than planned; a fraction of them.
const MAX_EXCESS: f64 = 0.05;

/// The part of the run's time that a decay has at least, if it needs that.
const MIN_DECAY: f64 = 0.3;

/// The part of the run's time that tells the latest pace: less is noise, and more sees a change too late.
const LATEST: f64 = 0.05;

/// A new run of so few steps goes by its plan: it has to end before two of them tell the pace.
const FEW: u64 = 3;

/// The mean times of this session.
pub(super) struct Pace {
    begun: Instant,
    step: SettledMean,
    /// Of the steps in the last whole [`LATEST`] part of the run's time, and in the part since then.
    latest: [Mean; 2],
    /// How long that part is.
    part: Duration,
    validation: SettledMean,
}

#[derive(Default)]
struct Mean {
    sum: Duration,
    count: u32,
}

/// A mean without the first duration, unless that is all there is: the first of a session says little, as memory is still to be
/// had and caches are cold.
#[derive(Default)]
struct SettledMean {
    first: Option<Duration>,
    rest: Mean,
}

impl Mean {
    fn add(&mut self, duration: Duration) {
        self.sum += duration;
        self.count += 1;
    }

    fn seconds(&self) -> Option<f64> {
        self.sum.checked_div(self.count).map(|mean| mean.as_secs_f64())
    }
}

impl SettledMean {
    fn add(&mut self, duration: Duration) {
        match self.first {
            None => self.first = Some(duration),
            Some(_) => self.rest.add(duration),
        }
    }

    fn seconds(&self) -> Option<f64> {
        self.rest.seconds().or(self.first.map(|first| first.as_secs_f64()))
    }
}

impl Pace {
    /// Of a session that begins now.
    pub(super) fn new(options: &TrainOptions) -> Self {
        Self {
            begun: Instant::now(),
            step: SettledMean::default(),
            latest: Default::default(),
            part: Duration::from_secs_f64(LATEST * 60.0 * options.minutes),
            validation: SettledMean::default(),
        }
    }

    /// Takes note of the time of a step.
    pub(super) fn stepped(&mut self, duration: Duration) {
        if self.step.first.is_some() {
            let [last, now] = &mut self.latest;
            if now.sum >= self.part {
                *last = mem::take(now);
            }
            now.add(duration);
        }
        self.step.add(duration);
    }

    /// Takes note of the time of a validation and its checkpoint.
    pub(super) fn validated(&mut self, duration: Duration) {
        self.validation.add(duration);
    }

    /// The seconds that are left, if the time is to decide on the number of steps: those of `run` count from its creation.
    pub(super) fn seconds_left(&self, trainer: &Trainer, run: Option<&RunDir>) -> Option<f64> {
        let passed = run.map_or(self.begun.elapsed().as_secs_f64(), RunDir::seconds);
        let options = trainer.options();
        options.is_timed().then_some(60.0 * options.minutes - passed)
    }

    /// The steps of the decay, if the time decides on the number of steps and the decay has to begin now.
    pub(super) fn decay_now(&self, trainer: &Trainer, run: Option<&RunDir>) -> Option<u64> {
        self.due_decay(trainer, self.seconds_left(trainer, run)?)
    }

    /// The steps of the decay, if it has to begin now for the run to end in `left` seconds: those that are planned, unless these
    /// would make the run far too long; then those that fit.
    fn due_decay(&self, trainer: &Trainer, left: f64) -> Option<u64> {
        let (options, done) = (trainer.options(), trainer.steps_done());
        let (schedule, every) = (options.lr_schedule(), trainer.eval_interval());
        let planned = schedule.decay_steps;
        if done < schedule.warmup_steps {
            return None;
        }
        let step = match self.step.seconds() {
            Some(step) if self.step.rest.count > 0 || left <= 0.0 => step,
            first => {
                let goes_by_plan = options.steps <= FEW && done == u64::from(first.is_some());
                return (goes_by_plan && done + planned >= options.steps).then_some(planned);
            }
        };
        let seconds = |steps: u64, step: f64| {
            let validations = (done + steps).div_ceil(every) - done / every;
            steps as f64 * step + validations as f64 * self.validation_seconds(trainer, step)
        };
        if seconds(planned + 1, step) <= left {
            return None;
        }
        // The faster one, so that a pause of the machine does not count.
        let latest = self.latest.iter().filter_map(Mean::seconds).reduce(f64::min).unwrap_or(step);
        let all = 60.0 * options.minutes;
        if seconds(planned, latest) <= left + MAX_EXCESS * all {
            return Some(planned);
        }
        Some(self.fitting_steps(trainer, left.max(MIN_DECAY * all), latest).max(1).min(planned))
    }

    /// The steps that the run is expected to make if it has to end in `left` seconds.
    pub(super) fn expected_steps(&self, trainer: &Trainer, left: f64) -> u64 {
        let (options, done) = (trainer.options(), trainer.steps_done());
        let Some(step) = self.step.seconds() else { return options.steps.max(done) };
        (done + self.fitting_steps(trainer, left, step)).max(options.lr_schedule().warmup_steps)
    }

    /// The steps of `step` seconds that fit into `left` seconds, with their validations.
    fn fitting_steps(&self, trainer: &Trainer, left: f64, step: f64) -> u64 {
        let (validation, every) = (self.validation_seconds(trainer, step), trainer.eval_interval() as f64);
        ((left - validation) / (step + validation / every)) as u64
    }

    fn validation_seconds(&self, trainer: &Trainer, step: f64) -> f64 {
        let (options, tokens) = (trainer.options(), trainer.corpus().validation.len());
        let steps = options.validation_steps(tokens, options.window_len(trainer.config()));
        self.validation.seconds().unwrap_or(steps * step)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::thread::sleep;

    use candle_core::Device;

    use super::*;
    use crate::model::ModelConfig;
    use crate::optim::Schedule;
    use crate::text::{Document, IdsStore, TextOptions, TokenizerChoice, Validation, prepare};
    use crate::train::{Event, Outcome, train};

    /// A trainer with 40 steps of decay, a validation after every 16 steps, and its pace: 2 s for a step, 10 s for a
    /// validation.
    fn paced() -> (Trainer, Pace) {
        let (document, choice) =
            (Document::new("text", "to be or not to be, ".repeat(50)), TokenizerChoice::Characters);
        let (part, options, store) = (Validation::Fraction(0.1), TextOptions::default(), IdsStore::Temporary);
        let (_, corpus) = prepare(&[document], &part, &choice, options, store, &mut |_| ()).unwrap();
        let config = ModelConfig { context_len: 8, embed_dim: 8, num_heads: 1, num_layers: 1, ..ModelConfig::gpt2(11) };
        let options = TrainOptions {
            steps: 80,
            minutes: 5.0,
            schedule: Schedule::WarmupStableDecay,
            warmup: 0.0,
            decay: 0.5,
            eval_every: Some(16),
            ..Default::default()
        };
        let trainer = Trainer::new(&config, &options, corpus, &Device::Cpu).unwrap();
        let (mut pace, seconds) = (Pace::new(&options), Duration::from_secs);
        // The first of each is slow.
        [9, 1, 3].map(seconds).into_iter().for_each(|step| pace.stepped(step));
        [50, 10].map(seconds).into_iter().for_each(|validation| pace.validated(validation));
        (trainer, pace)
    }

    #[test]
    fn the_decay_begins_when_the_time_left_is_what_it_takes() {
        let (trainer, pace) = paced();
        let due = |trainer: &Trainer, left| pace.due_decay(trainer, left);
        // One more than 40 steps, and 3 validations, take 112 s.
        assert_eq!((due(&trainer, 112.0), due(&trainer, 111.9)), (None, Some(40)));
        let mut trainer = trainer;
        // Steps 30 to 71 end in validations at 32, 48, 64 and 71.
        trainer.state.step = 30;
        assert_eq!((due(&trainer, 122.0), due(&trainer, 121.9)), (None, Some(40)));
        // Ending at 64 saves a validation that would follow after a step.
        trainer.state.step = 24;
        assert_eq!((due(&trainer, 122.0), due(&trainer, 121.9)), (None, Some(40)));
        let nothing = Pace::new(trainer.options());
        assert_eq!(nothing.due_decay(&trainer, 0.0), None, "before the first step nothing is known");
        let left = pace.seconds_left(&trainer, None).unwrap();
        assert!(left <= 300.0 && left > 200.0, "{left}");
    }

    #[test]
    fn a_decay_that_would_take_far_too_long_is_shortened_to_what_fits() {
        let (trainer, pace) = paced();
        // A twentieth of 5 minutes is allowed to be missing of 110 seconds.
        assert_eq!(pace.due_decay(&trainer, 95.0), Some(40));
        // 16 steps and a validation take 42 s, and one validation is the last.
        assert_eq!(pace.due_decay(&trainer, 94.9), Some(32));
        // No less than in 90 seconds, even if all time is gone.
        assert_eq!(pace.due_decay(&trainer, 52.0), Some(30));
        assert_eq!(pace.due_decay(&trainer, -1.0), Some(30));
    }

    #[test]
    fn the_first_step_of_a_session_does_not_tell_the_pace() {
        let (trainer, _) = paced();
        let mut pace = Pace::new(trainer.options());
        // For any time: the whole decay, or a shorter one.
        let due = |pace: &Pace| [400.0, 1.0].map(|left| pace.due_decay(&trainer, left));
        pace.stepped(Duration::from_secs(9));
        assert_eq!(due(&pace), [None; 2]);
        pace.validated(Duration::from_secs(1000));
        assert_eq!(pace.due_decay(&trainer, 0.0), Some(1), "no time is left to know more");
        pace.stepped(Duration::from_secs(9));
        assert_eq!(due(&pace), [Some(1); 2]);
    }

    #[test]
    fn a_run_of_very_few_steps_goes_by_its_plan() {
        let (like, _) = paced();
        let due = |(steps, decay): (u64, f64), done: u64, own: u64| {
            let options = TrainOptions { steps, decay, ..like.options().clone() };
            let mut trainer = Trainer::new(like.config(), &options, like.corpus().clone(), &Device::Cpu).unwrap();
            trainer.state.step = done;
            let mut pace = Pace::new(&options);
            (0..own).for_each(|_| pace.stepped(Duration::from_secs(1)));
            pace.due_decay(&trainer, 1.0)
        };
        let (one, three, more) = ((1, 0.5), (3, 0.5), (4, 1.0));
        assert_eq!((due(one, 0, 0), due(three, 0, 0), due(three, 1, 1)), (Some(1), None, Some(2)));
        // Not when a run goes on: its plan may be far from what it does.
        assert_eq!((due(three, 1, 0), due(three, 2, 1)), (None, None));
        assert_eq!((due(more, 0, 0), due(more, 1, 1)), (None, None));
    }

    #[test]
    fn steps_that_have_become_slower_shorten_the_decay() {
        let (trainer, mut pace) = paced();
        let mut stepped = |count: u64, seconds: u64| {
            (0..count).for_each(|_| pace.stepped(Duration::from_secs(seconds)));
            pace.due_decay(&trainer, 112.0)
        };
        // A twentieth of 5 minutes is 15 s.
        assert_eq!((stepped(50, 2), stepped(2, 4)), (None, Some(40)), "a pause");
        // Both parts of the time are of slow steps: of 112 s, 10 are for the last validation, and a step and its part of one
        // take 4.625.
        assert_eq!(stepped(6, 4), Some(22));
    }

    /// Steps of a known time: a listener that sleeps.
    #[test]
    fn a_run_takes_its_minutes() {
        let (like, _) = paced();
        let options = TrainOptions { minutes: 0.1, steps: 60, eval_every: Some(1000), ..like.options().clone() };
        let mut trainer = Trainer::new(like.config(), &options, like.corpus().clone(), &Device::Cpu).unwrap();
        let begun = Instant::now();
        let outcome = train(&mut trainer, None, &mut |event| {
            if let Event::Step(_) = event {
                sleep(Duration::from_millis(100));
            }
            ControlFlow::Continue(())
        });
        assert_eq!(outcome.unwrap(), Outcome::Finished);
        let seconds = begun.elapsed().as_secs_f64();
        assert!((4.5..7.5).contains(&seconds), "{seconds}");
    }

    #[test]
    fn the_steps_that_are_expected_fill_the_time() {
        let (trainer, pace) = paced();
        // 16 steps and a validation take 42 s; a validation ends the run.
        assert_eq!(pace.expected_steps(&trainer, 10.0 + 10.0 * 42.0), 160);
        assert_eq!(pace.expected_steps(&trainer, 52.0), 16);
        assert_eq!(Pace::new(trainer.options()).expected_steps(&trainer, 1.0), 80);
    }
}
