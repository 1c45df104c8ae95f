//! Opening the tokenizer of a model folder: `tokenizer.json`, or `vocab.json` and `merges.txt`, completed by the files
//! beside them as transformers 5 does.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::added_tokens::NamedTokens;
use super::class::Class;
use super::kind::Kind;
use super::tokenizer_json;
use super::{Tokenizer, gguf, hugging_face};
use crate::host::file_names::{
    ADDED_TOKENS, CHAT_TEMPLATE, CONFIG, MERGES, SPECIAL_TOKENS, TOKENIZER, TOKENIZER_CONFIG, VOCAB,
};
use crate::host::{Error, ModelPath, Result, adapter_base, bail, input};

impl Tokenizer {
    /// The tokenizer of a folder, of a `tokenizer.json` in it, or of a GGUF file. In a folder it is a `tokenizer.json`, or
    /// GPT-2's `vocab.json` and `merges.txt`. An adapter (LoRA) without one has that of its base.
    ///
    /// Of a folder it is what transformers 5 makes of the folder: `tokenizer_config.json` may name the end of text and add tokens, as
    /// may `special_tokens_map.json` and `added_tokens.json`; its `tokenizer_class`, or the model type in `config.json`,
    /// may replace the way in which the file splits a text; `clean_up_tokenization_spaces` is applied to decoded text. A `chat_template.jinja` takes the place of the
    /// configuration's template.
    ///
    /// # Errors
    /// A file that can't be read or isn't a tokenizer, no such file, and links that lead out of a folder.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        match ModelPath::of(path) {
            Ok(ModelPath::Gguf(file)) => return gguf::open(&file),
            Ok(ModelPath::Adapter(folder)) if !folder.join(TOKENIZER).exists() => {
                return Self::open(adapter_base(&folder)?);
            }
            _ => {}
        }
        let (folder, is_folder) = match path.is_dir() {
            true => (path, true),
            false => (path.parent().unwrap_or(Path::new("")), false),
        };
        let has = |name: &str| folder.join(name).exists();
        if is_folder && !has(TOKENIZER) {
            if !(has(VOCAB) && has(MERGES)) {
                return Err(no_tokenizer(folder));
            }
            let json = vocabulary_and_merges(folder)?;
            return completed(folder, json, None).map_err(|error| error.at(folder.display()));
        }
        let file = if is_folder { input::inside(folder, TOKENIZER)? } else { path.to_path_buf() };
        let bytes = input::read(&file, input::MAX_TOKENIZER_BYTES)?;
        let (text, json) = tokenizer_json::parse(&bytes).map_err(|error| error.at(file.display()))?;
        completed(folder, json, Some(text)).map_err(|error| error.at(file.display()))
    }
}

fn no_tokenizer(folder: &Path) -> Error {
    let shown = folder.display();
    let sentence_piece = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"];
    Error::Input(match sentence_piece.iter().find(|name| folder.join(name).exists()) {
        Some(name) => format!(
            "{shown}: expected a tokenizer.json, got only {name}; to convert it: python -c \"from transformers import \
             AutoTokenizer; AutoTokenizer.from_pretrained('{shown}').save_pretrained('{shown}')\""
        ),
        None => format!("{shown}: expected a tokenizer: a tokenizer.json, or vocab.json and merges.txt; got none"),
    })
}

