use serde_json::{Value, json};

use super::third_party::open;
use super::*;
use crate::text::tokenizer::stream::State;

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
            assert_eq!(texts.concat(), text, "{tokenizer:?}");
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
    let state = State::Library { ids: vec![1, 0], given: 1, stream: None };
    let rest = TextStream { tokenizer: &tokenizer, state }.finish().unwrap();
    assert_eq!(rest, tokenizer.decode(&[1, 0]).unwrap());
    let state = State::Library { ids: vec![1, 0], given: 99, stream: None };
    assert_eq!(TextStream { tokenizer: &tokenizer, state }.finish().unwrap(), "");
}
