//! The sampling settings of a model's `generation_config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::SamplingOptions;
use crate::host::file_names::GENERATION_CONFIG;
use crate::host::{Error, Result, folder_of, input};

/// How a model's makers want it to be sampled: the settings of its `generation_config.json`, applied as transformers
/// does.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GenerationDefaults {
    /// Whether tokens are drawn at all; otherwise the likeliest is taken.
    pub do_sample: bool,
    /// How they are drawn if they are.
    pub sampling: SamplingOptions,
    /// The maximum number of tokens, if there is one.
    pub max_tokens: Option<usize>,
    /// Settings in the file that change what transformers writes, and that this crate does not have.
    pub not_applied: Vec<String>,
}

/// The keys of `generation_config.json` that are applied. Those that are absent or null have transformers' defaults.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Json {
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    max_new_tokens: Option<usize>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl GenerationDefaults {
    /// Those of a model, for an adapter without a file of its own those of its base; `None` if there is no
    /// `generation_config.json`.
    ///
    /// # Errors
    /// If the file cannot be read, is not JSON, or has a value out of its range.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let has = |folder: &Path| folder.join(GENERATION_CONFIG).symlink_metadata().is_ok();
        let folder = if has(path) { Some(path.to_path_buf()) } else { folder_of(path)?.filter(|base| has(base)) };
        let Some(folder) = folder else { return Ok(None) };
        let path = input::inside(&folder, GENERATION_CONFIG)?;
        let json = input::read(&path, input::MAX_CONFIG_BYTES)?;
        Self::from_json(&json).map(Some).map_err(|error| error.at(path.display()))
    }

    /// Parses the text of a `generation_config.json`.
    ///
    /// # Errors
    /// If it is not JSON or has a value out of its range.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        /// What transformers takes where the file says nothing.
        const TOP_K: usize = 50;
        let json: Json = serde_json::from_slice(json).map_err(|error| Error::Input(error.to_string()))?;
        // The fewest tokens with a probability of 0 in all: transformers keeps one.
        let is_one = json.top_p == Some(0.0);
        let sampling = SamplingOptions {
            temperature: json.temperature.unwrap_or(1.0),
            top_k: Some(if is_one { 1 } else { json.top_k.unwrap_or(TOP_K) }).filter(|k| *k > 0),
            top_p: json.top_p.filter(|p| *p != 1.0 && !is_one),
            min_p: json.min_p.filter(|p| *p != 0.0),
            repetition_penalty: json.repetition_penalty.unwrap_or(1.0),
        };
        sampling.validate()?;
        let not_applied = json.others.iter().filter(|(name, value)| changes_the_text(name, value));
        Ok(Self {
            do_sample: json.do_sample.unwrap_or(false),
            sampling,
            max_tokens: json.max_new_tokens,
            not_applied: not_applied.map(|(name, _)| name.clone()).collect(),
        })
    }
}

/// Whether a setting that is not applied would change the text: not if it has the value that turns it off.
fn changes_the_text(name: &str, value: &Value) -> bool {
    let off = match name {
        "num_beams" | "typical_p" | "guidance_scale" | "num_return_sequences" => 1.0,
        // What old files have for none; prompt and continuation together may be so long.
        "max_length" => 20.0,
        "no_repeat_ngram_size" | "epsilon_cutoff" | "eta_cutoff" | "min_new_tokens" | "min_length" | "top_h" => 0.0,
        "bad_words_ids"
        | "sequence_bias"
        | "suppress_tokens"
        | "begin_suppress_tokens"
        | "forced_bos_token_id"
        | "forced_eos_token_id"
        | "exponential_decay_length_penalty"
        | "penalty_alpha"
        | "stop_strings"
        | "watermarking_config" => return !value.is_null(),
        _ => return false,
    };
    value.as_f64().is_some_and(|value| value != off)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults(json: &str) -> GenerationDefaults {
        GenerationDefaults::from_json(json.as_bytes()).unwrap()
    }

    /// `GenerationConfig._get_default_generation_params()` of transformers 5.23.
    #[test]
    fn what_the_file_does_not_say_is_as_in_transformers() {
        let expected = GenerationDefaults {
            do_sample: false,
            sampling: SamplingOptions { top_k: Some(50), ..Default::default() },
            max_tokens: None,
            not_applied: vec![],
        };
        for json in ["{}", "{\"eos_token_id\": 3, \"use_cache\": true, \"max_length\": 20, \"num_beams\": 1}"] {
            assert_eq!(defaults(json), expected, "{json}");
        }
        assert_eq!(defaults(r#"{ "temperature": null, "top_k": null, "do_sample": null }"#), expected);
    }

    #[test]
    fn what_the_file_says_is_applied_or_named() {
        let json = r#"{ "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1,
            "repetition_penalty": 1.05, "max_new_tokens": 7, "num_beams": 4, "no_repeat_ngram_size": 0,
            "suppress_tokens": [1] }"#;
        let sampling = SamplingOptions {
            temperature: 0.6,
            top_k: Some(20),
            top_p: Some(0.95),
            min_p: Some(0.1),
            repetition_penalty: 1.05,
        };
        let not_applied = vec!["num_beams".to_string(), "suppress_tokens".into()];
        assert_eq!(defaults(json), GenerationDefaults { do_sample: true, sampling, max_tokens: Some(7), not_applied });
        let off = defaults(r#"{ "do_sample": true, "top_k": 0, "top_p": 1.0, "min_p": 0.0 }"#);
        assert_eq!(off.sampling, SamplingOptions::default());
        assert_eq!(defaults(r#"{ "top_p": 0.0 }"#).sampling.top_k, Some(1));
    }

    #[test]
    fn a_value_out_of_its_range_is_named() {
        for (json, expected) in [
            (r#"{ "temperature": -1 }"#, "temperature: expected a number of at least 0, got -1"),
            (r#"{ "top_k": -1 }"#, "invalid value"),
            (r#"{ "top_p": 2 }"#, "top-p"),
            ("[", "expected an object"),
            ("{", "EOF"),
        ] {
            let error = GenerationDefaults::from_json(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
