use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::*;

mod streams;
mod third_party;

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

/// A byte-level BPE learned from some texts.
fn bpe(texts: &[&str], vocab_size: usize, end_of_text: bool) -> Result<Tokenizer> {
    let mut counts = WordCounts::default();
    counts.add(texts, &Markers::default());
    Tokenizer::learn_bpe(counts, vocab_size, end_of_text)
}

/// The three kinds, each without and with an end of text.
fn all_kinds(texts: &[&str]) -> Vec<Tokenizer> {
    let mut all = vec![];
    for end_of_text in [false, true] {
        all.push(Tokenizer::characters(texts, end_of_text).unwrap());
        all.push(Tokenizer::bytes(end_of_text).unwrap());
        all.push(bpe(texts, 311, end_of_text).unwrap());
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

/// The text as it is decoded: a special token gives none.
fn shown(tokenizer: &Tokenizer, text: &str) -> String {
    if tokenizer.end_of_text_id().is_some() { text.replace(END_OF_TEXT, "") } else { text.into() }
}

#[test]
fn a_text_comes_back_whole() {
    let random = random_texts(149);
    let texts: Vec<&str> = TEXTS.into_iter().chain(random.iter().map(String::as_str)).collect();
    for tokenizer in all_kinds(&texts) {
        for text in &texts {
            let ids = tokenizer.encode(text).unwrap();
            let expected = shown(&tokenizer, text);
            assert_eq!(tokenizer.decode(&ids).unwrap(), expected, "{tokenizer:?}");
            assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), expected.as_bytes(), "{tokenizer:?}");
            let is_end = |id: &u32| Some(*id) == tokenizer.end_of_text_id();
            let ends = if tokenizer.end_of_text_id().is_some() { text.matches(END_OF_TEXT).count() } else { 0 };
            assert_eq!(ids.iter().copied().filter(is_end).count(), ends, "{tokenizer:?}");
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        }
    }
}

#[test]
fn the_tokenizers_library_agrees() {
    for tokenizer in all_kinds(&TEXTS) {
        for text in TEXTS {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.inner.encode(text, true).unwrap().get_ids(), ids, "{tokenizer:?} {text:?}");
            assert_eq!(tokenizer.inner.decode(&ids, true).unwrap(), shown(&tokenizer, text), "{tokenizer:?}");
        }
    }
}

#[test]
fn saved_and_opened_again_it_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for tokenizer in all_kinds(&TEXTS) {
        tokenizer.save(dir.path(), 64).unwrap();
        let again = Tokenizer::open(dir.path()).unwrap();
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
    let error = tokenizer.decode(&[0, 3]).unwrap_err().to_string();
    assert!(error.contains("unknown token id 3: the vocabulary has 3 ids"), "{error}");
}

#[test]
fn any_bytes_are_tokens_of_the_byte_tokenizer() {
    let tokenizer = Tokenizer::bytes(true).unwrap();
    let bytes: Vec<u8> = (0..=255).rev().chain([0xff, 0xc3]).collect();
    let ids: Vec<u32> = bytes.iter().map(|&byte| byte.into()).collect();
    assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), bytes);
    assert_eq!(tokenizer.encode("né").unwrap(), [0x6e, 0xc3, 0xa9]);
    assert!(tokenizer.takes_any_bytes() && !bpe(&["a"], 256, false).unwrap().takes_any_bytes());
    assert_eq!(tokenizer.decode(&[0x61, 0xc3, 256, 0x62]).unwrap(), "a\u{fffd}b");
    assert_eq!((tokenizer.vocab_size(), tokenizer.end_of_text_id(), tokenizer.kind_name()), (257, Some(256), "byte"));
}

#[test]
fn merges_are_learned_and_learned_again_the_same() {
    let text = TEXTS.concat().repeat(5);
    let tokenizer = bpe(&[&text], 370, true).unwrap();
    assert_eq!(tokenizer.json, bpe(&[&text], 370, true).unwrap().json);
    assert_eq!((tokenizer.vocab_size(), tokenizer.end_of_text_id(), tokenizer.kind_name()), (370, Some(369), "bpe"));
    assert!(tokenizer.encode(&text).unwrap().len() < text.len() / 2);
    // There is little to learn from a short text.
    assert_eq!(bpe(&["abab"], 400, false).unwrap().vocab_size(), 257);
    assert_eq!(bpe(&[], 400, true).unwrap().vocab_size(), 257);
    assert_eq!(bpe(&["abab"], 256, false).unwrap().vocab_size(), 256);
    let error = bpe(&["abab"], 256, true).unwrap_err().to_string();
    assert!(error.contains("a bpe of 257 (256 bytes and the end of text) to 1048576 tokens, got 256"), "{error}");
    let error = bpe(&["abab"], 1 << 30, false).unwrap_err().to_string();
    assert!(error.contains("a bpe of 256 (256 bytes) to 1048576 tokens, got 1073741824"), "{error}");
}

#[test]
fn a_text_cut_between_words_encodes_as_in_one_piece() {
    let random = random_texts(97).concat();
    let tokenizer = bpe(&[&random, TEXTS[1]], 350, false).unwrap();
    let text = [TEXTS.concat(), random].concat();
    let whole = tokenizer.inner.encode_fast(text.as_str(), false).unwrap();
    for len in 1..text.len() {
        let (mut ids, mut rest) = (vec![], &*text);
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(cut_between_words(rest, len).unwrap_or(rest.len()));
            ids.extend(tokenizer.encode(head).unwrap());
            rest = tail;
        }
        assert_eq!(ids, whole.get_ids(), "pieces of {len} bytes");
    }
}

/// Merges do not cross the borders of its sections, so it is no longer encoded as the library does; but it comes back
/// whole, and does not take the square of its length in time.
#[test]
fn a_word_longer_than_any_is_encoded_in_sections() {
    let tokenizer = bpe(&[&"é".repeat(100), "ab"], 300, false).unwrap();
    for text in ["é".repeat(3 * MAX_WORD_BYTES), format!("  {}", "ab".repeat(2 * MAX_WORD_BYTES)), " ".repeat(1 << 16)]
    {
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        let sections: Vec<u32> = words::words(&text)
            .flat_map(|(_, word)| tokenizer.inner.encode_fast(word, false).unwrap().get_ids().to_vec())
            .collect();
        assert_eq!(ids, sections);
    }
}

/// Like GPT-2's own file: no type, merges as lines, and nothing about the regular expression.
#[test]
fn a_byte_level_bpe_from_elsewhere_is_recognised() {
    let text = TEXTS.concat().repeat(3);
    let ours = bpe(&[&text], 300, true).unwrap();
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
    assert_eq!(other.kind, Kind::HuggingFace { unknown_id: None });
}
