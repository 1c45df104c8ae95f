//! The metrics in memory.

use std::path::Path;

use super::line::{Line, lines};
use crate::host::Result;

/// Values over steps: pairs of a step and its value.
pub type Points = Vec<(f64, f64)>;

/// The numbers that a loss plot shows.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct History {
    /// The training loss, in nats per token.
    pub loss: Points,
    /// The learning rate.
    pub learning_rate: Points,
    /// The validation loss, in nats per token.
    pub validation_loss: Points,
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
        for (name, value) in line.numbers() {
            match name {
                "loss" => self.loss.push((line.step as f64, value)),
                "learning_rate" => self.learning_rate.push((line.step as f64, value)),
                "validation_loss" => self.validation_loss.push((line.step as f64, value)),
                _ => {}
            }
        }
    }
}

/// At most `max` points: the means of groups of neighbours, all of one size but the last.
pub fn thinned(points: &[(f64, f64)], max: usize) -> Points {
    let mean = |group: &[(f64, f64)]| {
        let n = group.len() as f64;
        let (steps, values) = group.iter().fold((0.0, 0.0), |sums, point| (sums.0 + point.0, sums.1 + point.1));
        (steps / n, values / n)
    };
    points.chunks(points.len().div_ceil(max).max(1)).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_points_are_thinned_out_to_means_and_few_are_kept() {
        let points = |n: u32| (1..=n).map(|step| (f64::from(step), f64::from(step % 7))).collect::<Points>();
        assert_eq!(thinned(&points(5), 5), points(5));
        assert_eq!(thinned(&[], 5), []);
        let thinned = thinned(&points(100_000), 2000);
        assert_eq!(thinned.len(), 2000);
        assert!(thinned.windows(2).all(|pair| pair[1].0 - pair[0].0 == 50.0));
        assert!(thinned.iter().all(|point| (point.1 - 3.0).abs() < 0.2));
    }

    #[test]
    fn the_history_of_a_file_is_what_its_valid_lines_say() {
        let space = tempfile::tempdir().unwrap();
        let path = space.path().join("metrics.jsonl");
        let lines = [
            r#"{"step":1,"loss":3.5,"learning_rate":0.25,"tokens":7,"seconds":0.1}"#,
            r#"{"step":1,"validation_loss":3.0,"seconds":0.2}"#,
            r#"{"step":2,"loss":2.5,"learning_rate":0.125,"sec"#,
        ];
        std::fs::write(&path, lines.join("\n")).unwrap();
        let history = History::open(&path).unwrap();
        let points = [history.loss, history.learning_rate, history.validation_loss];
        assert_eq!(points, [[(1.0, 3.5)], [(1.0, 0.25)], [(1.0, 3.0)]]);
    }
}
