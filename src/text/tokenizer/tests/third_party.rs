use serde_json::{Value, json};

use super::*;

/// A tokenizer.json with a model and a pre-tokenizer.
pub(super) fn open(model: Value, pre_tokenizer: Value, others: Value) -> Result<Tokenizer> {
    let mut json = json!({
        "version": "1.0", "truncation": { "max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right" },
        "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": pre_tokenizer,
        "post_processor": null, "decoder": null, "model": model
    });
    json.as_object_mut().unwrap().extend(others.as_object().unwrap().clone());
    Tokenizer::from_json(json.to_string().as_bytes())
}

fn special(id: u32, content: &str) -> Value {
    json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false })
}

#[test]
fn a_third_party_bpe_drops_nothing_in_silence() {
    let model = json!({ "type": "BPE", "vocab": { "a": 0, "b": 1, "c": 2, "ab": 3 }, "merges": [["a", "b"]] });
    let tokenizer = open(model, json!({ "type": "WhitespaceSplit" }), json!({})).unwrap();
    assert_eq!(tokenizer.kind_name(), "tokenizer.json");
    assert_eq!(tokenizer.encode("ab c\n ab cab").unwrap(), [3, 2, 3, 2, 3]); // and no truncation to 2
    for text in ["ab\nxab c", "ab axb c", "ab cx", "x", "abãab", "ab x c"] {
        let error = tokenizer.encode(text).unwrap_err().to_string();
        assert!(error.contains("unknown character"), "{text:?}: {error}");
    }
    assert!(tokenizer.decode(&[4]).unwrap_err().to_string().contains("unknown token id 4"));
}

#[test]
fn a_third_party_byte_level_bpe_without_all_bytes_drops_nothing_in_silence() {
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let model = json!({ "type": "BPE", "vocab": { "a": 0, "Ã": 1, "£": 2 }, "merges": [] }); // ã is the bytes c3 a3
    let tokenizer = open(model, byte_level.clone(), json!({ "decoder": byte_level })).unwrap();
    assert_eq!(tokenizer.kind_name(), "tokenizer.json");
    assert_eq!(tokenizer.decode(&tokenizer.encode("aã").unwrap()).unwrap(), "aã");
    let error = tokenizer.encode("aãé").unwrap_err().to_string(); // é is c3 a9: half of it is known
    assert!(error.contains("unknown character 'é' (U+00E9) at line 1, column 3"), "{error}");
}

#[test]
fn an_unknown_token_is_an_error() {
    let words = json!({ "type": "WordLevel", "vocab": { "one": 0, "two": 1, "[UNK]": 2 }, "unk_token": "[UNK]" });
    let tokenizer = open(words, json!({ "type": "Whitespace" }), json!({})).unwrap();
    assert_eq!(tokenizer.encode("one two").unwrap(), [0, 1]);
    let error = tokenizer.encode("one\ntwo three").unwrap_err().to_string();
    assert!(error.contains("'t' (U+0074) at line 2, column 5"), "{error}");

    let words = json!({ "type": "WordLevel", "vocab": { "one": 0, "two": 1 }, "unk_token": "[UNK]" });
    let tokenizer = open(words, json!({ "type": "WhitespaceSplit" }), json!({})).unwrap();
    let error = tokenizer.encode("one\ntwo three").unwrap_err().to_string();
    assert!(error.contains("Missing [UNK] token") && error.contains("at line 2, column 5"), "{error}");
}

#[test]
fn a_post_processor_puts_tokens_around_a_text() {
    let model = json!({ "type": "BPE", "vocab": { "a": 0, "b": 1, "</s>": 2 }, "merges": [] });
    let template = json!({
        "type": "TemplateProcessing", "single": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "SpecialToken": { "id": "</s>", "type_id": 0 } }],
        "pair": [], "special_tokens": { "</s>": { "id": "</s>", "ids": [2], "tokens": ["</s>"] } }
    });
    let rest = json!({ "added_tokens": [special(2, "</s>")], "post_processor": template });
    let tokenizer = open(model, Value::Null, rest).unwrap();
    assert_eq!(tokenizer.encode("ab").unwrap(), [0, 1, 2]);
    assert_eq!(tokenizer.encode_plain("ab").unwrap(), [0, 1]);
    assert_eq!(tokenizer.template(), (&[][..], &[2][..]));
    assert_eq!(tokenizer.end_of_text_id(), Some(2));
    assert_eq!(tokenizer.encode_plain("a</s>b").unwrap(), [0, 2, 1], "special tokens are read from the text");
}

