//! The metrics in memory, thinned out as they grow.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Result;

use super::line::{Line, lines};

/// The most points of a series: as many as a plot can show.
const MOST_POINTS: usize = 2000;

/// Numbers over steps in bounded memory: the means of groups of steps, whose size doubles whenever there are too many.
/// The points depend only on the numbers that were added.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    groups: Vec<Group>,
    /// The count of a full group.
    size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Group {
    count: u64,
    steps: f64,
    values: f64,
}

impl Default for Series {
    fn default() -> Self {
        Self { groups: vec![], size: 1 }
    }
}

impl Series {
    /// Adds the value of one more step.
    pub fn push(&mut self, step: u64, value: f64) {
        let new = Group { count: 1, steps: step as f64, values: value };
        match self.groups.last_mut().filter(|group| group.count < self.size) {
            Some(last) => *last = last.and(new),
            None => self.groups.push(new),
        }
        if self.groups.len() > MOST_POINTS {
            self.groups = self.groups.chunks(2).filter_map(|pair| pair.iter().copied().reduce(Group::and)).collect();
            self.size *= 2;
        }
    }

    /// The mean step and the mean value of each group.
    pub fn points(&self) -> Vec<(f64, f64)> {
        self.groups.iter().map(|group| (group.steps / group.count as f64, group.values / group.count as f64)).collect()
    }
}

impl Group {
    fn and(self, other: Self) -> Self {
        Self { count: self.count + other.count, steps: self.steps + other.steps, values: self.values + other.values }
    }
}

/// The numbers that a loss plot shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// The training loss, in nats per token.
    pub loss: Series,
    /// The learning rate.
    pub learning_rate: Series,
    /// The validation losses, in nats per token, by their path in the metrics.
    pub validation: BTreeMap<String, Series>,
}

impl History {
    /// Reads the metrics file `path`, without invalid lines.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let mut history = Self::default();
        for line in lines(path)? {
            history.push(&line?);
        }
        Ok(history)
    }

    /// Adds a line.
    pub fn push(&mut self, line: &Line) {
        for (path, value) in &line.scalars {
            match path.as_str() {
                "loss" => self.loss.push(line.step, *value),
                "learning_rate" => self.learning_rate.push(line.step, *value),
                _ if path.ends_with("validation_loss") => {
                    self.validation.entry(path.clone()).or_default().push(line.step, *value);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_stays_small_and_keeps_its_mean() {
        let mut series = Series::default();
        for step in 1..=100_000 {
            series.push(step, (step % 7) as f64);
        }
        let points = series.points();
        assert!((MOST_POINTS / 2..=MOST_POINTS).contains(&points.len()), "{}", points.len());
        assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(series.groups.iter().map(|group| group.count).sum::<u64>(), 100_000);
        assert!(points.iter().all(|point| (point.1 - 3.0).abs() < 0.2));
    }

    #[test]
    fn few_values_are_kept_as_they_are() {
        let mut series = Series::default();
        (1..=5).for_each(|step| series.push(step, 1.0 / step as f64));
        assert_eq!(series.points(), (1..=5).map(|step| (step as f64, 1.0 / step as f64)).collect::<Vec<_>>());
    }
}
