//! `config.json` and `generation_config.json` as Hugging Face writes and reads them.

mod gpt2;
mod llama;
mod rope;
mod special_ids;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use self::gpt2::Gpt2Json;
use self::llama::LlamaJson;
use self::special_ids::EndIds;
use super::config::{INIT_STDEV, ModelConfig};
use super::{Activation, Architecture};
use crate::host::{Error, Result, bail};

/// See [`ModelConfig::from_json`].
pub(super) fn parse(json: &[u8]) -> Result<ModelConfig> {
    let mut json: Map<String, Value> = from_slice(json)?;
    // A null is what an absent key is, but where it means something else.
    json.retain(|key, value| !value.is_null() || NULL_IS_A_VALUE.contains(&key.as_str()));
    let Some(model_type) = json.get("model_type").and_then(Value::as_str) else {
        bail!("expected a model_type of gpt2, llama or qwen3, got none");
    };
    let Some(architecture) = Architecture::ALL.into_iter().find(|one| one.model_type() == model_type) else {
        bail!("expected model_type gpt2, llama or qwen3, got {model_type}");
    };
    check_arithmetic(&json)?;
    let json = Value::from(json);
    let config = match architecture {
        Architecture::Gpt2 => from_value::<Gpt2Json>(json)?.into_config()?,
        Architecture::Llama => from_value::<LlamaJson>(json)?.into_llama()?,
        Architecture::Qwen3 => {
            let windows = from_value(json.clone())?;
            from_value::<LlamaJson>(json)?.into_qwen3(windows)?
        }
    };
    config.validate()?;
    Ok(config)
}

/// Keys whose absence means something else than null.
const NULL_IS_A_VALUE: [&str; 4] = ["num_key_value_heads", "sliding_window", "bos_token_id", "eos_token_id"];

/// Refuses keys with which transformers computes something else, whatever the architecture.
fn check_arithmetic(json: &Map<String, Value>) -> Result<()> {
    if let Some(quantization) = json.get("quantization_config") {
        let method = quantization["quant_method"].as_str().unwrap_or("an unnamed method");
        bail!("expected weights that are not quantised, got a quantization_config ({method}); open the original model");
    }
    if json.get("is_causal") == Some(&false.into()) {
        bail!("expected is_causal true, got false");
    }
    match json.get("pruned_heads") {
        Some(pruned) if pruned.as_object().is_none_or(|pruned| !pruned.is_empty()) => {
            bail!("expected no pruned_heads, got {pruned}")
        }
        _ => Ok(()),
    }
}

fn from_value<T: DeserializeOwned>(json: Value) -> Result<T> {
    serde_path_to_error::deserialize(json).map_err(|error| Error::Input(error.to_string()))
}

fn from_slice<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|error| Error::Input(error.to_string()))
}

/// See [`ModelConfig::to_json`].
pub(super) fn print(config: &ModelConfig) -> Result<String> {
    match config.architecture {
        Architecture::Gpt2 => pretty(&Gpt2Json::from(config)),
        Architecture::Llama | Architecture::Qwen3 => pretty(&LlamaJson::from(config)),
    }
}

/// See [`ModelConfig::generation_json`].
pub(super) fn print_generation(config: &ModelConfig) -> Result<String> {
    pretty(&serde_json::json!({
        "bos_token_id": config.begin_of_text_id,
        "eos_token_id": EndIds::of(config),
        "pad_token_id": config.end_of_text_id,
        // What `attn generate` does by itself.
        "do_sample": true,
        "temperature": 0.8,
        "top_k": 0,
    }))
}

/// The configuration with the end-of-text ids of a `generation_config.json`, if it names any, in place of its own, as
/// in transformers.
pub(super) fn with_generation(config: ModelConfig, json: &[u8]) -> Result<ModelConfig> {
    #[derive(Deserialize)]
    struct GenerationJson {
        #[serde(default)]
        eos_token_id: Option<EndIds>,
    }
    let GenerationJson { eos_token_id } = from_slice(json)?;
    Ok(match EndIds::known(eos_token_id, config.vocab_size) {
        (None, _) => config,
        (end_of_text_id, other_end_ids) => ModelConfig { end_of_text_id, other_end_ids, ..config },
    })
}

fn pretty(json: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(json).map_err(|error| Error::Input(error.to_string()))?;
    Ok(text + "\n")
}

fn default_true() -> bool {
    true
}

fn default_stdev() -> f64 {
    INIT_STDEV
}

fn float32() -> String {
    "float32".into()
}

/// A key that is present, if only as null: an absent one may mean something else.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}
