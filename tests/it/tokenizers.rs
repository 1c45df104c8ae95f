//! Tokenizers of every kind against transformers: `tests/fixtures/tokenizer_folders.py`.

use std::path::PathBuf;

use candle_attention::text::{Document, IdsStore, TextOptions, Tokenizer, Validation, encode};
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers").join(name)
}

/// Each tokenizer with what transformers says of it.
fn all() -> Vec<(String, Tokenizer, Value)> {
    let expected = std::fs::read(folder("expected.json")).unwrap();
    let expected: serde_json::Map<String, Value> = serde_json::from_slice(&expected).unwrap();
    let open = |(name, expected): (String, Value)| {
        let tokenizer = Tokenizer::open(folder(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, tokenizer, expected)
    };
    expected.into_iter().map(open).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn check(name: &str, tokenizer: &Tokenizer, expected: &Value) {
    assert_eq!(tokenizer.end_of_text_id().map(u64::from), expected["eos"].as_u64(), "{name}");
    assert_eq!(tokenizer.vocab_size() as u64, expected["size"].as_u64().unwrap(), "{name}");
    for case in expected["cases"].as_array().unwrap() {
        let (text, whole) = (case["text"].as_str().unwrap(), ids(&case["ids"]));
        let place = format!("{name}, {text:?}");
        let (plain, unknown) = tokenizer.encode_with_unknown(text).unwrap();
        assert_eq!(plain, ids(&case["plain"]), "{place}");
        match tokenizer.encode(text) {
            Ok(encoded) => assert!(encoded == whole && unknown == 0, "{place}: {encoded:?} for {whole:?}, {unknown}"),
            Err(error) => assert!(unknown > 0 && error.to_string().contains("unknown character"), "{place}: {error}"),
        }
        if let Some(is_unknown) = case["is_unknown"].as_bool() {
            assert_eq!(unknown > 0, is_unknown, "{place}");
        }
        assert_eq!(tokenizer.decode(&whole).unwrap(), case["decoded"].as_str().unwrap(), "{place}");
        let Some(rest) = case["rest"].as_str() else { continue };
        let (prompt, continuation) = whole.split_at(whole.len() / 2);
        let mut stream = tokenizer.stream_after(prompt).unwrap();
        let mut streamed: String = continuation.iter().map(|&id| stream.push(id).unwrap()).collect();
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, rest, "{place}");
    }
}

#[test]
fn ids_and_texts_are_those_of_transformers() {
    for (name, tokenizer, expected) in all() {
        check(&name, &tokenizer, &expected);
    }
}

/// Even by itself, without the files that completed it.
#[test]
fn a_saved_tokenizer_gives_the_same_ids_and_texts() {
    for (name, tokenizer, expected) in all() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(folder(&name).join("config.json"), dir.path().join("config.json")).unwrap();
        tokenizer.save(dir.path(), 64).unwrap();
        check(&name, &Tokenizer::open(dir.path()).unwrap(), &expected);
        let config = std::fs::read(dir.path().join("tokenizer_config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert!(config["eos_token"].is_string() || config["eos_token"]["content"].is_string(), "{name}: {config}");
    }
}

/// One document is encoded as its text; of several, each has what the tokenizer puts around it, and no end twice.
#[test]
fn documents_have_around_them_what_a_text_has() {
    let none = Validation::Fraction(0.0);
    let texts = ["the cat", "in the", "cat"];
    let documents: Vec<Document> = texts.iter().map(|text| Document::new("text", *text)).collect();
    for (name, tokenizer, _) in all() {
        let encoded = |documents: &[Document], validation: &Validation| {
            let options = TextOptions::default();
            let corpus = encode(&tokenizer, documents, validation, options, IdsStore::Temporary, &mut |_| {}).unwrap();
            [corpus.train.to_vec().unwrap(), corpus.validation.to_vec().unwrap()]
        };
        assert_eq!(encoded(&documents[..1], &none)[0], tokenizer.encode(texts[0]).unwrap(), "{name}");
        let end = tokenizer.end_of_text_id().unwrap();
        let mut expected = vec![];
        for text in texts {
            expected.extend(tokenizer.encode(text).unwrap());
            if expected.last() != Some(&end) {
                expected.push(end);
            }
        }
        assert_eq!(encoded(&documents, &none)[0], expected, "{name}");
        // A document that is cut has its front and its rear once.
        let plain = |text: &str| tokenizer.encode_plain(text).unwrap();
        let whole = tokenizer.encode(texts[0]).unwrap();
        let front = &whole[..whole.windows(plain(texts[0]).len()).position(|part| part == plain(texts[0])).unwrap()];
        let rear = &whole[front.len() + plain(texts[0]).len()..];
        let [train, validation] = encoded(&documents[..1], &Validation::Fraction(0.5));
        assert_eq!(train, [front, &plain("the")].concat(), "{name}");
        assert_eq!(validation, [&plain(" cat"), rear].concat(), "{name}");
    }
}

#[test]
fn a_folder_without_a_tokenizer_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = || Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert!(
        refusal().contains("expected a tokenizer: a tokenizer.json, or vocab.json and merges.txt"),
        "{}",
        refusal()
    );
    std::fs::write(dir.path().join("tokenizer.model"), "\n").unwrap();
    assert!(refusal().contains("got only tokenizer.model; to convert it: python -c"), "{}", refusal());
    std::fs::write(dir.path().join("vocab.json"), "{}").unwrap();
    std::fs::write(dir.path().join("merges.txt"), "").unwrap();
    assert!(refusal().contains("vocab.json: expected tokens and their ids, got none"), "{}", refusal());
}
