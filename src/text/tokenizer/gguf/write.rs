//! From a tokenizer to the metadata of a GGUF file.

use ahash::AHashMap;

use candle_core::quantized::gguf_file::Value as Gguf;
use serde_json::Value;
use tokenizers::AddedToken;

use super::pre::Pre;
use super::{SPACE, kind, scores};
use crate::host::gguf_writer::Metadata;
use crate::host::{Error, Result, bail};
use crate::text::tokenizer::kind::Kind;
use crate::text::tokenizer::{Tokenizer, byte_alphabet};

/// What a GGUF file has to say of a tokenizer besides the tokenizer itself.
#[derive(Clone, Debug, Default)]
pub struct GgufTokens {
    /// The rows of the model's embedding: what the tokenizer has no token for is filled up.
    pub vocab_size: usize,
    /// The token that begins a text.
    pub begin_of_text: Option<u32>,
    /// The tokens that end a text, the usual one first.
    pub end_of_text: Vec<u32>,
}

impl Tokenizer {
    /// Its form in a GGUF file: keys and values; and what a user should know about it, if anything. llama.cpp and this
    /// crate, which read that file, encode as this tokenizer does.
    ///
    /// # Errors
    /// If the format has no way to describe this tokenizer, or it has more tokens than the model.
    pub fn to_gguf(&self, tokens: &GgufTokens) -> Result<(Metadata, Vec<String>)> {
        let refused = |error: serde_json::Error| Error::Input(error.to_string());
        let json: Value = serde_json::from_str(&self.json).map_err(refused)?;
        let vocabulary = Vocabulary::of(&json, &self.inner.get_added_tokens_decoder(), tokens.vocab_size)?;
        let (begin, end) = (framing(&self.template.front)?, framing(&self.template.rear)?);
        let mut all = match &self.kind {
            Kind::Characters { .. } => characters(&vocabulary)?,
            Kind::Bytes { .. } => byte_level(&json, &vocabulary, "gpt-2")?,
            _ => third_party(&json, &vocabulary)?,
        };
        all.push(key("add_bos_token", Gguf::Bool(begin.is_some())));
        all.push(key("add_eos_token", Gguf::Bool(end.is_some())));
        if let Some(id) = begin.or(tokens.begin_of_text) {
            all.push(key("bos_token_id", Gguf::U32(id)));
        }
        let mut ends: Vec<u32> = end.into_iter().collect();
        ends.extend(tokens.end_of_text.iter().filter(|id| Some(**id) != end));
        let mut notes = vec![];
        if ends.is_empty() {
            let (id, shown) = self.stand_in(&vocabulary);
            ends.push(id);
            notes.push(format!(
                "this tokenizer has no end-of-text token, and llama.cpp cannot do without: it will stop at {shown} unless it is \
                 started with --ignore-eos"
            ));
        }
        for (name, id) in ["eos_token_id", "eot_token_id", "eom_token_id"].into_iter().zip(ends) {
            all.push(key(name, Gguf::U32(id)));
        }
        if json["normalizer"]["type"] == "NFC" {
            notes.push("readers of GGUF do not compose characters, as this tokenizer does (NFC): texts with accents apart get other ids".into());
        }
        if json["pre_tokenizer"]["type"] == "Metaspace" && json["pre_tokenizer"]["prepend_scheme"] != "never" {
            notes.push(
                "where a text begins with a space, or follows a special token, readers of GGUF put a further space in front"
                    .into(),
            );
        }
        if let Some(template) = self.config.as_ref().and_then(|config| config.get("chat_template")?.as_str()) {
            all.push(("tokenizer.chat_template".into(), Gguf::String(template.into())));
        }
        Ok((all, notes))
    }

    /// The token that a model writes least of all, and its name.
    fn stand_in(&self, vocabulary: &Vocabulary) -> (u32, String) {
        let nul = String::from(byte_alphabet::characters()[0]);
        let last = self.vocab_size.saturating_sub(1);
        match vocabulary.tokens.iter().position(|token| *token == nul) {
            Some(id) if !matches!(self.kind, Kind::Characters { .. }) => (id as u32, "the byte 0".into()),
            _ => (last as u32, format!("{:?}", vocabulary.tokens.get(last).map_or("", String::as_str))),
        }
    }
}

fn key(name: &str, value: Gguf) -> (String, Gguf) {
    (format!("tokenizer.ggml.{name}"), value)
}

