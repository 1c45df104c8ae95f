//! Recognises the kind of a tokenizer from the content of its `tokenizer.json`.

use std::collections::HashSet;

use serde_json::Value;

use super::byte_alphabet;

/// The bytes of each token, by id; none for special tokens.
type TokenBytes = Vec<Box<[u8]>>;

/// The longest added token of a tokenizer that reads a text in chunks.
const MAX_ADDED_BYTES: usize = 1 << 10;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// The characters in order; the index of a character is its id.
    Characters { sorted: Vec<char>, token_bytes: TokenBytes },
    /// The id is the byte.
    Bytes { token_bytes: TokenBytes },
    /// GPT-2's alphabet and regular expression, with any merges.
    ByteLevelBpe { token_bytes: TokenBytes },
    /// Anything else, with the id of its unknown token, if it has one.
    HuggingFace { unknown_id: Option<u32> },
}

impl Kind {
    pub(super) fn of(json: &Value) -> Self {
        let known = tokens(json).filter(|_| json["normalizer"].is_null());
        known
            .and_then(|tokens| characters(json, &tokens).or_else(|| byte_level(json, &tokens)))
            .unwrap_or_else(|| Self::HuggingFace { unknown_id: unknown_id(&json["model"]) })
    }

    pub(super) fn token_bytes(&self) -> Option<&TokenBytes> {
        match self {
            Self::Characters { token_bytes, .. } | Self::Bytes { token_bytes } | Self::ByteLevelBpe { token_bytes } => {
                Some(token_bytes)
            }
            Self::HuggingFace { .. } => None,
        }
    }
}

/// A token, and whether it is an added one: then with the bytes of its text, which a special one has not.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct KnownToken<'a> {
    id: u64,
    text: &'a str,
    added: Option<&'a [u8]>,
}

/// The tokens by id, if the ids have no gaps and the added tokens are plain: each stands for its own text wherever that
/// occurs.
fn tokens(json: &Value) -> Option<Vec<KnownToken<'_>>> {
    let added_tokens = || json["added_tokens"].as_array().into_iter().flatten();
    let vocab = json["model"]["vocab"].as_object()?;
    let mut tokens = Vec::with_capacity(vocab.len());
    for added in added_tokens() {
        let text = added["content"].as_str()?;
        let is_plain = ["single_word", "lstrip", "rstrip"].iter().all(|flag| added[flag] != true);
        // Those that are looked for in normalized text come after the others.
        let is_alike = added["normalized"] == json["added_tokens"][0]["normalized"];
        if !is_plain || !is_alike || !text.is_ascii() || text.len() > MAX_ADDED_BYTES {
            return None;
        }
        let bytes = if added["special"] == true { &[] } else { text.as_bytes() };
        tokens.push(KnownToken { id: added["id"].as_u64()?, text, added: Some(bytes) });
    }
    let added: HashSet<&str> = tokens.iter().map(|token| token.text).collect();
    for (text, id) in vocab.iter().filter(|(text, _)| !added.contains(text.as_str())) {
        tokens.push(KnownToken { id: id.as_u64()?, text, added: None });
    }
    tokens.sort_unstable();
    let has_no_gaps = tokens.iter().enumerate().all(|(index, token)| index as u64 == token.id);
    has_no_gaps.then_some(tokens)
}

/// Single characters in order, optionally followed by added tokens.
fn characters(json: &Value, tokens: &[KnownToken]) -> Option<Kind> {
    let split = &json["pre_tokenizer"];
    let is_split_by_character =
        split["pattern"]["Regex"] == r"[\s\S]" && split["behavior"] == "Isolated" && split["invert"] == false;
    if json["model"]["type"] != "WordLevel" || !is_split_by_character || json["decoder"]["type"] != "Fuse" {
        return None;
    }
    let plain = tokens.iter().position(|token| token.added.is_some()).unwrap_or(tokens.len());
    let (plain, added) = tokens.split_at(plain);
    let only_character = |token: &KnownToken| token.text.chars().next().filter(|c| c.len_utf8() == token.text.len());
    let sorted = plain.iter().map(only_character).collect::<Option<Vec<char>>>()?;
    let token_bytes = tokens.iter().map(|token| token.added.unwrap_or(token.text.as_bytes()).into()).collect();
    let are_known = sorted.is_sorted() && added.iter().all(|token| token.added.is_some());
    are_known.then_some(Kind::Characters { sorted, token_bytes })
}

/// GPT-2's scheme; without merges and with the ids in byte order, it is the tokenizer of bytes.
fn byte_level(json: &Value, tokens: &[KnownToken]) -> Option<Kind> {
    let (model, split) = (&json["model"], &json["pre_tokenizer"]);
    let merges = model["merges"].as_array()?;
    let is_plain = model["type"].as_str().is_none_or(|kind| kind == "BPE")
        && model["ignore_merges"] != true
        && ["continuing_subword_prefix", "end_of_word_suffix"]
            .iter()
            .all(|key| model[key].as_str().is_none_or(str::is_empty));
    let has_words = split["type"] == "ByteLevel"
        && split["add_prefix_space"] == false
        && (merges.is_empty() || split["use_regex"] != false);
    if !is_plain || !has_words || json["decoder"]["type"] != "ByteLevel" {
        return None;
    }
    let bytes = byte_alphabet::bytes();
    let bytes_of = |token: &KnownToken| match token.added {
        Some(bytes) => Some(bytes.into()),
        None => token.text.chars().map(|c| bytes.get(&c).copied()).collect::<Option<_>>(),
    };
    let token_bytes: TokenBytes = tokens.iter().map(bytes_of).collect::<Option<_>>()?;
    if merges.is_empty()
        && token_bytes.len() >= 256
        && (0..=255u8).all(|byte| *token_bytes[usize::from(byte)] == [byte])
        && tokens[256..].iter().all(|token| token.added.is_some())
    {
        return Some(Kind::Bytes { token_bytes });
    }
    let mut has_byte = [false; 256];
    let plain = tokens.iter().zip(&token_bytes).filter(|(token, bytes)| token.added.is_none() && bytes.len() == 1);
    plain.for_each(|(_, bytes)| has_byte[usize::from(bytes[0])] = true);
    has_byte.iter().all(|has| *has).then_some(Kind::ByteLevelBpe { token_bytes })
}

/// Unigram names its unknown token by id, the others by its text.
fn unknown_id(model: &Value) -> Option<u32> {
    let by_token = || model["vocab"][model["unk_token"].as_str()?].as_u64();
    model["unk_id"].as_u64().or_else(by_token).and_then(|id| u32::try_from(id).ok())
}
