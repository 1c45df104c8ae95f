//! Reading and writing `tokenizer.json`.

use std::path::Path;

use candle_core::{Error, Result, bail};
use serde_json::{Map, Value};
use tokenizers::{PostProcessorWrapper, Tokenizer as HfTokenizer};

use super::guard::{check_added_tokens, check_character_maps, check_growth, check_strips, guarded};
use super::kind::Kind;
use super::{END_OF_TEXT, Tokenizer};
use crate::errors::bare;
use crate::{input, memory};

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";

/// Memory that parsing takes for each byte of a `tokenizer.json`, at most: `[],` is a value of 32 bytes in a list that
/// grows by doubling.
const MEMORY_PER_BYTE: usize = 32;

impl Tokenizer {
    /// The tokenizer of a `tokenizer.json`, or of a folder that contains one. A `tokenizer_config.json` beside it is
    /// kept for [`save`](Self::save).
    ///
    /// # Errors
    /// A file that can't be read, isn't a tokenizer or would need more memory than there is, and links that lead out of
    /// a folder.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { input::inside(path, TOKENIZER)? } else { path.to_path_buf() };
        let bytes = input::read(&file, input::MOST_TOKENIZER_BYTES).map_err(|error| in_file(&file, &bare(&error)))?;
        let mut tokenizer = Self::from_json(&bytes).map_err(|error| in_file(&file, &bare(&error)))?;
        tokenizer.config = read_config(&file)?;
        Ok(tokenizer)
    }

    /// The tokenizer in the bytes of a `tokenizer.json`. Its truncation and padding are not applied.
    ///
    /// # Errors
    /// Anything that isn't the JSON of a tokenizer, or would need more memory than there is.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let expected = |error: &dyn std::fmt::Display| Error::Msg(format!("expected a tokenizer.json, got {error}"));
        check_memory(bytes.len())?;
        let text = std::str::from_utf8(bytes).map_err(|error| expected(&error))?;
        let json: Value = serde_json::from_str(text).map_err(|error| expected(&error))?;
        check_merges(&json["model"])?;
        check_growth(&json)?;
        check_character_maps(&json["normalizer"])?;
        check_strips(&json["decoder"])?;
        let mut inner = guarded("the tokenizer.json", || {
            let inner = HfTokenizer::from_bytes(text).map_err(|error| expected(&error))?;
            check_added_tokens(&inner)?;
            Ok::<_, Error>(inner)
        })?;
        inner.with_truncation(None).map_err(Error::wrap)?;
        inner.with_padding(None);
        // It would only add special tokens, which are not wanted, and trim the offsets.
        inner.with_post_processor(None::<PostProcessorWrapper>);
        let kind = Kind::of(&json);
        inner.set_encode_special_tokens(!matches!(kind, Kind::Other { .. }));
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
        let config = serde_json::to_string_pretty(&config).map_err(Error::wrap)?;
        crate::files::replace_with(&dir.join(TOKENIZER), self.json.as_bytes())?;
        crate::files::replace_with(&dir.join(CONFIG), config.as_bytes())
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

fn in_file(file: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Msg(format!("{}: {error}", file.display()))
}

/// Refuses to parse more bytes than there is memory for.
fn check_memory(bytes: usize) -> Result<()> {
    memory::check(&format!("a {TOKENIZER} of {bytes} bytes"), bytes.checked_mul(MEMORY_PER_BYTE))
}

/// The `tokenizer_config.json` beside a `tokenizer.json`, if there is one.
fn read_config(file: &Path) -> Result<Option<Map<String, Value>>> {
    let config = file.with_file_name(CONFIG);
    if !config.exists() {
        return Ok(None);
    }
    let config = input::inside(config.parent().unwrap_or(Path::new("")), CONFIG)?;
    let bytes = input::read(&config, input::MOST_CONFIG_BYTES)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| in_file(&config, &error))
}

/// The end of text, if it is an added token: one in the vocabulary only is an ordinary word.
fn end_of_text_id(inner: &HfTokenizer, kind: &Kind) -> Option<u32> {
    let names: &[&str] = match kind {
        Kind::Other { .. } => &[END_OF_TEXT, "</s>", "<|end_of_text|>"],
        _ => &[END_OF_TEXT],
    };
    let added = inner.get_added_vocabulary().get_vocab();
    names.iter().find_map(|&name| added.get(name).copied())
}

/// Checks merges, since the library panics on one whose result is longer than any token.
fn check_merges(model: &Value) -> Result<()> {
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or_default();
    for (rank, merge) in model["merges"].as_array().into_iter().flatten().enumerate() {
        let pair = match merge {
            Value::String(pair) => pair.split_once(' '),
            pair => pair[0].as_str().zip(pair[1].as_str()),
        };
        let merged = pair.and_then(|(left, right)| Some(format!("{left}{}", right.strip_prefix(prefix)?)));
        if merged.is_none_or(|merged| model["vocab"].get(&merged).is_none()) {
            bail!("expected a tokenizer.json whose merges give tokens of its vocabulary, got {merge} at merge {rank}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_take_too_much_memory_is_not_parsed() {
        check_memory(10 << 20).unwrap();
        let error = check_memory(1 << 46).unwrap_err().to_string();
        assert!(error.contains("a tokenizer.json of 70368744177664 bytes: expected at most"), "{error}");
        assert!(error.contains("got 2251799814 MB"), "{error}");
        assert!(check_memory(usize::MAX).is_err());
    }
}
