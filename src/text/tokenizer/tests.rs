use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::stream::State;
use super::*;
use crate::text::TextProgress;

const TEXTS: [&str; 9] = [
    "",
    "A ação do coração não é vã: \"pão, mãe, avô\" — três!\n",
    "🦀 e 👩‍👩‍👧 são emojis; e\u{301} é um acento solto",
    "linha um\r\nlinha dois\r\n\r\n\tfim",
    "  espaços antes, e depois   ",
    "a\0b \u{200d} \u{feff}\u{3000}x \u{a0}\u{85}",
    "it's we'll they'd 12345 x1y2 ...!? '",
    "<|endoftext|> é texto aqui <|endoftext|>",
    "\n\n\n \n",
];

/// The three kinds, each without and with an end of text.
fn all_kinds(texts: &[&str]) -> Vec<Tokenizer> {
    let mut all = vec![];
    for end_of_text in [false, true] {
        all.push(Tokenizer::characters(texts, end_of_text).unwrap());
        all.push(Tokenizer::bytes(end_of_text).unwrap());
        all.push(Tokenizer::train_bpe(texts, 311, end_of_text, &mut |_| {}).unwrap());
    }
    all
}

/// Texts of letters, spaces, marks and arbitrary characters.
fn random_texts(n: usize) -> Vec<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let common: Vec<char> = "aãbé '\n\r\t 12.<|>🦀\u{301}".chars().collect();
    let mut character = move || match rng.random_range(0..8) {
        0 => rng.random::<char>(),
        _ => common[rng.random_range(0..common.len())],
    };
    (0..n).map(|i| (0..i % 37).map(|_| character()).collect()).collect()
}

#[test]
fn a_text_comes_back_whole() {
    let random = random_texts(149);
    let texts: Vec<&str> = TEXTS.into_iter().chain(random.iter().map(String::as_str)).collect();
    for tokenizer in all_kinds(&texts) {
        for text in &texts {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(&tokenizer.decode(&ids).unwrap(), text, "{tokenizer:?}");
            assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), text.as_bytes(), "{tokenizer:?}");
            assert_eq!(tokenizer.encode_bytes(text.as_bytes()).unwrap(), ids);
            assert!(
                !ids.iter().any(|&id| Some(id) == tokenizer.end_of_text_id() || id as usize >= tokenizer.vocab_size())
            );
        }
    }
}

#[test]
fn the_tokenizers_library_agrees() {
    for tokenizer in all_kinds(&TEXTS) {
        for text in TEXTS {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.inner.encode(text, true).unwrap().get_ids(), ids, "{tokenizer:?} {text:?}");
            assert_eq!(tokenizer.inner.decode(&ids, true).unwrap(), text, "{tokenizer:?}");
        }
    }
}

#[test]
fn saved_and_opened_again_it_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for tokenizer in all_kinds(&TEXTS) {
        tokenizer.save(dir.path(), 64).unwrap();
        let again = Tokenizer::from_file(dir.path()).unwrap();
        assert_eq!(again.kind, tokenizer.kind);
        assert_eq!(again.json, tokenizer.json);
        assert_eq!((again.vocab_size(), again.end_of_text_id()), (tokenizer.vocab_size(), tokenizer.end_of_text_id()));
        again.save(dir.path(), 32).unwrap();
        let config: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("tokenizer_config.json")).unwrap()).unwrap();
        let end = tokenizer.end_of_text_id().map_or(Value::Null, |_| END_OF_TEXT.into());
        assert_eq!((&config["model_max_length"], &config["eos_token"]), (&json!(32), &end));
        assert_eq!(config["clean_up_tokenization_spaces"], false);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file stays");
    }
}

#[test]
fn characters_are_numbered_in_order() {
    let tokenizer = Tokenizer::characters(&["cab\n", "bd"], true).unwrap();
    assert_eq!(tokenizer.encode("\nabcd").unwrap(), [0, 1, 2, 3, 4]);
    assert_eq!((tokenizer.vocab_size(), tokenizer.end_of_text_id(), tokenizer.kind_name()), (6, Some(5), "char"));
    assert_eq!(tokenizer.decode(&[1, 5, 2]).unwrap(), "ab");
    assert_eq!(Tokenizer::characters(&["cab"], false).unwrap().vocab_size(), 3);
    assert!(Tokenizer::characters(&[""], true).is_err());
}

