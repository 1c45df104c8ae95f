//! Lines of the metrics.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use candle_core::{Error, Result};
use serde_json::Value;

/// No valid line is longer, however many tensors it covers.
const MOST_BYTES: u64 = 1 << 24;

/// A line of the metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Steps done.
    pub step: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// All other numbers, by their path in the object: `loss`, `statistics/token_embedding.weight/gradient_norm`.
    pub scalars: Vec<(String, f64)>,
}

impl Line {
    /// Reads a line; `None` if it is not valid, such as one that a crash has cut short.
    pub fn parse(json: &[u8]) -> Option<Self> {
        let object: Value = serde_json::from_slice(json).ok()?;
        let (step, seconds) = (object.get("step")?.as_u64()?, object.get("seconds")?.as_f64()?);
        let mut scalars = vec![];
        collect(&object, "", &mut scalars);
        scalars.retain(|(path, _)| path != "step" && path != "seconds");
        Some(Self { step, seconds, scalars })
    }
}

/// Adds the numbers inside `value`, whose own path is `path`.
fn collect(value: &Value, path: &str, scalars: &mut Vec<(String, f64)>) {
    let below = |name: &str| if path.is_empty() { name.to_string() } else { format!("{path}/{name}") };
    match value {
        Value::Number(number) => scalars.extend(number.as_f64().map(|number| (path.to_string(), number))),
        Value::Object(map) => map.iter().for_each(|(name, value)| collect(value, &below(name), scalars)),
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(i, value)| collect(value, &below(&i.to_string()), scalars));
        }
        _ => {}
    }
}

/// The lines of the metrics file `path`, one at a time, without invalid ones.
///
/// # Errors
/// If the file cannot be opened or read.
pub fn lines(path: &Path) -> Result<impl Iterator<Item = Result<Line>>> {
    let name = path.display().to_string();
    let failed = move |error| Error::Msg(format!("cannot read {name}: {error}"));
    let mut reader = BufReader::new(File::open(path).map_err(&failed)?);
    let mut json = vec![];
    let mut next = move || -> Result<Option<Vec<u8>>> {
        json.clear();
        let is_end = reader.by_ref().take(MOST_BYTES).read_until(b'\n', &mut json).map_err(&failed)? == 0;
        Ok((!is_end).then(|| std::mem::take(&mut json)))
    };
    Ok(std::iter::from_fn(move || next().transpose())
        .filter_map(|json| json.map(|json| Line::parse(&json)).transpose()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_found_by_its_path() {
        let json = br#"{"step":7,"loss":2.5,"seconds":0.25,"is_best":true,"name":"x","nothing":null,
            "statistics":{"blocks.0.weight":{"norm":3,"seconds":4}},"losses":[1,0.5]}"#;
        let line = Line::parse(json).unwrap();
        assert_eq!((line.step, line.seconds), (7, 0.25));
        let mut scalars = line.scalars.clone();
        scalars.sort_by(|a, b| a.0.cmp(&b.0));
        let expected = [
            ("loss", 2.5),
            ("losses/0", 1.0),
            ("losses/1", 0.5),
            ("statistics/blocks.0.weight/norm", 3.0),
            ("statistics/blocks.0.weight/seconds", 4.0),
        ];
        assert_eq!(scalars, expected.map(|(name, value)| (name.to_string(), value)));
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
