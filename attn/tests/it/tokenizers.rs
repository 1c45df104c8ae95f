//! What is said of a text that a tokenizer reads in its own way.

use crate::support::{SMALL, Space};

#[test]
fn the_end_of_text_inside_a_file_separates_documents_if_asked_to() {
    let space = Space::new();
    space.write("marked.txt", "one two\n<|endoftext|>three four\n<|endoftext|>".repeat(60));
    let train = format!("train marked.txt {SMALL} --out run");
    let (_, told) = space.told(&train);
    let expected = "<|endoftext|> is read as plain text, 120 times; --split-at-end-of-text makes it separate documents";
    assert!(told.contains(expected), "{told}");
    assert!(space.read("run/config.json").contains("\"eos_token_id\": null"));
    let refused = space.attn(&format!("{train}2 --isolate-documents"));
    let told = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{told}");
    assert!(told.contains("--isolate-documents: expected several documents"), "{told}");
    space.remove("run");
    let (_, told) = space.told(&format!("{train} --split-at-end-of-text --isolate-documents"));
    assert!(!told.contains("<|endoftext|>"), "{told}");
    // The letters of the text alone, and the end of text.
    let id = "\n efhnortuw".len();
    assert!(space.read("run/config.json").contains(&format!("\"eos_token_id\": {id}")));
    // Then the token is read from every text.
    space.works("generate run --prompt one<|endoftext|>two --max-tokens 3");
    space.works("eval run marked.txt");
    space.refuses("generate run --prompt <|endoftext", "unknown character '<'");
}

#[test]
fn what_has_no_token_is_refused_or_counted() {
    let space = Space::new();
    let tokenizer =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tokenizers/word_level_cleaned/tokenizer.json");
    space.write("snow.txt", "the cat is in it , the cat is in \u{2603}\n".repeat(60));
    let train = format!("train snow.txt {SMALL} --tokenizer {tokenizer} --out run");
    let unknown = "snow.txt: unknown character '\u{2603}' (U+2603) at line 1, column 34 (byte 33)";
    space.refuses(&train, unknown);
    let (_, told) = space.told(&format!("{train} --accept-unknown"));
    let expected = format!("accepted without a token of its own: a character or word, 60 times; the first: {unknown}");
    assert!(told.contains(&expected), "{told}");
    let (_, told) = space.told("eval run snow.txt");
    assert!(told.contains(&expected), "{told}");
    space.refuses("generate run --prompt \u{2603}", "unknown character");
    let (_, told) = space.told("generate run --prompt \u{2603} --accept-unknown --max-tokens 3");
    assert!(told.contains("accepted without a token of its own: a character or word, once"), "{told}");
}

#[test]
fn words_that_are_cut_are_counted() {
    let space = Space::new();
    space.write("long.txt", format!("{}\n{}\n", "one two ".repeat(500), "=".repeat(10_000)));
    let (_, told) =
        space.told(&format!("train long.txt {SMALL} --tokenizer bpe:260 --validation-fraction 0 --dry-run"));
    assert!(told.contains("words of more than 4096 bytes are cut into sections, of which there are 2"), "{told}");
}
