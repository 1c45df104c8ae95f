use super::*;
use crate::text::{Validation, encode};

/// Bytes, and one more token: the end of a text.
const END: u32 = 256;

fn tokenizer(template: Option<&str>) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    Tokenizer::bytes(true).unwrap().save(dir.path(), 8).unwrap();
    if let Some(template) = template {
        std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    }
    Tokenizer::open(dir.path()).unwrap()
}

const TEMPLATE: &str = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}.{% endfor %}\
                        {% if add_generation_prompt %}a{% endif %}";

fn line(turns: &[(&str, &str)]) -> String {
    let messages: Vec<_> =
        turns.iter().map(|(role, content)| serde_json::json!({ "role": role, "content": content })).collect();
    serde_json::json!({ "messages": messages, "id": 3 }).to_string() + "\n"
}

fn document(lines: &str) -> Document {
    Document::new("talks.jsonl", lines)
}

fn corpus(documents: &[Document], validation: Validation) -> Result<Corpus> {
    encode(&tokenizer(Some(TEMPLATE)), documents, &validation, TextOptions::default(), IdsStore::Temporary, &mut |_| {})
}

/// The text of a corpus's part: what is learned in capitals, `/` for an end of text, `|` after each end of a document.
fn shown(ids: &crate::text::Ids) -> String {
    let words = ids.words(0..ids.len()).unwrap();
    let letter = |word: &u32| {
        let id = super::super::ids::id(*word);
        let c = if id == END { '/' } else { char::from(id as u8) };
        let c = if word & NOT_LEARNED == 0 { c.to_ascii_uppercase() } else { c };
        if word & ENDS == 0 { c.to_string() } else { format!("{c}|") }
    };
    words.iter().map(letter).collect()
}

#[test]
fn the_assistants_turns_are_learned_and_nothing_else() {
    let lines = line(&[("system", "be"), ("user", "hi"), ("assistant", "yes"), ("user", "so"), ("assistant", "no")])
        + "\n"
        + &line(&[("user", "x"), ("assistant", "y")]);
    let made = corpus(&[document(&lines)], Validation::Fraction(0.0)).unwrap();
    assert_eq!(shown(&made.train), "sbe.uhi.aYES.uso.aNO./|ux.aY./|");
    assert_eq!((made.train.learned(), made.train_bytes, made.separator), (9, 9, Some(END)));
    assert_eq!(made.train.read(0..3).unwrap()[..], [b's', b'b', b'e'].map(u32::from));
    let mixed = [document(&line(&[("user", "x"), ("assistant", "y")])), Document::new("text", "abc")];
    let error = corpus(&mixed, Validation::Fraction(0.0)).unwrap_err().to_string();
    assert_eq!(error, "expected conversations in all texts, as in talks.jsonl, got another text: text");
}

#[test]
fn a_file_is_cut_between_conversations_and_one_is_left_to_train_on() {
    let lines: String = (0..10).map(|i| line(&[("user", "q"), ("assistant", &i.to_string())])).collect();
    let of = |lines: &str, fraction| {
        let made = corpus(&[document(lines)], Validation::Fraction(fraction)).unwrap();
        (shown(&made.train).matches('|').count(), shown(&made.validation).matches('|').count())
    };
    assert_eq!((of(&lines, 0.1), of(&lines, 0.31), of(&lines, 0.99)), ((9, 1), (6, 4), (1, 9)));
    assert_eq!(of(lines.lines().next().unwrap(), 0.5), (1, 0));
}