fn texts<'a>(all: impl IntoIterator<Item = &'a str>) -> Gguf {
    Gguf::Array(all.into_iter().map(|text| Gguf::String(text.into())).collect())
}

/// The tokens by id, and their types.
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
}

impl Vocabulary {
    fn of(json: &Value, added: &AHashMap<u32, AddedToken>, vocab_size: usize) -> Result<Self> {
        let mut all = Self {
            tokens: (0..vocab_size).map(|id| format!("[PAD{id}]")).collect(),
            types: vec![kind::UNUSED; vocab_size],
        };
        let Some(vocab) = json["model"]["vocab"].as_object() else { return Err(no_form(&json["model"])) };
        for (token, id) in vocab {
            all.put(id, token, kind::NORMAL)?;
        }
        for (&id, added) in added {
            // Looked for in what the normalizer makes of a text, which is more than the token where a space goes in front.
            let is_normalized = added.normalized && !json["normalizer"].is_null();
            let flags = [
                ("single_word", added.single_word),
                ("lstrip", added.lstrip),
                ("rstrip", added.rstrip),
                ("normalized", is_normalized),
            ];
            if let Some((flag, _)) = flags.into_iter().find(|(_, is_set)| *is_set) {
                bail!("GGUF has no way to say {flag} of a token, which the tokenizer does of {}", added.content);
            }
            all.put(&id.into(), &added.content, if added.special { kind::CONTROL } else { kind::USER_DEFINED })?;
        }
        Ok(all)
    }

    fn put(&mut self, id: &Value, token: &str, one: i32) -> Result<()> {
        let place = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|id| *id < self.tokens.len());
        let Some(place) = place else {
            bail!("expected a tokenizer of at most {} tokens, as the model has, got the id {id}", self.tokens.len());
        };
        (self.tokens[place], self.types[place]) = (token.to_string(), one);
        Ok(())
    }

    /// Names the type of vocabulary, its tokens and their types.
    fn metadata(&self, model: &str, pre: &str) -> Metadata {
        vec![
            key("model", Gguf::String(model.into())),
            key("pre", Gguf::String(pre.into())),
            key("tokens", texts(self.tokens.iter().map(String::as_str))),
            key("token_type", Gguf::Array(self.types.iter().map(|one| Gguf::I32(*one)).collect())),
        ]
    }
}

/// SentencePiece's vocabulary, in which each piece is a character.
fn characters(vocabulary: &Vocabulary) -> Result<Metadata> {
    if vocabulary.tokens.iter().any(|token| token == SPACE) {
        bail!("GGUF has no form for a tokenizer of characters that has U+2581, which stands for a space there");
    }
    let spelled = |token: &String| if token == " " { SPACE.to_string() } else { token.clone() };
    let tokens = vocabulary.tokens.iter().map(spelled).collect();
    let vocabulary = Vocabulary { tokens, types: vocabulary.types.clone() };
    let mut all = vocabulary.metadata("llama", "default");
    all.push(key("scores", Gguf::Array(vec![Gguf::F32(0.0); vocabulary.tokens.len()])));
    all.push(key("add_space_prefix", Gguf::Bool(false)));
    Ok(all)
}

/// BPE over bytes.
fn byte_level(json: &Value, vocabulary: &Vocabulary, pre: &str) -> Result<Metadata> {
    let mut all = vocabulary.metadata("gpt2", pre);
    let merges = merges(json)?;
    if let Some((left, right)) = merges.iter().find(|(left, right)| left.contains(' ') || right.contains(' ')) {
        bail!("GGUF has no way to write a merge of parts with spaces, such as {left:?} and {right:?}");
    }
    let merges: Vec<String> = merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
    all.push(key("merges", texts(merges.iter().map(String::as_str))));
    Ok(all)
}