/// What a tokenizer has no token for, and what its normalizer makes of a text.
#[test]
fn what_the_normalizer_composes_or_maps_is_known() {
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let model = json!({ "type": "BPE", "vocab": { "a": 0, "Ã": 1, "©": 2, "e": 3 }, "merges": [] }); // é is c3 a9
    let others = json!({ "decoder": byte_level, "normalizer": { "type": "NFC" } });
    let tokenizer = open(model, byte_level, others).unwrap();
    assert_eq!(tokenizer.encode("ae\u{301}a").unwrap(), [0, 1, 2, 0]);
    let error = tokenizer.encode("ae\u{301}\u{302}").unwrap_err().to_string();
    assert!(error.contains("unknown character '\\u{302}' (U+0302) at line 1, column 4"), "{error}");
    assert_eq!(tokenizer.encode_with_unknown("ae\u{301}\u{302}x").unwrap(), (vec![0, 1, 2], 3));

    let model = json!({ "type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["1", -1.0]] });
    let others = json!({ "added_tokens": [special(0, "<unk>")], "normalizer": { "type": "NFKC" } });
    let tokenizer = open(model, Value::Null, others).unwrap();
    assert_eq!(tokenizer.encode("a\u{2460}").unwrap(), [1, 2]);
    assert_eq!(tokenizer.encode("a<unk>").unwrap(), [1, 0], "the token itself may be in a text");
    let error = tokenizer.encode("a①☃a").unwrap_err().to_string();
    assert!(error.contains("unknown character '☃' (U+2603) at line 1, column 3"), "{error}");
    assert_eq!(tokenizer.encode_with_unknown("a①☃☃a☃").unwrap(), (vec![1, 2, 0, 1, 0], 2));
}

/// One that is read in chunks, with an added token that gives text and one that gives none.
#[test]
fn a_byte_level_bpe_with_a_template_and_added_tokens_is_still_recognised() {
    let mut json: Value = serde_json::from_str(&bpe(&[&"one two ".repeat(9)], 262, false).unwrap().json).unwrap();
    let size = json["model"]["vocab"].as_object().unwrap().len() as u32;
    let mut plain = special(size + 1, "<user>");
    plain["special"] = false.into();
    json["added_tokens"] = json!([special(size, "<s>"), plain]);
    json["post_processor"] = json!({ "type": "BertProcessing", "sep": ["<s>", size], "cls": ["<s>", size] });
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.kind_name(), "bpe");
    let text = "one<user> two<s>";
    let library = HfTokenizer::from_bytes(json.to_string()).unwrap();
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(ids, library.encode(text, true).unwrap().get_ids());
    assert_eq!(tokenizer.decode(&ids).unwrap(), library.decode(&ids, true).unwrap());
    assert_eq!(tokenizer.decode(&ids).unwrap(), "one<user> two");
    for flag in ["lstrip", "rstrip", "single_word"] {
        let mut json = json.clone();
        json["added_tokens"][1][flag] = true.into();
        assert_eq!(Tokenizer::from_json(json.to_string().as_bytes()).unwrap().kind_name(), "tokenizer.json", "{flag}");
    }
}

#[test]
fn what_is_no_tokenizer_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::open(dir.path().join("none.json")).unwrap_err().to_string();
    assert!(error.contains("none.json: No such file"), "{error}");
    for wrong in ["", "{}", "[]", "{\"model\": 3}", "\u{feff}{}"] {
        assert!(
            Tokenizer::from_json(wrong.as_bytes()).unwrap_err().to_string().contains("expected a tokenizer.json"),
            "{wrong}"
        );
    }
    assert!(Tokenizer::from_json(&[0xff]).is_err());
    let model = |merges: Value| json!({ "type": "BPE", "vocab": { "a": 0, "b": 1, "bb": 2 }, "merges": merges });
    assert!(open(model(json!([["b", "b"]])), Value::Null, json!({})).is_ok());
    assert!(open(model(json!(["b b"])), Value::Null, json!({})).is_ok());
    for merges in [json!([["bb", "a"]]), json!(["bb bb"]), json!(["b"]), json!([3]), json!([["b", "b"], ["bb"]])] {
        let error = open(model(merges), Value::Null, json!({})).unwrap_err().to_string();
        assert!(error.starts_with("expected a tokenizer"), "{error}");
    }
    let empty = json!({ "type": "BPE", "vocab": {}, "merges": [] });
    assert!(open(empty, Value::Null, json!({})).unwrap_err().to_string().contains("empty"));
}

