//! The tokenizers that need no training, and assembling a `tokenizer.json`.

use serde_json::{Map, Value, json};

use super::{END_OF_TEXT, Markers, Tokenizer, byte_alphabet};
use crate::host::{Result, bail};

impl Tokenizer {
    /// One token for each distinct character of some texts, with ids in character order, and with `end_of_text` one
    /// more for the end of a document.
    ///
    /// # Errors
    /// Texts without a single character.
    pub fn characters(texts: &[&str], end_of_text: bool) -> Result<Self> {
        let mut characters = CharacterSet::default();
        characters.add(texts, &Markers::default());
        Self::of_characters(&characters, end_of_text)
    }

    /// One token for each of some characters; see [`Tokenizer::characters`].
    pub(in crate::text) fn of_characters(characters: &CharacterSet, end_of_text: bool) -> Result<Self> {
        let vocab: Vec<(String, u32)> = characters.iter().map(String::from).zip(0..).collect();
        if vocab.is_empty() {
            bail!("expected a text to take the characters from, got an empty one");
        }
        JsonParts::characters(vocab).assemble(end_of_text)
    }

    /// The 256 bytes, each with its value as id; with `end_of_text`, id 256 is the end of a document.
    ///
    /// Other programs can read its `tokenizer.json` and get the same ids for any text; bytes that are not text can be
    /// encoded and decoded only here.
    ///
    /// # Errors
    /// None that depend on the arguments.
    pub fn bytes(end_of_text: bool) -> Result<Self> {
        let vocab = byte_alphabet::characters().iter().map(char::to_string).zip(0..).collect();
        JsonParts { vocab, model: json!({ "type": "BPE", "merges": [] }), ..JsonParts::byte_level(false) }
            .assemble(end_of_text)
    }
}

/// The set of characters of some texts.
#[derive(Clone, Debug)]
pub(in crate::text) struct CharacterSet(Box<[bool]>);

impl Default for CharacterSet {
    fn default() -> Self {
        Self(vec![false; char::MAX as usize + 1].into())
    }
}

impl CharacterSet {
    /// Adds the characters between the markers in some texts.
    pub(in crate::text) fn add(&mut self, texts: &[&str], markers: &Markers) {
        let texts = texts.iter().flat_map(|text| markers.between(text));
        texts.flat_map(str::chars).for_each(|c| self.0[c as usize] = true);
    }

    /// The characters in order.
    fn iter(&self) -> impl Iterator<Item = char> {
        self.0.iter().zip('\0' as u32..).filter_map(|(&is_in, code)| char::from_u32(code).filter(|_| is_in))
    }
}

/// What the `tokenizer.json` files of this crate differ in.
#[derive(Default)]
pub(super) struct JsonParts {
    /// Tokens and their ids, which have no gaps.
    pub(super) vocab: Vec<(String, u32)>,
    pub(super) model: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) decoder: Value,
}

impl JsonParts {
    /// Each character is a token.
    pub(super) fn characters(vocab: Vec<(String, u32)>) -> Self {
        Self {
            vocab,
            model: json!({ "type": "WordLevel", "unk_token": "<unk>" }),
            pre_tokenizer: json!({
                "type": "Split", "pattern": { "Regex": r"[\s\S]" }, "behavior": "Isolated", "invert": false
            }),
            decoder: json!({ "type": "Fuse" }),
        }
    }

    /// Text as bytes in GPT-2's alphabet, split into words by its regular expression or not at all.
    pub(super) fn byte_level(use_regex: bool) -> Self {
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex
        });
        Self { pre_tokenizer: byte_level.clone(), decoder: byte_level, ..Self::default() }
    }

    /// The tokenizer; the end-of-text token, if asked for, gets the last id.
    pub(super) fn assemble(mut self, end_of_text: bool) -> Result<Tokenizer> {
        let mut added_tokens = vec![];
        if end_of_text {
            let id = self.vocab.len() as u32;
            self.vocab.push((END_OF_TEXT.to_string(), id));
            added_tokens.push(json!({
                "id": id, "content": END_OF_TEXT, "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false
            }));
        }
        let vocab: Map<String, Value> = self.vocab.into_iter().map(|(token, id)| (token, id.into())).collect();
        self.model["vocab"] = vocab.into();
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added_tokens,
            "normalizer": null, "pre_tokenizer": self.pre_tokenizer, "post_processor": null,
            "decoder": self.decoder, "model": self.model
        });
        Tokenizer::assemble(json, None)
    }
}