/// A BPE of another's making, over bytes or as SentencePiece has it.
fn third_party(json: &Value, vocabulary: &Vocabulary) -> Result<Metadata> {
    let (model, normalizer) = (&json["model"], &json["normalizer"]);
    let is_plain = ["continuing_subword_prefix", "end_of_word_suffix"]
        .iter()
        .all(|key| model[*key].as_str().is_none_or(str::is_empty));
    if model["type"].as_str().is_some_and(|kind| kind != "BPE") || !is_plain {
        return Err(no_form(model));
    }
    if model["byte_fallback"] == true {
        return sentence_piece(json, vocabulary);
    }
    let Some(pre) = Pre::of(&json["pre_tokenizer"], model["ignore_merges"] == true) else {
        bail!("GGUF has no name for how this tokenizer finds words (its pre_tokenizer in tokenizer.json)");
    };
    // llama.cpp composes no characters, though the tokenizers that it calls qwen2 do.
    if !(normalizer.is_null() || pre == "qwen2" && normalizer["type"] == "NFC") {
        bail!("GGUF has no form for a tokenizer that normalizes its text ({})", normalizer["type"]);
    }
    byte_level(json, vocabulary, pre)
}

/// SentencePiece's BPE, if the merges are those that follow from scores.
fn sentence_piece(json: &Value, vocabulary: &Vocabulary) -> Result<Metadata> {
    let Some(adds_space) = adds_space(json) else {
        bail!(
            "GGUF has no form for what this tokenizer does with spaces (normalizer and pre_tokenizer in tokenizer.json)"
        );
    };
    let pieces: Vec<&str> = vocabulary.tokens.iter().map(String::as_str).collect();
    let Some(found) = scores::of_merges(&pieces, &merges(json)?) else {
        bail!("GGUF has no form for a byte_fallback BPE whose merges do not follow from scores of its tokens");
    };
    let unknown = json["model"]["unk_token"].as_str().and_then(|token| pieces.iter().position(|piece| *piece == token));
    let mut types = vocabulary.types.clone();
    for (id, piece) in pieces.iter().enumerate() {
        let is_byte = piece.len() == 6 && piece.starts_with("<0x") && piece.ends_with('>');
        types[id] = match types[id] {
            _ if Some(id) == unknown => kind::UNKNOWN,
            kind::NORMAL if is_byte => kind::BYTE,
            one => one,
        };
    }
    let mut all = Vocabulary { tokens: vocabulary.tokens.clone(), types }.metadata("llama", "default");
    all.push(key("scores", Gguf::Array(found.into_iter().map(Gguf::F32).collect())));
    all.push(key("add_space_prefix", Gguf::Bool(adds_space)));
    all.extend(unknown.map(|id| key("unknown_token_id", Gguf::U32(id as u32))));
    Ok(all)
}

/// Whether a text gets a space in front, if spaces are all that is replaced.
fn adds_space(json: &Value) -> Option<bool> {
    let (normalizer, pre_tokenizer) = (&json["normalizer"], &json["pre_tokenizer"]);
    if normalizer.is_null() && pre_tokenizer["type"] == "Metaspace" && pre_tokenizer["split"] == false {
        return match pre_tokenizer["prepend_scheme"].as_str()? {
            "never" => Some(false),
            "first" | "always" => Some(true),
            _ => None,
        };
    }
    let steps = normalizer["normalizers"].as_array().map_or(std::slice::from_ref(normalizer), |all| all);
    let (last, first) = steps.split_last().filter(|_| pre_tokenizer.is_null())?;
    let replaces = last["type"] == "Replace" && last["pattern"]["String"] == " " && last["content"] == SPACE;
    match first {
        [] if replaces => Some(false),
        [one] if replaces && one["type"] == "Prepend" && one["prepend"] == SPACE => Some(true),
        _ => None,
    }
}

/// The two parts of each merge.
fn merges(json: &Value) -> Result<Vec<(&str, &str)>> {
    let mut all = Vec::new();
    for merge in json["model"]["merges"].as_array().into_iter().flatten() {
        let parts = match merge.as_str() {
            Some(text) => text.split_once(' '),
            None => merge[0].as_str().zip(merge[1].as_str()),
        };
        match parts {
            Some(pair) => all.push(pair),
            None => bail!("expected merges of two parts, got {merge}"),
        }
    }
    Ok(all)
}

/// The only token, if there is one, that is put before or after a text.
fn framing(ids: &[u32]) -> Result<Option<u32>> {
    match ids {
        [] => Ok(None),
        [id] => Ok(Some(*id)),
        ids => bail!("GGUF has no form for a tokenizer that puts {} tokens before or after a text", ids.len()),
    }
}

fn no_form(model: &Value) -> Error {
    let kind = model["type"].as_str().unwrap_or("unknown");
    Error::Input(format!("GGUF has no form for this tokenizer: expected a plain BPE, got a {kind} model"))
}