/// With dropout the library leaves out merges at random, which only training is meant to do.
#[test]
fn a_bpe_with_dropout_encodes_as_one_without() {
    let byte_level = Tokenizer::from_json(bpe(&[&"one two three".repeat(9)], 270, false).unwrap().json.as_bytes());
    let vocab = json!({ "a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4 });
    let model = json!({ "type": "BPE", "vocab": vocab, "merges": [["a", "b"], ["ab", "c"]] });
    let whole_words = open(model, json!({ "type": "WhitespaceSplit" }), json!({}));
    for (tokenizer, text) in [(byte_level, "one two three "), (whole_words, "abc abcab ")] {
        let (tokenizer, text) = (tokenizer.unwrap(), text.repeat(50));
        let expected = tokenizer.encode(&text).unwrap();
        assert!(expected.len() < text.len() / 2);
        let mut json: Value = serde_json::from_str(&tokenizer.json).unwrap();
        json["model"]["dropout"] = 0.5.into();
        let with_dropout = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        for _ in 0..3 {
            assert_eq!(with_dropout.encode(&text).unwrap(), expected, "{tokenizer:?}");
        }
        // The file that a run keeps is the one that was given.
        assert_eq!(with_dropout.json, json.to_string());
    }
}

/// Names the tokens 2 and 3 of a tokenizer with four tokens, and what its `tokenizer_config.json` says.
fn end_of_text(names: [&str; 2], config: Option<Value>) -> Option<u32> {
    let dir = tempfile::tempdir().unwrap();
    let model = json!({ "type": "BPE", "vocab": { "a": 0, "b": 1, (names[0]): 2, (names[1]): 3 }, "merges": [] });
    let added_tokens = json!({ "added_tokens": [special(2, names[0]), special(3, names[1])] });
    let tokenizer = open(model, Value::Null, added_tokens).unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), &tokenizer.json).unwrap();
    if let Some(config) = config {
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    }
    Tokenizer::open(dir.path()).unwrap().end_of_text_id()
}

#[test]
fn the_end_of_text_is_what_the_configuration_names_and_else_a_token_of_a_usual_name() {
    assert_eq!(end_of_text(["</s>", "<|endoftext|>"], None), Some(3));
    assert_eq!(end_of_text(["<|end_of_text|>", "</s>"], None), Some(3));
    assert_eq!(end_of_text(["<|im_start|>", "<|im_end|>"], None), None);
    let named = |token: Value| Some(json!({ "eos_token": token, "bos_token": "<|endoftext|>" }));
    for token in [json!("<|im_end|>"), json!({ "__type": "AddedToken", "content": "<|im_end|>", "special": true })] {
        assert_eq!(end_of_text(["<|endoftext|>", "<|im_end|>"], named(token)), Some(3));
    }
    // One that is no token yet becomes one.
    assert_eq!(end_of_text(["<|endoftext|>", "<|im_end|>"], named(json!("<eos>"))), Some(4));
    // What names no token is not taken for one.
    for token in [Value::Null, json!(3), json!({})] {
        assert_eq!(end_of_text(["<|endoftext|>", "<|im_end|>"], named(token)), Some(2));
    }
    assert_eq!(end_of_text(["<|endoftext|>", "<|im_end|>"], Some(json!({}))), Some(2));
}

/// The library finds such a token inside characters.
#[test]
fn an_added_token_that_normalizes_to_nothing_stops_nobody() {
    for (content, normalized) in [("  ", true), ("  ", false), (" b", true)] {
        let mut token = special(1, content);
        (token["normalized"], token["single_word"]) = (normalized.into(), true.into());
        let others = json!({ "added_tokens": [token], "normalizer": { "type": "Strip", "strip_left": true, "strip_right": true } });
        let model = json!({ "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "a" });
        if let Ok(tokenizer) = open(model, Value::Null, others) {
            for text in ["a", "é", "a é  漢", ""] {
                let _ = tokenizer.encode(text);
            }
        }
    }
}