#[test]
fn what_has_no_token_is_an_error_with_its_place() {
    let tokenizer = Tokenizer::characters(&["aé\n"], false).unwrap();
    let error = tokenizer.encode("a\néaz").unwrap_err().to_string();
    assert!(error.contains("'z' (U+007A) at line 2, column 3 (byte 5)"), "{error}");
    let error = tokenizer.encode_bytes(b"a\na\xffa").unwrap_err().to_string();
    assert!(error.contains("0xff at line 2, column 2 (byte 3)") && error.contains("--tokenizer byte"), "{error}");
    let error = tokenizer.decode(&[0, 3]).unwrap_err().to_string();
    assert!(error.contains("unknown token id 3: the vocabulary has 3 ids"), "{error}");
}

#[test]
fn any_bytes_are_tokens_of_the_byte_tokenizer() {
    let tokenizer = Tokenizer::bytes(true).unwrap();
    let bytes: Vec<u8> = (0..=255).rev().chain([0xff, 0xc3]).collect();
    let ids = tokenizer.encode_bytes(&bytes).unwrap();
    assert!(ids.iter().zip(&bytes).all(|(&id, &byte)| id == u32::from(byte)));
    assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), bytes);
    assert_eq!(tokenizer.decode(&[0x61, 0xc3, 256, 0x62]).unwrap(), "a\u{fffd}b");
    assert_eq!((tokenizer.vocab_size(), tokenizer.end_of_text_id(), tokenizer.kind_name()), (257, Some(256), "byte"));
}

#[test]
fn merges_are_learned_and_learned_again_the_same() {
    let text = TEXTS.concat().repeat(5);
    let train = || Tokenizer::train_bpe(&[&text], 370, true, &mut |_| {}).unwrap();
    let tokenizer = train();
    assert_eq!(tokenizer.json, train().json);
    assert_eq!((tokenizer.vocab_size(), tokenizer.kind_name()), (370, "bpe"));
    assert!(tokenizer.encode(&text).unwrap().len() < text.len() / 2);
    // There is little to learn from a short text.
    assert_eq!(Tokenizer::train_bpe(&["abab"], 400, false, &mut |_| {}).unwrap().vocab_size(), 257);
    assert_eq!(Tokenizer::train_bpe(&[], 400, true, &mut |_| {}).unwrap().vocab_size(), 257);
    let error = Tokenizer::train_bpe(&["abab"], 256, true, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("at least 257 tokens (256 bytes and the end of text), got 256"), "{error}");
    assert_eq!(Tokenizer::train_bpe(&["abab"], 256, false, &mut |_| {}).unwrap().vocab_size(), 256);
}

#[test]
fn progress_counts_all_the_text() {
    let (text, mut reports) = ("two words ".repeat(600_000), vec![]);
    Tokenizer::train_bpe(&[&text, "more"], 260, false, &mut |report| reports.push(report)).unwrap();
    let total = text.len() as u64 + 4;
    assert!(reports.len() > 3);
    assert_eq!(reports[reports.len() - 2], TextProgress::Counting { done: total, total });
    assert_eq!(reports[reports.len() - 1], TextProgress::Merging { merges: 4, seconds: 0 });
}

#[test]
fn a_large_text_in_chunks_encodes_as_in_one_piece() {
    let random = random_texts(97).concat();
    let tokenizer = Tokenizer::train_bpe(&[&random, TEXTS[1]], 350, false, &mut |_| {}).unwrap();
    let text = [TEXTS.concat(), random].concat().repeat(300);
    assert!(text.len() > 3 * PIECE_BYTES);
    let whole = tokenizer.inner.encode_fast(text.as_str(), false).unwrap();
    assert!(tokenizer.encode(&text).unwrap() == whole.get_ids());
    // And at every possible cut.
    let short = &text[..text.floor_char_boundary(700)];
    let whole = tokenizer.inner.encode_fast(short, false).unwrap();
    for len in 1..90 {
        let ids: Vec<u32> = words::chunks(short, len).flat_map(|chunk| tokenizer.encode(chunk).unwrap()).collect();
        assert_eq!(ids, whole.get_ids(), "chunks of {len}");
    }
}

/// A tokenizer.json with a model and a pre-tokenizer.
fn foreign(model: Value, pre_tokenizer: Value, rest: Value) -> Result<Tokenizer> {
    let mut json = json!({
        "version": "1.0", "truncation": { "max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right" },
        "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": pre_tokenizer,
        "post_processor": null, "decoder": null, "model": model
    });
    json.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    Tokenizer::from_json(json.to_string().as_bytes())
}

