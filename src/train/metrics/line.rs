//! Lines of the metrics.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::host::{Error, Result};
use crate::train::{StepReport, ValidationReport};

/// A line of the metrics: numbers at a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Line {
    /// Steps done.
    pub step: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// All other numbers, by name: `loss`, `gradient_norm/token_embedding.weight`.
    #[serde(flatten)]
    pub numbers: Map<String, Value>,
}

impl Line {
    /// The line of a step, without its time.
    pub(in crate::train) fn of_step(report: &StepReport) -> Self {
        let StepReport { step, loss, learning_rate, gradient_norm, tokens, statistics, .. } = report;
        let mut line = json!({
            "loss": loss, "learning_rate": learning_rate, "gradient_norm": gradient_norm, "tokens": tokens
        });
        for tensor in statistics {
            let name = &tensor.name;
            line[format!("weight_norm/{name}")] = tensor.weight_norm.into();
            line[format!("gradient_norm/{name}")] = tensor.gradient_norm.into();
            line[format!("update_norm/{name}")] = tensor.update_norm.into();
            if tensor.weight_norm > 0.0 {
                line[format!("update_ratio/{name}")] = (tensor.update_norm / tensor.weight_norm).into();
            }
        }
        Self::of(*step, line)
    }

    /// The line of a validation, without its time.
    pub(in crate::train) fn of_validation(report: &ValidationReport) -> Self {
        let ValidationReport { step, loss, bits_per_byte, .. } = report;
        Self::of(*step, json!({ "validation_loss": loss, "validation_bits_per_byte": bits_per_byte }))
    }

    fn of(step: u64, numbers: Value) -> Self {
        Self { step, seconds: 0.0, numbers: numbers.as_object().cloned().unwrap_or_default() }
    }

    /// The numbers with their names.
    pub fn numbers(&self) -> impl Iterator<Item = (&str, f64)> {
        self.numbers.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)))
    }
}

/// The lines of the metrics file `path`, without those that are not valid, such as one that a crash has cut short.
///
/// # Errors
/// If the file cannot be read.
pub fn lines(path: &Path) -> Result<impl Iterator<Item = Result<Line>> + use<>> {
    let reader = BufReader::new(File::open(path).map_err(Error::io("read", path))?);
    let path = path.to_path_buf();
    let parsed = reader.split(b'\n').map(move |line| {
        let line = line.map_err(Error::io("read", &path))?;
        Ok(serde_json::from_slice(&line).ok())
    });
    Ok(parsed.filter_map(Result::transpose))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::TensorStatistics;

    #[test]
    fn a_line_is_an_object_of_numbers_and_comes_back_as_it_was() {
        let tensor = |name: &str, weight_norm| TensorStatistics {
            name: name.into(),
            weight_norm,
            gradient_norm: 0.1 + 0.2,
            update_norm: 0.5,
        };
        let report = StepReport {
            steps: 100,
            step: 7,
            loss: 1.0 / 3.0,
            learning_rate: 1e-3,
            gradient_norm: 2.0,
            tokens: 768,
            statistics: vec![tensor("norm.weight", 2.0), tensor("norm.bias", 0.0)],
        };
        let line = Line { seconds: 0.25, ..Line::of_step(&report) };
        let json = serde_json::to_string(&line).unwrap();
        let expected = concat!(
            r#"{"step":7,"seconds":0.25,"gradient_norm":2.0,"gradient_norm/norm.bias":0.30000000000000004,"#,
            r#""gradient_norm/norm.weight":0.30000000000000004,"learning_rate":0.001,"loss":0.3333333333333333,"#,
            // A ratio to zero weights says nothing.
            r#""tokens":768,"update_norm/norm.bias":0.5,"update_norm/norm.weight":0.5,"update_ratio/norm.weight":0.25,"#,
            r#""weight_norm/norm.bias":0.0,"weight_norm/norm.weight":2.0}"#
        );
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<Line>(&json).unwrap(), line);

        let report = ValidationReport { step: 8, loss: 1.25, bits_per_byte: 1.5, is_best: true };
        let json = serde_json::to_string(&Line::of_validation(&report)).unwrap();
        assert_eq!(json, r#"{"step":8,"seconds":0.0,"validation_bits_per_byte":1.5,"validation_loss":1.25}"#);
    }

    #[test]
    fn what_is_not_a_number_is_left_out() {
        let json = r#"{"step":7,"seconds":1,"name":"x","nothing":null,"list":[1],"loss":2}"#;
        let line: Line = serde_json::from_str(json).unwrap();
        assert_eq!((line.step, line.seconds, line.numbers().collect::<Vec<_>>()), (7, 1.0, vec![("loss", 2.0)]));
    }

    #[test]
    fn a_torn_line_is_left_out_wherever_it_is() {
        let space = tempfile::tempdir().unwrap();
        let path = space.path().join("metrics.jsonl");
        let good = |step| format!("{{\"step\":{step},\"loss\":1.0,\"seconds\":0.5}}\n");
        let text = format!("{}{{\"step\":2,\"lo{}\n[1]\n\u{0}\n{}{{\"step\":5,\"loss\":", good(1), good(3), good(4));
        std::fs::write(&path, text).unwrap();
        let steps: Vec<u64> = lines(&path).unwrap().map(|line| line.unwrap().step).collect();
        assert_eq!(steps, [1, 4]);
        assert!(lines(&space.path().join("missing")).err().unwrap().to_string().contains("missing"));
    }
}