/// Completes the JSON of a tokenizer from the files beside it. `text` is its file, which is kept if nothing was missing.
fn completed(folder: &Path, mut json: Value, text: Option<String>) -> Result<Tokenizer> {
    let read = |name: &str| read_object(folder, name);
    let config = read(TOKENIZER_CONFIG)?;
    // The model has its own reader, which says what is wrong with it.
    let model_config = read(CONFIG).ok().flatten().unwrap_or_default();
    let empty = Map::new();
    let known = config.as_ref().unwrap_or(&empty);
    let class = match Class::of(known, &model_config, &json) {
        Class::Plain if text.is_none() => Class::Gpt2,
        class => class,
    };
    let special = read(SPECIAL_TOKENS)?.unwrap_or_default();
    let added = read(ADDED_TOKENS)?.unwrap_or_default();
    let named = NamedTokens::of(class, known, [&special, &added], &json);
    let is_changed = class.apply(&mut json, known) | named.add_to(&mut json, class);
    if text.is_none() {
        add_template(&mut json, known, &named);
    }
    let mut tokenizer = Tokenizer::assemble(json, text.filter(|_| !is_changed))?;
    tokenizer.end_of_text_id =
        named.special("eos_token").and_then(|token| tokenizer.inner.token_to_id(token)).or(tokenizer.end_of_text_id);
    let is_bpe = hugging_face::is_bpe(&tokenizer.inner);
    let switch = |name: &str| known.get(name).and_then(Value::as_bool).unwrap_or_default();
    tokenizer.cleans_up = switch("clean_up_tokenization_spaces")
        && (!is_bpe || switch("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"));
    if tokenizer.cleans_up && tokenizer.knows_bytes() {
        // Text is then more than the bytes of its tokens.
        tokenizer.kind = Kind::HuggingFace { unknown_id: None };
    }
    let mut config = config.unwrap_or_else(|| tokenizer.default_config());
    for (role, token) in named.roles() {
        config.entry(role).or_insert(token.into());
    }
    if folder.join(CHAT_TEMPLATE).exists() {
        let template = input::read_text(&input::inside(folder, CHAT_TEMPLATE)?, input::MAX_CONFIG_BYTES)?;
        config.insert("chat_template".into(), template.into());
    }
    if tokenizer.json_is_whole {
        // It says everything, and no class need complete it.
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    }
    tokenizer.config = Some(config);
    Ok(tokenizer)
}

/// GPT-2's older files as a `tokenizer.json`, of which the class completes the rest.
fn vocabulary_and_merges(folder: &Path) -> Result<Value> {
    let vocab = read_object(folder, VOCAB)?.unwrap_or_default();
    let path = input::inside(folder, MERGES)?;
    let merges = input::read_text(&path, input::MAX_TOKENIZER_BYTES)?;
    let merges: Vec<&str> =
        merges.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty()).collect();
    if vocab.is_empty() {
        bail!("{}: expected tokens and their ids, got none", folder.join(VOCAB).display());
    }
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": { "type": "BPE", "vocab": vocab, "merges": merges }
    }))
}

/// Without a `tokenizer.json`, `add_bos_token` and `add_eos_token` say what is put around a text.
fn add_template(json: &mut Value, config: &Map<String, Value>, named: &NamedTokens) {
    let token = |switch: &str, role: &str| {
        let is_on = config.get(switch).and_then(Value::as_bool).unwrap_or_default();
        let content = named.special(role).filter(|_| is_on)?;
        let added = json["added_tokens"].as_array()?;
        added.iter().find(|token| token["content"] == content).map(|token| (content.to_string(), token["id"].clone()))
    };
    let (front, rear) = (token("add_bos_token", "bos_token"), token("add_eos_token", "eos_token"));
    let special = |token: &Option<(String, Value)>| {
        token.as_ref().map(|(content, _)| json!({ "SpecialToken": { "id": content, "type_id": 0 } }))
    };
    let text = Some(json!({ "Sequence": { "id": "A", "type_id": 0 } }));
    let single: Vec<Value> = [special(&front), text, special(&rear)].into_iter().flatten().collect();
    if single.len() == 1 {
        return;
    }
    let tokens: Map<String, Value> = [front, rear]
        .into_iter()
        .flatten()
        .map(|(content, id)| (content.clone(), json!({ "id": content, "ids": [id], "tokens": [content] })))
        .collect();
    json["post_processor"] =
        json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens });
}

/// A JSON object in a file of the folder, if there is such a file.
fn read_object(folder: &Path, name: &str) -> Result<Option<Map<String, Value>>> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = input::read(&input::inside(folder, name)?, input::MAX_TOKENIZER_BYTES)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::Input(format!("{}: {error}", path.display())))
}
