//! The learning rate over the steps.

/// The shape of a learning rate after its warm-up. With the peak rate `a`, the final rate `b`, and the progress `p` from 0
/// to 1:
///
/// | schedule | rate | `p` grows over |
/// |---|---|---|
/// | `Cosine` | `b + (a - b) (1 + cos(pi p)) / 2` (Loshchilov and Hutter 2016, arXiv:1608.03983) | all steps after the warm-up |
/// | `Linear` | `a + (b - a) p` | all steps after the warm-up |
/// | `Constant` | `a` | |
/// | `WarmupStableDecay` | `a`, then `a + (b - a) p` (Hu et al. 2024, arXiv:2404.06395) | the last steps, the decay |
///
/// `p` would be 1, and the rate `b`, at the step after the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "lm", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Schedule {
    /// Half a cosine from the peak to the final rate.
    #[default]
    Cosine,
    /// A straight line from the peak to the final rate.
    Linear,
    /// The peak rate to the end.
    Constant,
    /// The peak rate, then over the decay a straight line to the final rate.
    WarmupStableDecay,
}

/// A learning rate over the steps of a run, as a multiple of its peak.
///
/// ```
/// use candle_attention::optim::{LrSchedule, Schedule};
///
/// let schedule = LrSchedule { warmup_steps: 2, min: 0.5, ..LrSchedule::new(Schedule::Linear, 12) };
/// assert_eq!(schedule.factor(1), 2.0 / 3.0); // the second step of the warm-up
/// assert_eq!(schedule.factor(2), 1.0);
/// assert_eq!(schedule.factor(7), 0.75);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrSchedule {
    /// The shape after the warm-up.
    pub shape: Schedule,
    /// All steps of the run.
    pub steps: u64,
    /// Steps of the warm-up, in which the rate rises as `(step + 1) / (warmup_steps + 1)`.
    pub warmup_steps: u64,
    /// The last steps, over which [`Schedule::WarmupStableDecay`] decays; the other shapes ignore them.
    pub decay_steps: u64,
    /// The final rate, as a multiple of the peak.
    pub min: f64,
}

impl LrSchedule {
    /// A schedule without a warm-up that ends at 0; [`Schedule::WarmupStableDecay`] also needs its `decay_steps`.
    pub fn new(shape: Schedule, steps: u64) -> Self {
        Self { shape, steps, warmup_steps: 0, decay_steps: 0, min: 0.0 }
    }

    /// The rate of step `step`, counted from 0, as a multiple of the peak.
    pub fn factor(&self, step: u64) -> f64 {
        let &Self { shape, steps, warmup_steps, decay_steps, min } = self;
        if step < warmup_steps {
            return (step as f64 + 1.0) / (warmup_steps as f64 + 1.0);
        }
        // The progress of the step from `first` to the end.
        let progress = |first: u64| {
            let span = steps.saturating_sub(first).max(1);
            (step.saturating_sub(first) as f64 / span as f64).min(1.0)
        };
        match shape {
            Schedule::Cosine => min + 0.5 * (1.0 + (std::f64::consts::PI * progress(warmup_steps)).cos()) * (1.0 - min),
            Schedule::Linear => 1.0 + (min - 1.0) * progress(warmup_steps),
            Schedule::Constant => 1.0,
            Schedule::WarmupStableDecay => {
                1.0 + (min - 1.0) * progress(steps.saturating_sub(decay_steps).max(warmup_steps))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSINE: LrSchedule =
        LrSchedule { shape: Schedule::Cosine, steps: 1000, warmup_steps: 100, decay_steps: 110, min: 0.1 };

    #[test]
    fn the_rate_rises_over_the_warm_up_and_falls_along_a_cosine() {
        for (step, expected) in
            [(0, 1.0 / 101.0), (99, 100.0 / 101.0), (100, 1.0), (550, 0.55), (1000, 0.1), (5000, 0.1)]
        {
            assert!((COSINE.factor(step) - expected).abs() < 1e-12, "step {step}");
        }
    }

    /// Also for steps past the end.
    #[test]
    fn every_schedule_reaches_its_final_rate_after_the_last_step() {
        for shape in [Schedule::Cosine, Schedule::Linear, Schedule::Constant, Schedule::WarmupStableDecay] {
            let schedule = LrSchedule { shape, steps: 50, warmup_steps: 7, decay_steps: 11, min: 0.1 };
            let last = if shape == Schedule::Constant { 1.0 } else { 0.1 };
            for step in [50, 51, u64::MAX] {
                assert!((schedule.factor(step) - last).abs() < 1e-15, "{shape:?}");
            }
            assert!((schedule.factor(7) - 1.0).abs() < 1e-15, "{shape:?}");
        }
        let decay = LrSchedule { shape: Schedule::WarmupStableDecay, ..COSINE };
        assert_eq!((decay.factor(890), decay.factor(945)), (1.0, 0.55));
    }
}
