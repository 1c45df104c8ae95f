//! What a folder keeps of the one that its model comes from: the files of its tokenizer, its settings of generation, and
//! what its `config.json` says beside the model.

use std::path::Path;

use serde_json::{Map, Value};

use super::ModelConfig;
use crate::host::file_names::{ADDED_TOKENS, CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, MERGES, SPECIAL_TOKENS, VOCAB};
use crate::host::{Error, Result, disk, folder_of, input};

/// The files that are copied.
pub(crate) const KEPT: [&str; 7] =
    [GENERATION_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS, VOCAB, MERGES, "tokenizer.model", CHAT_TEMPLATE];

/// The ids that a `generation_config.json` may leave to `config.json`.
const IDS: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

/// Keys of a `config.json` that are not true of newly saved weights: how others are quantised and of which type, code that
/// comes with them, and where they were.
const DROPPED: [&str; 5] = ["quantization_config", "auto_map", "torch_dtype", "dtype", "_name_or_path"];

/// Spellings of the same: of these, what is written anew replaces all.
const ROTARY: [&str; 3] = ["rope_parameters", "rope_scaling", "rope_theta"];

/// Copies the files of the model `base` that are there over those in `root`, where the model and its tokenizer have been
/// written, and adds to the `config.json` there the keys that only that of `base` has.
///
/// # Errors
/// If a file cannot be read or written.
pub(crate) fn keep(base: &Path, root: &Path) -> Result<()> {
    let Some(base) = folder_of(base)? else { return Ok(()) };
    for name in KEPT.into_iter().filter(|name| base.join(name).exists()) {
        let mut bytes = input::read(&input::inside(&base, name)?, input::MAX_TOKENIZER_BYTES)?;
        if name == GENERATION_CONFIG && root.join(name).exists() {
            bytes = with_ids(bytes, &object(name, &input::read(&root.join(name), input::MAX_CONFIG_BYTES)?)?)?;
        }
        disk::replace_with(&root.join(name), &bytes)?;
    }
    let [ours, theirs] = [root, &base].map(|folder| folder.join(CONFIG));
    if !ours.exists() || !theirs.exists() {
        return Ok(());
    }
    let json = input::read(&ours, input::MAX_CONFIG_BYTES)?;
    let theirs = input::read(&input::inside(&base, CONFIG)?, input::MAX_CONFIG_BYTES)?;
    let completed = format!("{:#}\n", Value::from(completed(object(CONFIG, &json)?, object(CONFIG, &theirs)?)));
    // What is written has to be read as the same model.
    if ModelConfig::from_json(completed.as_bytes()).ok() == Some(ModelConfig::from_json(&json)?) {
        disk::replace_with(&ours, completed.as_bytes())?;
    }
    Ok(())
}

/// The text of a `generation_config.json`, with the ids that only `ours` has.
fn with_ids(json: Vec<u8>, ours: &Map<String, Value>) -> Result<Vec<u8>> {
    let mut theirs = object(GENERATION_CONFIG, &json)?;
    let missing = IDS.into_iter().filter(|name| theirs.get(*name).is_none_or(Value::is_null));
    let ids = missing.filter_map(|name| Some((name.to_string(), ours.get(name).filter(|id| !id.is_null())?.clone())));
    let ids: Vec<(String, Value)> = ids.collect();
    if ids.is_empty() {
        return Ok(json);
    }
    theirs.extend(ids);
    Ok(format!("{:#}\n", Value::from(theirs)).into_bytes())
}

fn object(name: &str, json: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(json).map_err(|error| Error::Input(format!("{name}: {error}")))
}

/// `ours`, with the keys that only `theirs` has.
fn completed(ours: Map<String, Value>, mut theirs: Map<String, Value>) -> Map<String, Value> {
    let has_rotary = ROTARY.iter().any(|name| ours.contains_key(*name));
    theirs.retain(|name, _| {
        let is_other_spelling = has_rotary && ROTARY.contains(&&**name);
        !DROPPED.contains(&&**name) && !is_other_spelling
    });
    theirs.extend(ours);
    theirs
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn completed_with(theirs: Value) -> Value {
        let ours = json!({ "vocab_size": 7, "rope_theta": 5.0, "dtype": "float32" });
        let [ours, theirs] = [ours, theirs].map(|value| value.as_object().unwrap().clone());
        completed(ours, theirs).into()
    }

    #[test]
    fn keys_that_only_the_base_has_are_kept() {
        let theirs = json!({
            "vocab_size": 6, "id2label": { "0": "x" }, "use_cache": false, "torch_dtype": "bfloat16",
            "quantization_config": {}, "auto_map": {}, "_name_or_path": "/home/me", "rope_parameters": { "rope_theta": 5.0 }
        });
        let expected = json!({
            "vocab_size": 7, "id2label": { "0": "x" }, "use_cache": false, "rope_theta": 5.0, "dtype": "float32"
        });
        assert_eq!(completed_with(theirs), expected);
    }
}
