//! Tokenizers from elsewhere, made of every kind of part that the library knows.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::*;

fn models() -> Vec<Value> {
    let vocab = json!({ "<unk>": 0, "a": 1, "b": 2, "c": 3, " ": 4, "ab": 5, "##b": 6, "<0xC3>": 7, "▁a": 8 });
    vec![
        json!({ "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" }),
        json!({ "type": "WordPiece", "vocab": vocab, "unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100 }),
        json!({
            "type": "BPE", "vocab": vocab, "merges": ["a b"], "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true,
            "continuing_subword_prefix": "", "end_of_word_suffix": "", "dropout": 0.5, "ignore_merges": true
        }),
        json!({
            "type": "Unigram", "unk_id": 0, "byte_fallback": true,
            "vocab": [["<unk>", 0.0], ["a", -1.0], ["b", -2.0], ["ab", -1.5], ["<0xC3>", -4.0], ["▁", -2.0]]
        }),
    ]
}

fn normalizers() -> Vec<Value> {
    vec![
        json!({ "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true }),
        json!({ "type": "Strip", "strip_left": true, "strip_right": true }),
        json!({ "type": "StripAccents" }),
        json!({ "type": "NFKD" }),
        json!({ "type": "Nmt" }),
        json!({ "type": "Precompiled", "precompiled_charsmap": "ALQCAACEAAAAAACAAQAAgMz8AgC4BQAAhyIAgMzkAgC4PQAA" }),
        json!({ "type": "Replace", "pattern": { "Regex": "[ab]+?" }, "content": "c" }),
        json!({ "type": "Replace", "pattern": { "String": "b" }, "content": "" }),
        json!({ "type": "Prepend", "prepend": "▁" }),
        json!({ "type": "ByteLevel" }),
        json!({ "type": "Sequence", "normalizers": [{ "type": "Lowercase" }, { "type": "NFC" }] }),
    ]
}

fn pre_tokenizers() -> Vec<Value> {
    vec![
        json!({ "type": "BertPreTokenizer" }),
        json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
        json!({ "type": "CharDelimiterSplit", "delimiter": "b" }),
        json!({ "type": "Delimiter", "delimiter": "b" }),
        json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true }),
        json!({ "type": "Split", "pattern": { "Regex": "(a|ab)*b" }, "behavior": "MergedWithPrevious", "invert": true }),
        json!({ "type": "Punctuation", "behavior": "Contiguous" }),
        json!({ "type": "Digits", "individual_digits": true }),
        json!({ "type": "UnicodeScripts" }),
        json!({ "type": "FixedLength", "length": 2 }),
        json!({ "type": "Sequence", "pretokenizers": [{ "type": "Whitespace" }, { "type": "WhitespaceSplit" }] }),
    ]
}

fn decoders() -> Vec<Value> {
    vec![
        json!({ "type": "BPEDecoder", "suffix": "b" }),
        json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }),
        json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }),
        json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false }),
        json!({ "type": "CTC", "pad_token": "a", "word_delimiter_token": "b", "cleanup": true }),
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "Strip", "content": "a", "start": 1, "stop": 1 }),
        json!({ "type": "Sequence", "decoders": [{ "type": "ByteFallback" }, { "type": "Fuse" }] }),
    ]
}

fn added() -> Value {
    let flags = json!({ "special": true, "single_word": true, "lstrip": true, "rstrip": true, "normalized": true });
    let token = |id: u32, content: &str| {
        let mut token = flags.clone();
        (token["id"], token["content"]) = (id.into(), content.into());
        token
    };
    json!([token(9, "</s>"), token(1, "a")])
}

fn processors() -> Vec<Value> {
    vec![
        json!({ "type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2] }),
        json!({ "type": "RobertaProcessing", "sep": ["a", 1], "cls": ["b", 2], "trim_offsets": true, "add_prefix_space": true }),
        json!({
            "type": "TemplateProcessing", "single": [{ "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "B", "type_id": 0 } }], "special_tokens": {}
        }),
    ]
}

/// A tokenizer of randomly drawn parts.
fn drawn(rng: &mut ChaCha8Rng) -> Value {
    let mut one = |all: Vec<Value>| {
        let n = rng.random_range(0..=all.len());
        all.into_iter().nth(n).unwrap_or_default()
    };
    let models = models();
    let mut model = one(models.clone());
    if model.is_null() {
        model = models[2].clone();
    }
    json!({
        "version": "1.0", "truncation": one(vec![json!({ "max_length": 2, "strategy": "LongestFirst", "stride": 5, "direction": "Left" })]),
        "padding": one(vec![json!({ "strategy": { "Fixed": 1000 }, "direction": "Right", "pad_to_multiple_of": 0, "pad_id": 0, "pad_type_id": 0, "pad_token": "a" })]),
        "added_tokens": one(vec![added()]), "normalizer": one(normalizers()), "pre_tokenizer": one(pre_tokenizers()),
        "post_processor": one(processors()), "decoder": one(decoders()), "model": model
    })
}

/// Opens a tokenizer and uses it; returns whether it opens. Errors are allowed, but nothing else.
fn open(json: &[u8]) -> Result<()> {
    let tokenizer = Tokenizer::from_json(json)?;
    for text in ["", " ", "abc ba.\n", "ab é ▁🦀\u{301}x\u{0}<unk></s>", "\u{1f1e9}a\u{fffd}Ａ１，二"] {
        if let Some(ids) = check_result(tokenizer.encode(text)) {
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "another time {text:?} is encoded in another way");
            check_result(tokenizer.decode(&ids));
        }
    }
    check_result(tokenizer.decode(&[0, 1, 5, u32::MAX]));
    let mut stream = tokenizer.stream();
    for id in (0..12).chain([7, 7, 1]) {
        check_result(stream.push(id));
    }
    check_result(stream.finish());
    Ok(())
}

#[test]
fn of_any_parts() {
    hide_caught_panics();
    let mut rng = ChaCha8Rng::seed_from_u64(21);
    let (mut opened, mut count) = (0, 0);
    for _ in 0..100 * times() {
        let good = drawn(&mut rng);
        let structured = mutate::structured(good.to_string().as_bytes());
        let mut all = vec![good.to_string().into_bytes()];
        // The long ones, which are the same for every file, are tried in the other tests.
        let short: Vec<_> = structured.into_iter().filter(|json| json.len() < 20_000).collect();
        all.extend((0..15).map(|_| short[rng.random_range(0..short.len())].clone()));
        all.push(mutate::edited(&all[0], &mut rng));
        for json in all {
            opened += usize::from(is_endured("a tokenizer of any parts", &json, || open(&json)));
            count += 1;
        }
    }
    println!("tokenizers of any parts: {count} cases, {opened} of them opened");
    assert!(opened > count / 20);
}
