//! The tokens that the files beside a `tokenizer.json` add to it, as transformers 5 adds them.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use super::class::Class;

/// The names of special tokens in the order in which they are added.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The tokens that a folder names.
pub(super) struct NamedTokens {
    /// Those with an id, by id.
    listed: Vec<AddedToken>,
    /// Those with a role, such as `eos_token`.
    special: Vec<(String, AddedToken)>,
    extra: Vec<AddedToken>,
}

impl NamedTokens {
    /// Those of `tokenizer_config.json` or, where it lists no added tokens, of the older files: `special_tokens_map.json`
    /// and `added_tokens.json`.
    pub(super) fn of(
        class: Class,
        config: &Map<String, Value>,
        [special, added]: [&Map<String, Value>; 2],
        json: &Value,
    ) -> Self {
        let mut config = config.clone();
        let mut listed: HashMap<u64, AddedToken> = HashMap::new();
        if let Some(decoder) = config.get("added_tokens_decoder").and_then(Value::as_object) {
            listed
                .extend(decoder.iter().filter_map(|(id, token)| Some((id.parse().ok()?, added_token(token, false)?))));
        } else {
            config.extend(special.iter().map(|(name, token)| (name.clone(), token.clone())));
            let named: Vec<String> =
                special_tokens(class, &config).into_iter().map(|(_, token)| token.content).collect();
            for (content, id) in added.iter().filter_map(|(content, id)| Some((content, id.as_u64()?))) {
                listed.insert(id, AddedToken::from(content.as_str(), named.contains(content)));
            }
            let own = json["added_tokens"].as_array().into_iter().flatten();
            listed.extend(own.filter_map(|token| Some((token["id"].as_u64()?, added_token(token, false)?))));
        }
        let mut listed: Vec<(u64, AddedToken)> = listed.into_iter().collect();
        listed.sort_unstable_by_key(|&(id, _)| id);
        let listed = listed.into_iter().map(|(_, token)| token).collect();
        let extra =
            ["extra_special_tokens", "additional_special_tokens"].iter().find_map(|name| config.get(*name)?.as_array());
        let extra = extra.into_iter().flatten().filter_map(|token| added_token(token, true)).collect();
        Self { listed, special: special_tokens(class, &config), extra }
    }

    /// The text of the token with a role.
    pub(super) fn special(&self, name: &str) -> Option<&str> {
        self.roles().find(|(role, _)| *role == name).map(|(_, token)| token)
    }

    /// The special tokens with a role, by text.
    pub(super) fn roles(&self) -> impl Iterator<Item = (&str, &str)> {
        self.special.iter().map(|(role, token)| (role.as_str(), token.content.as_str()))
    }

    /// Adds them to a `tokenizer.json`; whether that changes it.
    pub(super) fn add_to(&self, json: &mut Value, class: Class) -> bool {
        let before = json["added_tokens"].take();
        let mut added = match class {
            Class::Plain => before.as_array().cloned().unwrap_or_default(),
            _ => vec![],
        };
        let is_special = |content: &str| self.special.iter().any(|(_, token)| token.content == content);
        let listed = self
            .listed
            .iter()
            .map(|token| AddedToken { special: token.special || is_special(&token.content), ..token.clone() });
        add(&mut added, &json["model"], listed);
        let has = |added: &[Value], token: &AddedToken| added.iter().any(|other| other["content"] == token.content);
        for token in self.special.iter().map(|(_, token)| token).chain(&self.extra) {
            if !has(&added, token) {
                add(&mut added, &json["model"], [AddedToken { special: true, ..token.clone() }]);
            }
        }
        if class == Class::Qwen2 {
            let all = self.special.iter().map(|(_, token)| token).chain(&self.extra);
            add(&mut added, &json["model"], all.map(|token| AddedToken::from(token.content.as_str(), true)));
        }
        let is_changed = before
            .as_array()
            .is_none_or(|before| before.len() != added.len() || !added.iter().all(|token| before.contains(token)));
        json["added_tokens"] = added.into();
        is_changed
    }
}

/// The special tokens of a configuration, with the defaults of the class.
fn special_tokens(class: Class, config: &Map<String, Value>) -> Vec<(String, AddedToken)> {
    let named = |name: &str| match (config.get(name), class.special_tokens().iter().find(|(role, _)| *role == name)) {
        (Some(token), _) => added_token(token, true),
        (None, Some((_, default))) => Some(AddedToken::from(*default, true)),
        (None, None) => None,
    };
    let others = config.keys().filter(|name| name.ends_with("_token") && !NAMES.contains(&name.as_str()));
    let names = NAMES.into_iter().map(str::to_string).chain(others.cloned());
    let mut all: Vec<(String, AddedToken)> = names.filter_map(|name| Some((name.clone(), named(&name)?))).collect();
    let extra = config.get("extra_special_tokens").and_then(Value::as_object).into_iter().flatten();
    all.extend(extra.filter_map(|(name, token)| Some((name.clone(), added_token(token, true)?))));
    all
}

/// A token written as a text or as an object.
fn added_token(token: &Value, special: bool) -> Option<AddedToken> {
    let content = token.as_str().or_else(|| token["content"].as_str())?;
    let flag = |name: &str| token[name].as_bool();
    let special = flag("special").unwrap_or(special);
    Some(AddedToken {
        content: content.into(),
        single_word: flag("single_word").unwrap_or_default(),
        lstrip: flag("lstrip").unwrap_or_default(),
        rstrip: flag("rstrip").unwrap_or_default(),
        normalized: flag("normalized").unwrap_or(!special),
        special,
    })
}

/// Adds tokens as the library does: with the id that the vocabulary has for them, else the next one. One that is there
/// already takes on the new flags.
fn add(added: &mut Vec<Value>, model: &Value, tokens: impl IntoIterator<Item = AddedToken>) {
    let size = model["vocab"]
        .as_object()
        .map(Map::len)
        .or_else(|| model["vocab"].as_array().map(Vec::len))
        .unwrap_or_default() as u64;
    let largest = added.iter().filter_map(|token| token["id"].as_u64()).max();
    let mut next = largest.map_or(size, |largest| size.max(largest + 1));
    for AddedToken { content, single_word, lstrip, rstrip, normalized, special } in tokens {
        if content.is_empty() {
            continue;
        }
        let at = added.iter().position(|other| other["content"] == content);
        let id = at.and_then(|at| added[at]["id"].as_u64()).or_else(|| id_in(model, &content)).unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        let token = json!({
            "id": id, "content": content, "single_word": single_word, "lstrip": lstrip, "rstrip": rstrip,
            "normalized": normalized, "special": special
        });
        match at {
            Some(at) => added[at] = token,
            None => added.push(token),
        }
    }
}

/// The id of a token in the vocabulary of a model: an object, or in Unigram a list of tokens with scores.
fn id_in(model: &Value, token: &str) -> Option<u64> {
    let listed = || model["vocab"].as_array()?.iter().position(|entry| entry[0] == token).map(|id| id as u64);
    model["vocab"][token].as_u64().or_else(listed)
}
