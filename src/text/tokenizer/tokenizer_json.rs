//! Reading and writing `tokenizer.json` and `tokenizer_config.json`.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{PostProcessorWrapper, Tokenizer as HfTokenizer};

use super::guard::guarded;
use super::kind::Kind;
use super::{END_OF_TEXT, Tokenizer};
use crate::host::{Error, Result, bail, disk, input};

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";

impl Tokenizer {
    /// The tokenizer of a `tokenizer.json`, or of a folder that contains one. A `tokenizer_config.json` beside it says
    /// which token ends a text, and is kept for [`save`](Self::save), as is the template in a `chat_template.jinja`.
    ///
    /// # Errors
    /// A file that can't be read or isn't a tokenizer, and links that lead out of a folder.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { input::inside(path, TOKENIZER)? } else { path.to_path_buf() };
        let bytes = input::read(&file, input::MAX_TOKENIZER_BYTES)?;
        let mut tokenizer = Self::from_json(&bytes).map_err(|error| error.at(file.display()))?;
        tokenizer.config = read_config(&file)?;
        if let Some(template) = read_chat_template(&file)? {
            let config = tokenizer.config.take().unwrap_or_else(|| tokenizer.default_config());
            tokenizer.config.insert(config).insert("chat_template".into(), template.into());
        }
        let named = tokenizer.config.as_ref().and_then(|config| config.get("eos_token")).and_then(token_text);
        let named = named.and_then(|token| tokenizer.inner.token_to_id(token));
        tokenizer.end_of_text_id = named.or(tokenizer.end_of_text_id);
        Ok(tokenizer)
    }

    /// The tokenizer in the bytes of a `tokenizer.json`. Its truncation, padding and BPE dropout are not applied: a text
    /// has one encoding.
    ///
    /// # Errors
    /// Anything that isn't the JSON of a tokenizer.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let expected = |error: String| Error::Input(format!("expected a tokenizer.json, got {error}"));
        let text = std::str::from_utf8(bytes).map_err(|error| expected(error.to_string()))?;
        let mut json: Value = serde_json::from_str(text).map_err(|error| expected(error.to_string()))?;
        if let Some(dropout) = json.get_mut("model").and_then(|model| model.get_mut("dropout")) {
            *dropout = Value::Null;
        }
        let kind = Kind::of(&json);
        let inner = guarded(|| HfTokenizer::from_bytes(json.to_string())).map_err(Error::Input)?;
        let mut inner = inner.map_err(|error| expected(error.to_string()))?;
        inner.with_truncation(None).map_err(|error| expected(error.to_string()))?;
        inner.with_padding(None);
        // It would only add special tokens, which are not wanted, and trim the offsets.
        inner.with_post_processor(None::<PostProcessorWrapper>);
        inner.set_encode_special_tokens(!matches!(kind, Kind::HuggingFace { .. }));
        let Some(last) = inner.get_vocab(true).into_values().max() else {
            bail!("expected a tokenizer.json with a vocabulary, got an empty one");
        };
        Ok(Self {
            end_of_text_id: end_of_text_id(&inner, &kind),
            vocab_size: last as usize + 1,
            json: text.to_owned(),
            config: None,
            inner,
            kind,
        })
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json`, which `transformers` can open, into an existing folder;
    /// `context_len` is the longest text, in tokens, that the model takes. Each file appears complete or not at all.
    ///
    /// A tokenizer that was read from a file is written as it was, and only the length changes in its configuration.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn save(&self, dir: &Path, context_len: usize) -> Result<()> {
        let mut config = self.config.clone().unwrap_or_else(|| self.default_config());
        config.insert("model_max_length".into(), context_len.into());
        disk::replace_with(&dir.join(TOKENIZER), self.json.as_bytes())?;
        disk::replace_with(&dir.join(CONFIG), format!("{:#}", Value::from(config)).as_bytes())
    }

    fn default_config(&self) -> Map<String, Value> {
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        // By default transformers 4 gives token types too, which its GPT-2 adds to the embeddings.
        config.insert("model_input_names".into(), vec!["input_ids", "attention_mask"].into());
        if let Some(token) = self.end_of_text_id.and_then(|id| self.inner.id_to_token(id)) {
            config.insert("bos_token".into(), token.as_str().into());
            config.insert("eos_token".into(), token.into());
        }
        config
    }
}

/// The `tokenizer_config.json` beside a `tokenizer.json`, if there is one.
fn read_config(file: &Path) -> Result<Option<Map<String, Value>>> {
    let config = file.with_file_name(CONFIG);
    if !config.exists() {
        return Ok(None);
    }
    let config = input::inside(config.parent().unwrap_or(Path::new("")), CONFIG)?;
    let bytes = input::read(&config, input::MAX_CONFIG_BYTES)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::Input(format!("{}: {error}", config.display())))
}

/// The `chat_template.jinja` beside a `tokenizer.json`, if there is one: it takes the place of the configuration's.
fn read_chat_template(file: &Path) -> Result<Option<String>> {
    if !file.with_file_name(CHAT_TEMPLATE).exists() {
        return Ok(None);
    }
    let path = input::inside(file.parent().unwrap_or(Path::new("")), CHAT_TEMPLATE)?;
    input::read_text(&path, input::MAX_CONFIG_BYTES).map(Some)
}

/// The text of a special token: a string, or an object with its content.
pub(in crate::text) fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// The end of text, if it is an added token: one in the vocabulary only is an ordinary word.
fn end_of_text_id(inner: &HfTokenizer, kind: &Kind) -> Option<u32> {
    let names: &[&str] = match kind {
        Kind::HuggingFace { .. } => &[END_OF_TEXT, "</s>", "<|end_of_text|>"],
        _ => &[END_OF_TEXT],
    };
    let added = inner.get_added_vocabulary().get_vocab();
    names.iter().find_map(|&name| added.get(name).copied())
}
