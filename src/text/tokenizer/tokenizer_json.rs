//! Reading and writing `tokenizer.json` and `tokenizer_config.json`.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{PostProcessorWrapper, Tokenizer as HfTokenizer};

use super::guard::guarded;
use super::kind::Kind;
use super::markers::Markers;
use super::template::Template;
use super::{END_OF_TEXT, Tokenizer};
use crate::host::file_names::{TOKENIZER, TOKENIZER_CONFIG};
use crate::host::{Error, Result, bail, disk};

/// The text of a `tokenizer.json`, and its JSON without BPE dropout.
pub(super) fn parse(bytes: &[u8]) -> Result<(String, Value)> {
    let text = std::str::from_utf8(bytes).map_err(expected)?;
    let mut json: Value = serde_json::from_str(text).map_err(expected)?;
    if let Some(dropout) = json.get_mut("model").and_then(|model| model.get_mut("dropout")) {
        *dropout = Value::Null;
    }
    match json.is_object() {
        true => Ok((text.to_owned(), json)),
        false => Err(expected("JSON of another kind")),
    }
}

fn expected(error: impl std::fmt::Display) -> Error {
    Error::Input(format!("expected a tokenizer.json, got {error}"))
}

impl Tokenizer {
    /// The tokenizer in the bytes of a `tokenizer.json`. Its truncation, padding and BPE dropout are not applied: a text
    /// has one encoding.
    ///
    /// # Errors
    /// Anything that isn't the JSON of a tokenizer.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let (text, json) = parse(bytes)?;
        Self::assemble(json, Some(text))
    }

    /// The tokenizer of a JSON, which is kept as `text` or, without one, written anew.
    pub(super) fn assemble(json: Value, text: Option<String>) -> Result<Self> {
        /// The time that the library takes grows with the square of it.
        const MAX_ADDED_BYTES: usize = 4096;
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let len = added["content"].as_str().map_or(0, str::len);
            if len > MAX_ADDED_BYTES {
                bail!("expected added tokens of at most {MAX_ADDED_BYTES} bytes, got one of {len}");
            }
        }
        let kind = Kind::of(&json);
        let inner = guarded(|| HfTokenizer::from_bytes(json.to_string())).map_err(Error::Input)?;
        let mut inner = inner.map_err(expected)?;
        inner.with_truncation(None).map_err(expected)?;
        inner.with_padding(None);
        let template = Template::of(inner.get_post_processor())?;
        let json_is_whole = text.is_none();
        let json = match text {
            Some(text) => text,
            // The library writes the vocabulary in the order of the ids.
            None => inner.to_string(true).map_err(expected)?,
        };
        // The template is known; all else that it could do is to trim offsets.
        inner.with_post_processor(None::<PostProcessorWrapper>);
        let Some(last) = inner.get_vocab(true).into_values().max() else {
            bail!("expected a tokenizer.json with a vocabulary, got an empty one");
        };
        let added = inner.get_added_vocabulary().get_vocab();
        Ok(Self {
            end_of_text_id: end_of_text_id(&inner, &kind),
            markers: Markers::new(added.iter().map(|(token, &id)| (token.as_str(), id)))?,
            vocab_size: last as usize + 1,
            rows: None,
            cleans_up: false,
            config: None,
            json,
            json_is_whole,
            template,
            inner,
            kind,
        })
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json`, which `transformers` can open, into an existing folder;
    /// `context_len` is the longest text, in tokens, that the model takes. Each file appears complete or not at all.
    ///
    /// A tokenizer that was read from a file is written as it was, and only the length changes in its configuration; one
    /// that other files completed is written as a whole.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn save(&self, dir: &Path, context_len: usize) -> Result<()> {
        let mut config = self.config.clone().unwrap_or_else(|| self.default_config());
        config.insert("model_max_length".into(), context_len.into());
        disk::replace_with(&dir.join(TOKENIZER), self.json.as_bytes())?;
        disk::replace_with(&dir.join(TOKENIZER_CONFIG), format!("{:#}", Value::from(config)).as_bytes())
    }

    pub(super) fn default_config(&self) -> Map<String, Value> {
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

/// The end of text, if it is an added token: one in the vocabulary only is an ordinary word.
fn end_of_text_id(inner: &HfTokenizer, kind: &Kind) -> Option<u32> {
    let names: &[&str] = match kind {
        Kind::HuggingFace { .. } => &[END_OF_TEXT, "</s>", "<|end_of_text|>"],
        _ => &[END_OF_TEXT],
    };
    let added = inner.get_added_vocabulary().get_vocab();
    names.iter().find_map(|&name| added.get(name).copied())
}
