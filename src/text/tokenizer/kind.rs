//! Recognises the kind of a tokenizer from the content of its `tokenizer.json`.

use serde_json::Value;

use super::{END_OF_TEXT, byte_alphabet};

/// The bytes of each token, by id; none for the end of text.
type TokenBytes = Vec<Box<[u8]>>;

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

/// The tokens by id, if the ids have no gaps and the only added token is the end of text.
fn tokens(json: &Value) -> Option<Vec<&str>> {
    let mut pairs = Vec::new();
    for (token, id) in json["model"]["vocab"].as_object()? {
        pairs.push((id.as_u64()?, token.as_str()));
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        if added["content"] != END_OF_TEXT || added["special"] != true {
            return None;
        }
        pairs.push((added["id"].as_u64()?, END_OF_TEXT));
    }
    pairs.sort_unstable();
    pairs.dedup();
    let has_no_gaps = pairs.iter().enumerate().all(|(index, &(id, _))| index as u64 == id);
    has_no_gaps.then(|| pairs.into_iter().map(|(_, token)| token).collect())
}

/// Single characters in order, optionally followed by the end of text.
fn characters(json: &Value, tokens: &[&str]) -> Option<Kind> {
    let split = &json["pre_tokenizer"];
    let is_split_by_character =
        split["pattern"]["Regex"] == r"[\s\S]" && split["behavior"] == "Isolated" && split["invert"] == false;
    if json["model"]["type"] != "WordLevel" || !is_split_by_character || json["decoder"]["type"] != "Fuse" {
        return None;
    }
    let plain = tokens.strip_suffix(&[END_OF_TEXT]).unwrap_or(tokens);
    let only_character = |token: &&str| token.chars().next().filter(|c| c.len_utf8() == token.len());
    let sorted = plain.iter().map(only_character).collect::<Option<Vec<char>>>()?;
    let token_bytes =
        tokens.iter().map(|token| if *token == END_OF_TEXT { "" } else { token }.as_bytes().into()).collect();
    sorted.is_sorted().then_some(Kind::Characters { sorted, token_bytes })
}

/// GPT-2's scheme; without merges and with the ids in byte order, it is the tokenizer of bytes.
fn byte_level(json: &Value, tokens: &[&str]) -> Option<Kind> {
    let (model, split) = (&json["model"], &json["pre_tokenizer"]);
    let merges = model["merges"].as_array()?;
    let is_plain = model["type"].as_str().is_none_or(|kind| kind == "BPE")
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
    let bytes_of = |token: &&str| match *token {
        END_OF_TEXT => Some(Box::default()),
        token => token.chars().map(|c| bytes.get(&c).copied()).collect::<Option<_>>(),
    };
    let token_bytes: TokenBytes = tokens.iter().map(bytes_of).collect::<Option<_>>()?;
    if merges.is_empty()
        && token_bytes.len() >= 256
        && (0..=255u8).all(|byte| *token_bytes[usize::from(byte)] == [byte])
        && token_bytes[256..].iter().all(|token| token.is_empty())
    {
        return Some(Kind::Bytes { token_bytes });
    }
    let mut has_byte = [false; 256];
    token_bytes.iter().filter(|bytes| bytes.len() == 1).for_each(|bytes| has_byte[usize::from(bytes[0])] = true);
    has_byte.iter().all(|has| *has).then_some(Kind::ByteLevelBpe { token_bytes })
}

/// Unigram names its unknown token by id, the others by its text.
fn unknown_id(model: &Value) -> Option<u32> {
    let by_token = || model["vocab"][model["unk_token"].as_str()?].as_u64();
    model["unk_id"].as_u64().or_else(by_token).and_then(|id| u32::try_from(id).ok())
}