fn special(id: u32, content: &str) -> Value {
    json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false })
}

#[test]
fn a_foreign_bpe_drops_nothing_in_silence() {
    let model = json!({ "type": "BPE", "vocab": { "a": 0, "b": 1, "c": 2, "ab": 3 }, "merges": [["a", "b"]] });
    let tokenizer = foreign(model, json!({ "type": "WhitespaceSplit" }), json!({})).unwrap();
    assert_eq!(tokenizer.kind_name(), "tokenizer.json");
    assert_eq!(tokenizer.encode("ab c\n ab cab").unwrap(), [3, 2, 3, 2, 3]); // and no truncation to 2
    for (text, place) in [
        ("ab\nxab c", "'x' (U+0078) at line 2, column 1 (byte 3)"),
        ("ab axb c", "'x' (U+0078) at line 1, column 5 (byte 4)"),
        ("ab cx", "'x' (U+0078) at line 1, column 5 (byte 4)"),
        ("x", "'x' (U+0078) at line 1, column 1 (byte 0)"),
        ("abãab", "'ã' (U+00E3) at line 1, column 3 (byte 2)"),
        ("ab x c", "'x' (U+0078) at line 1, column 4 (byte 3)"),
    ] {
        let error = tokenizer.encode(text).unwrap_err().to_string();
        assert!(error.contains(place), "{text:?}: {error}");
    }
    assert!(tokenizer.decode(&[4]).unwrap_err().to_string().contains("unknown token id 4"));
}

#[test]
fn a_foreign_byte_level_bpe_without_all_bytes_drops_nothing_in_silence() {
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let model = json!({ "type": "BPE", "vocab": { "a": 0, "Ã": 1, "£": 2 }, "merges": [] }); // ã is the bytes c3 a3
    let tokenizer = foreign(model, byte_level.clone(), json!({ "decoder": byte_level })).unwrap();
    assert_eq!(tokenizer.kind_name(), "tokenizer.json");
    assert_eq!(tokenizer.decode(&tokenizer.encode("aã").unwrap()).unwrap(), "aã");
    let error = tokenizer.encode("aãé").unwrap_err().to_string(); // é is c3 a9: half of it is known
    assert!(error.contains("'é' (U+00E9) at line 1, column 3"), "{error}");
}

#[test]
fn an_unknown_token_is_an_error() {
    let words = json!({ "type": "WordLevel", "vocab": { "one": 0, "two": 1, "[UNK]": 2 }, "unk_token": "[UNK]" });
    let tokenizer = foreign(words, json!({ "type": "Whitespace" }), json!({})).unwrap();
    assert_eq!(tokenizer.encode("one two").unwrap(), [0, 1]);
    let error = tokenizer.encode("one\ntwo three").unwrap_err().to_string();
    assert!(error.contains("'t' (U+0074) at line 2, column 5"), "{error}");

    let words = json!({ "type": "WordLevel", "vocab": { "one": 0, "two": 1 }, "unk_token": "[UNK]" });
    let tokenizer = foreign(words, json!({ "type": "WhitespaceSplit" }), json!({})).unwrap();
    let error = tokenizer.encode("one\ntwo three").unwrap_err().to_string();
    assert!(error.contains("\"three\" at line 2, column 5"), "{error}");
}

#[test]
fn a_post_processor_adds_nothing() {
    let model = json!({ "type": "BPE", "vocab": { "a": 0, "b": 1, "</s>": 2 }, "merges": [] });
    let template = json!({
        "type": "TemplateProcessing", "single": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "SpecialToken": { "id": "</s>", "type_id": 0 } }],
        "pair": [], "special_tokens": { "</s>": { "id": "</s>", "ids": [2], "tokens": ["</s>"] } }
    });
    let rest = json!({ "added_tokens": [special(2, "</s>")], "post_processor": template });
    let tokenizer = foreign(model, Value::Null, rest).unwrap();
    assert_eq!(tokenizer.inner.encode("ab", true).unwrap().get_ids(), [0, 1]);
    assert_eq!(tokenizer.encode("ab").unwrap(), [0, 1]);
    assert_eq!(tokenizer.end_of_text_id(), Some(2));
    assert_eq!(tokenizer.encode("a</s>b").unwrap(), [0, 2, 1], "the special tokens of others are read from the text");
}

