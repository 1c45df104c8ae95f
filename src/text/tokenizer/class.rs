//! The tokenizer classes of transformers 5 that do not take a `tokenizer.json` as it is: they take vocabulary, merges and
//! post-processor from it, and have their own normalizer, pre-tokenizer and decoder.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokenizers::{DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::END_OF_TEXT;

/// How Qwen2's tokenizer splits a text.
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The class that transformers opens a folder with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Any other, which takes the file as it is.
    Plain,
    Gpt2,
    Qwen2,
    Llama,
}

impl Class {
    /// The class named by a `tokenizer_config.json` or else a `config.json`; without a name, that of the model type. Where
    /// a byte-level tokenizer is called Llama's, transformers takes the file as it is.
    pub(super) fn of(config: &Map<String, Value>, model_config: &Map<String, Value>, json: &Value) -> Self {
        let named = [config, model_config].into_iter().find_map(|config| config.get("tokenizer_class")?.as_str());
        let is_bpe =
            json["model"]["merges"].is_array() && json["model"]["type"].as_str().is_none_or(|kind| kind == "BPE");
        match (named, model_config.get("model_type").and_then(Value::as_str)) {
            _ if !is_bpe => Self::Plain,
            (Some(name), _) => match name.strip_suffix("Fast").unwrap_or(name) {
                "GPT2Tokenizer" => Self::Gpt2,
                "Qwen2Tokenizer" => Self::Qwen2,
                "LlamaTokenizer" if !is_byte_level(json) => Self::Llama,
                _ => Self::Plain,
            },
            (None, Some("gpt2")) => Self::Gpt2,
            (None, Some("qwen3")) => Self::Qwen2,
            _ => Self::Plain,
        }
    }

    /// The special tokens that it has where no file names others.
    pub(super) fn special_tokens(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Plain => &[],
            Self::Gpt2 => &[("bos_token", END_OF_TEXT), ("eos_token", END_OF_TEXT), ("unk_token", END_OF_TEXT)],
            Self::Qwen2 => &[("eos_token", END_OF_TEXT), ("unk_token", END_OF_TEXT), ("pad_token", END_OF_TEXT)],
            Self::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
        }
    }

    /// Puts its own parts into a `tokenizer.json`; whether that changes what it does.
    pub(super) fn apply(self, json: &mut Value, config: &Map<String, Value>) -> bool {
        let Some([normalizer, pre_tokenizer, decoder]) = self.parts(config) else { return false };
        let mut is_changed = false;
        let is_same = [
            same::<NormalizerWrapper>(&json["normalizer"], &normalizer),
            same::<PreTokenizerWrapper>(&json["pre_tokenizer"], &pre_tokenizer),
            same::<DecoderWrapper>(&json["decoder"], &decoder),
        ];
        let parts = [("normalizer", normalizer), ("pre_tokenizer", pre_tokenizer), ("decoder", decoder)];
        for ((name, part), is_same) in parts.into_iter().zip(is_same) {
            if !is_same {
                json[name] = part;
                is_changed = true;
            }
        }
        let model = &mut json["model"];
        for (name, value) in [("ignore_merges", false), ("byte_fallback", self == Self::Llama)] {
            if model[name].as_bool().unwrap_or_default() != value {
                model[name] = value.into();
                is_changed = true;
            }
        }
        is_changed
    }

    /// Its normalizer, pre-tokenizer and decoder.
    fn parts(self, config: &Map<String, Value>) -> Option<[Value; 3]> {
        let switch = |name: &str, default: bool| config.get(name).and_then(Value::as_bool).unwrap_or(default);
        let byte_level = |use_regex: bool| {
            let add_prefix_space = switch("add_prefix_space", false);
            json!({ "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex })
        };
        Some(match self {
            Self::Plain => return None,
            Self::Gpt2 => [Value::Null, byte_level(true), byte_level(true)],
            Self::Qwen2 => {
                let pattern = json!({ "Regex": QWEN2_WORDS });
                let split = json!({ "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false });
                let words = json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] });
                [json!({ "type": "NFC" }), words, byte_level(true)]
            }
            Self::Llama => {
                let prefix = switch("add_prefix_space", true);
                let scheme = match (prefix, switch("legacy", false)) {
                    (false, _) => "never",
                    (true, true) => "always",
                    (true, false) => "first",
                };
                let metaspace =
                    json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false });
                let mut decoders = vec![
                    json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
                    json!({ "type": "ByteFallback" }),
                    json!({ "type": "Fuse" }),
                ];
                if prefix {
                    decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
                }
                [Value::Null, metaspace, json!({ "type": "Sequence", "decoders": decoders })]
            }
        })
    }
}

fn is_byte_level(json: &Value) -> bool {
    ["pre_tokenizer", "decoder", "post_processor"].iter().any(|part| json[part].to_string().contains("\"ByteLevel\""))
}

/// Whether two parts do the same, however they are written. The flags of a byte-level decoder, and trimmed offsets, have
/// no effect.
fn same<P: DeserializeOwned + Serialize>(a: &Value, b: &Value) -> bool {
    let canonical = |part: &Value| {
        let parsed = serde_json::from_value::<Option<P>>(part.clone()).ok();
        let mut part = parsed.and_then(|parsed| serde_json::to_value(parsed).ok()).unwrap_or_else(|| part.clone());
        without_trim_offsets(&mut part);
        part
    };
    let is_byte_level = |part: &Value| part["type"] == "ByteLevel" && part.get("use_regex").is_some();
    let (a, b) = (canonical(a), canonical(b));
    a == b
        || std::any::type_name::<P>() == std::any::type_name::<DecoderWrapper>()
            && is_byte_level(&a)
            && is_byte_level(&b)
}

fn without_trim_offsets(part: &mut Value) {
    match part {
        Value::Object(entries) => {
            entries.remove("trim_offsets");
            entries.values_mut().for_each(without_trim_offsets);
        }
        Value::Array(parts) => parts.iter_mut().for_each(without_trim_offsets),
        _ => {}
    }
}
