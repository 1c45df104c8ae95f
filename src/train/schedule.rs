//! The learning rate over the steps.

use serde::{Deserialize, Serialize};

use super::TrainOptions;

/// The learning-rate schedule after the warm-up. With the peak rate `a`, the final rate `b`, and the progress `p` from
/// 0 to 1:
///
/// | schedule | rate | `p` grows over |
/// |---|---|---|
/// | `Cosine` | `b + (a - b) (1 + cos(pi p)) / 2` (Loshchilov and Hutter 2016, arXiv:1608.03983) | all steps after the warm-up |
/// | `Linear` | `a + (b - a) p` | all steps after the warm-up |
/// | `Constant` | `a` | |
/// | `WarmupStableDecay` | `a`, then `a + (b - a) p` (Hu et al. 2024, arXiv:2404.06395) | the last `decay_steps` |
///
/// `p` would be 1, and the rate `b`, at the step after the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Half a cosine down to --min-lr
    #[default]
    Cosine,
    /// A straight line down to --min-lr
    Linear,
    /// The peak rate to the end
    Constant,
    /// The peak rate, then a straight line down to --min-lr over the last --decay-steps
    WarmupStableDecay,
}

impl TrainOptions {
    /// The learning rate of step `step`, counted from 0: a linear rise over the warm-up, `a (step + 1) / (warmup_steps
    /// + 1)`, then the [`Schedule`].
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        let (highest, lowest) = (self.learning_rate, self.min_learning_rate);
        if step < self.warmup_steps {
            return highest * (step as f64 + 1.0) / (self.warmup_steps as f64 + 1.0);
        }
        // The progress of the step from `first` to the end.
        let progress = |first: u64| {
            let span = self.steps.saturating_sub(first).max(1);
            (step.saturating_sub(first) as f64 / span as f64).min(1.0)
        };
        match self.schedule {
            Schedule::Cosine => {
                let progress = progress(self.warmup_steps);
                lowest + 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()) * (highest - lowest)
            }
            Schedule::Linear => highest + (lowest - highest) * progress(self.warmup_steps),
            Schedule::Constant => highest,
            Schedule::WarmupStableDecay => {
                let first = self.steps.saturating_sub(self.decay_steps).max(self.warmup_steps);
                highest + (lowest - highest) * progress(first)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_over_the_warm_up_and_falls_along_a_cosine() {
        let options = TrainOptions { steps: 1000, warmup_steps: 100, ..Default::default() };
        assert!((options.learning_rate_at(0) - 1e-3 / 101.0).abs() < 1e-12);
        assert!((options.learning_rate_at(99) - 1e-3 * 100.0 / 101.0).abs() < 1e-12);
        assert!((options.learning_rate_at(100) - 1e-3).abs() < 1e-12);
        assert!((options.learning_rate_at(550) - 5.5e-4).abs() < 1e-12);
        assert!((options.learning_rate_at(1000) - 1e-4).abs() < 1e-12);
        assert!((options.learning_rate_at(5000) - 1e-4).abs() < 1e-12);
    }

    /// Also for steps past the end.
    #[test]
    fn every_schedule_reaches_its_final_rate_after_the_last_step() {
        for schedule in [Schedule::Cosine, Schedule::Linear, Schedule::Constant, Schedule::WarmupStableDecay] {
            let options = TrainOptions { schedule, steps: 50, warmup_steps: 7, decay_steps: 11, ..Default::default() };
            let lowest = if schedule == Schedule::Constant { 1e-3 } else { 1e-4 };
            for step in [50, 51, u64::MAX] {
                assert!((options.learning_rate_at(step) - lowest).abs() < 1e-15, "{schedule:?}");
            }
            assert!((options.learning_rate_at(7) - 1e-3).abs() < 1e-15, "{schedule:?}");
        }
    }
}
