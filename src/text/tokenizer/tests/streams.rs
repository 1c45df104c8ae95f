use serde_json::{Value, json};

use super::third_party::open;
use super::*;
use crate::text::tokenizer::stream::{LibraryState, State};

/// The texts of a stream: one per id, and the rest.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream();
    let mut texts: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    texts.push(stream.finish().unwrap());
    texts
}

#[test]
fn a_stream_gives_the_same_text_id_by_id() {
    for tokenizer in all_kinds(&TEXTS) {
        for text in TEXTS {
            let ids = tokenizer.encode(text).unwrap();
            let texts = streamed(&tokenizer, &ids);
            assert_eq!(texts.concat(), shown(&tokenizer, text), "{tokenizer:?}");
            assert!(texts.iter().all(|text| !text.contains(char::REPLACEMENT_CHARACTER)), "{tokenizer:?}");
        }
        assert!(tokenizer.stream().push(tokenizer.vocab_size() as u32).is_err());
    }
    // Bytes that are not text: part of a character, what can never be one, and part of one at the end.
    let bytes = Tokenizer::bytes(false).unwrap();
    let ids = [b'a', 0xc3, b'b', 0xff, 0xe2, 0x82].map(u32::from);
    assert_eq!(streamed(&bytes, &ids), ["a", "", "\u{fffd}b", "\u{fffd}", "", "", "\u{fffd}"]);
    assert_eq!(streamed(&bytes, &ids).concat(), bytes.decode(&ids).unwrap());
}

#[test]
fn a_stream_of_a_third_party_tokenizer_gives_the_same_text() {
    let model = json!({ "type": "BPE", "vocab": { "a": 0, "b": 1, "c": 2, "ab": 3, "▁": 4, "▁ab": 5 }, "merges": [] });
    let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    let tokenizer = open(model, metaspace.clone(), json!({ "decoder": metaspace })).unwrap();
    let ids = [5, 4, 0, 2, 5, 1];
    assert_eq!(tokenizer.decode(&ids).unwrap(), "ab ac abb");
    assert_eq!(streamed(&tokenizer, &ids), ["ab", " ", "a", "c", " ab", "b", ""]);
    assert!(tokenizer.stream().push(9).is_err());
}

/// Where the text so far ends inside a character of the final text, nothing of the rest is lost.
#[test]
fn what_a_stream_has_left_starts_at_a_character() {
    let model = json!({ "type": "BPE", "vocab": { "a": 0, "é": 1 }, "merges": [] });
    let tokenizer = open(model, Value::Null, json!({})).unwrap();
    let rest = |given| {
        let state = LibraryState { ids: vec![1, 0], given, stream: None, held: String::new(), settled: 0 };
        TextStream { tokenizer: &tokenizer, state: State::Library(state) }.finish().unwrap()
    };
    assert_eq!(rest(1), tokenizer.decode(&[1, 0]).unwrap());
    assert_eq!(rest(99), "");
}

/// The text after a prompt, id by id, and whether it all came at the end.
fn streamed_after(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream_after(prompt).unwrap();
    let mut texts: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    texts.push(stream.finish().unwrap());
    texts
}

#[test]
fn a_stream_after_a_prompt_goes_on_as_the_whole_text() {
    let model = json!({ "type": "BPE", "vocab": { "▁a": 0, "b": 1, "▁": 2 }, "merges": [] });
    let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    let tokenizer = open(model, metaspace.clone(), json!({ "decoder": metaspace })).unwrap();
    assert_eq!(streamed_after(&tokenizer, &[0], &[0, 1]), [" a", "b", ""]);
    assert_eq!(streamed_after(&tokenizer, &[], &[0, 1]), ["a", "b", ""]);
    let bytes = Tokenizer::bytes(false).unwrap();
    assert_eq!(streamed_after(&bytes, &[b'a'.into()], &[b'b'.into()]), ["b", ""]);
}

/// A space is held back until what follows it is known.
#[test]
fn a_stream_cleans_up_spaces_as_the_whole_text() {
    let words = ["the", "lamp", ".", "it", "'s", "n't", "dark"];
    let vocab: serde_json::Map<String, Value> =
        words.iter().zip(0..).map(|(word, id)| (word.to_string(), json!(id))).collect();
    let model = json!({ "type": "WordLevel", "vocab": vocab, "unk_token": "the" });
    let mut tokenizer = open(model, json!({ "type": "WhitespaceSplit" }), json!({})).unwrap();
    tokenizer.cleans_up = true;
    let ids = [0, 6, 1, 2, 3, 4, 6, 5, 2, 0, 1];
    let whole = tokenizer.decode(&ids).unwrap();
    assert_eq!(whole, "the dark lamp. it's darkn't. the lamp");
    for split in 0..ids.len() {
        let (before, after) = ids.split_at(split);
        let texts = streamed_after(&tokenizer, before, after);
        let start = tokenizer.decode(before).unwrap();
        assert_eq!(start + &texts.concat(), whole, "{split}");
        assert!(split > 0 || texts[..3].concat() == "the dark", "{texts:?}");
    }
}