#[test]
fn lines_that_are_no_conversations_are_named() {
    let good = line(&[("user", "q"), ("assistant", "a")]);
    for (bad, expected) in [
        ("{", "expected a JSON object with a list of messages, got EOF"),
        ("[]", "expected a JSON object with a list of messages"),
        (r#"{"text": "x"}"#, "missing field `messages`"),
        (r#"{"messages": []}"#, "got an empty list"),
        (r#"{"messages": [{"role": "user"}]}"#, "expected messages with a role and a content, got message 1 with"),
        (r#"{"messages": [{"role": 3, "content": "x"}]}"#, "got message 1"),
        (r#"{"messages": ["x"]}"#, "got message 1 with x"),
    ] {
        for (fraction, after) in [(0.0, 0), (0.5, 9)] {
            let lines = format!("{good}{good}{bad}\n{}", good.repeat(after));
            let error = corpus(&[document(&lines)], Validation::Fraction(fraction)).unwrap_err().to_string();
            assert!(error.starts_with("talks.jsonl: line 3: ") && error.contains(expected), "{error}");
            let lines = format!("{}{bad}\n", good.repeat(5 + after));
            let error = corpus(&[document(&lines)], Validation::Fraction(fraction)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("talks.jsonl: line {}: ", 6 + after)), "{error}");
        }
    }
    let silent = line(&[("user", "q")]);
    let error = corpus(&[document(&silent)], Validation::Fraction(0.0)).unwrap_err().to_string();
    assert!(error.contains("expected a turn of the role `assistant`"), "{error}");
}

#[test]
fn conversations_without_a_template_are_refused_and_other_lines_are_text() {
    let lines = line(&[("user", "q"), ("assistant", "a")]);
    let plain = tokenizer(None);
    let of = |document: Document| {
        encode(
            &plain,
            &[document],
            &Validation::Fraction(0.0),
            TextOptions::default(),
            IdsStore::Temporary,
            &mut |_| {},
        )
    };
    let error = of(document(&lines)).unwrap_err().to_string();
    assert!(error.starts_with("talks.jsonl: conversations need a chat template"), "{error}");
    for (name, text) in [("talks.json", &lines[..]), ("other.jsonl", r#"{"text": "the \"messages\""}"#)] {
        assert_eq!(of(Document::new(name, text)).unwrap().train.len(), text.len());
    }
    let choice = "char".parse().unwrap();
    let made = crate::text::prepare(
        &[document(&lines)],
        &Validation::Fraction(0.0),
        &choice,
        TextOptions::default(),
        IdsStore::Temporary,
        &mut |_| {},
    );
    let error = made.unwrap_err().to_string();
    assert!(error.contains("a new tokenizer has none"), "{error}");
}

#[test]
fn marks_are_kept_in_a_file_and_are_part_of_the_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    let of = |template: &str, name: &str| {
        let lines = line(&[("user", "q"), ("assistant", "a")]).repeat(7);
        let path = dir.path().join(name);
        let (documents, validation) = ([document(&lines)], Validation::Fraction(0.2));
        let made = encode(
            &tokenizer(Some(template)),
            &documents,
            &validation,
            TextOptions::default(),
            IdsStore::File(&path),
            &mut |_| {},
        );
        let opened = Corpus::open(&path, &mut |_| {}).unwrap();
        let made = made.unwrap();
        for (a, b) in [(&made.train, &opened.train), (&made.validation, &opened.validation)] {
            assert_eq!((shown(a), a.learned()), (shown(b), b.learned()));
        }
        assert_eq!(made.fingerprint, opened.fingerprint);
        made
    };
    let (one, same) = (of(TEMPLATE, "a"), of(TEMPLATE, "b"));
    assert_eq!(one.fingerprint, same.fingerprint);
    // The same ids, of which others are learned.
    let other = of(&TEMPLATE.replace("%}a{%", "%}{%"), "c");
    assert_eq!(one.train.to_vec().unwrap(), other.train.to_vec().unwrap());
    assert_ne!(one.fingerprint, other.fingerprint);
    // A file without its mark of conversations.
    let bytes = std::fs::read(dir.path().join("a")).unwrap();
    let changed = String::from_utf8_lossy(&bytes[..1024]).replace("conversations", "conservations");
    std::fs::write(dir.path().join("a"), [changed.as_bytes(), &bytes[1024..]].concat()).unwrap();
    assert!(Corpus::open(&dir.path().join("a"), &mut |_| {}).is_err());
}