#[test]
fn what_is_no_tokenizer_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_file(dir.path().join("none.json")).unwrap_err().to_string();
    assert!(error.contains("none.json: No such file"), "{error}");
    for wrong in ["", "{}", "[]", "{\"model\": 3}", "\u{feff}{}"] {
        assert!(
            Tokenizer::from_json(wrong.as_bytes()).unwrap_err().to_string().contains("expected a tokenizer.json"),
            "{wrong}"
        );
    }
    assert!(Tokenizer::from_json(&[0xff]).is_err());
    let model = |merges: Value| json!({ "type": "BPE", "vocab": { "a": 0, "b": 1, "bb": 2 }, "merges": merges });
    assert!(foreign(model(json!([["b", "b"]])), Value::Null, json!({})).is_ok());
    assert!(foreign(model(json!(["b b"])), Value::Null, json!({})).is_ok());
    for merges in [json!([["bb", "a"]]), json!(["bb bb"]), json!(["b"]), json!([3]), json!([["b", "b"], ["bb"]])] {
        let error = foreign(model(merges), Value::Null, json!({})).unwrap_err().to_string();
        assert!(error.contains("merges"), "{error}");
    }
    let empty = json!({ "type": "BPE", "vocab": {}, "merges": [] });
    assert!(foreign(empty, Value::Null, json!({})).unwrap_err().to_string().contains("empty"));
}

/// Like GPT-2's own file: no type, merges as lines, and nothing about the regular expression.
#[test]
fn a_byte_level_bpe_from_elsewhere_is_recognised() {
    let text = TEXTS.concat().repeat(3);
    let ours = Tokenizer::train_bpe(&[&text], 300, true, &mut |_| {}).unwrap();
    let mut json: Value = serde_json::from_str(&ours.json).unwrap();
    let pairs = json["model"]["merges"].as_array().unwrap().clone();
    json["model"]["merges"] = pairs
        .iter()
        .map(|pair| Value::from(format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())))
        .collect();
    json["model"].as_object_mut().unwrap().remove("type");
    json["model"]["continuing_subword_prefix"] = "".into();
    json["pre_tokenizer"].as_object_mut().unwrap().remove("use_regex");
    let theirs = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    assert_eq!(theirs.kind, ours.kind);
    assert_eq!(theirs.encode(&text).unwrap(), ours.encode(&text).unwrap());
    // If it splits words differently, it is another tokenizer.
    json["pre_tokenizer"]["add_prefix_space"] = true.into();
    let other = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    assert_eq!(other.kind, Kind::Other { unknown_id: None });
}

/// The texts of a stream: one per id, and the rest.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream();
    let mut texts: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    texts.push(stream.finish().unwrap());
    texts
}

#[test]
fn a_stream_gives_the_same_text_piece_by_piece() {
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
fn a_stream_of_a_foreign_tokenizer_gives_the_same_text() {
    let model = json!({ "type": "BPE", "vocab": { "a": 0, "b": 1, "c": 2, "ab": 3, "▁": 4, "▁ab": 5 }, "merges": [] });
    let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    let tokenizer = foreign(model, metaspace.clone(), json!({ "decoder": metaspace })).unwrap();
    let ids = [5, 4, 0, 2, 5, 1];
    assert_eq!(tokenizer.decode(&ids).unwrap(), "ab ac abb");
    assert_eq!(streamed(&tokenizer, &ids), ["ab", " ", "a", "c", " ab", "b", ""]);
    assert!(tokenizer.stream().push(9).is_err());
}

/// Where the text so far ends inside a character of the final text, nothing of the rest is lost.
#[test]
fn what_a_stream_has_left_starts_at_a_character() {
    let model = json!({ "type": "BPE", "vocab": { "a": 0, "é": 1 }, "merges": [] });
    let tokenizer = foreign(model, Value::Null, json!({})).unwrap();
    let state = State::Foreign { ids: vec![1, 0], given: 1, stream: None };
    let rest = TextStream { tokenizer: &tokenizer, state }.finish().unwrap();
    assert_eq!(rest, tokenizer.decode(&[1, 0]).unwrap());
    let state = State::Foreign { ids: vec![1, 0], given: 99, stream: None };
    assert_eq!(TextStream { tokenizer: &tokenizer, state }.finish().unwrap(), "");
}
