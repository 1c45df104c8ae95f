//! `config.json` and `generation_config.json` as Hugging Face writes and reads them.

mod gpt2;
mod llama;

use candle_core::{Error, Result, bail};
use serde::{Deserialize, Serialize};

use self::gpt2::Gpt2Json;
use self::llama::LlamaJson;
use super::config::ModelConfig;
use super::{Activation, Architecture};

/// See [`ModelConfig::from_json`].
pub(super) fn parse(json: &[u8]) -> Result<ModelConfig> {
    #[derive(Deserialize)]
    struct ModelType {
        model_type: String,
    }
    let ModelType { model_type } = from_slice(json)?;
    let config = match Architecture::ALL.into_iter().find(|one| one.model_type() == model_type) {
        Some(Architecture::Gpt2) => from_slice::<Gpt2Json>(json)?.into_config()?,
        Some(Architecture::Llama) => from_slice::<LlamaJson>(json)?.into_llama()?,
        Some(Architecture::Qwen3) => from_slice::<LlamaJson>(json)?.into_qwen3()?,
        None => bail!("expected model_type gpt2, llama or qwen3, got {model_type}"),
    };
    config.validate()?;
    Ok(config)
}

fn from_slice<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|error| Error::Msg(error.to_string()))
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
    let (id, ends) = (config.end_of_text_id, Ids::of(config));
    pretty(&serde_json::json!({ "bos_token_id": id, "eos_token_id": ends, "pad_token_id": id, "do_sample": true }))
}

/// One id or several that end a text.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Several(Vec<u32>),
}

impl Ids {
    fn of(config: &ModelConfig) -> Option<Self> {
        let first = config.end_of_text_id?;
        let others = &config.other_end_ids;
        Some(if others.is_empty() { Self::One(first) } else { Self::Several([&[first], &others[..]].concat()) })
    }

    /// Those that the vocabulary has, each once: the first and the others. Some published configurations keep GPT-2's 50256 with
    /// a smaller vocabulary.
    fn within(ids: Option<Self>, vocab_size: usize) -> (Option<u32>, Vec<u32>) {
        let all = match ids {
            Some(Self::One(id)) => vec![id],
            Some(Self::Several(ids)) => ids,
            None => Vec::new(),
        };
        let mut known = Vec::new();
        for id in all {
            if (id as usize) < vocab_size && !known.contains(&id) {
                known.push(id);
            }
        }
        let others = known.split_off(known.len().min(1));
        (known.pop(), others)
    }
}

fn pretty(json: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(json).map_err(Error::wrap)? + "\n")
}

fn yes() -> bool {
    true
}

fn float32() -> String {
    "float32".into()
}
