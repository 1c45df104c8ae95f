//! Conversations with a model, and training on conversations.

use std::io::Write;
use std::process::Stdio;

use crate::support::{Running, Space};

/// A small model with a chat template, and conversations.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/chat");

const GREEDY: &str = "--chat --temperature 0 --threads 1";

/// What the command answers to these lines, and what it says beside.
fn chat(space: &Space, options: &str, lines: &str) -> (Option<i32>, String, String) {
    let mut command = space.command(&format!("generate {FOLDER} {GREEDY} {options}"));
    let mut child = Running(command.stdin(Stdio::piped()).spawn().unwrap());
    child.0.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.end();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.code(), out, err)
}

#[test]
fn each_line_is_answered_and_the_conversation_is_kept() {
    let space = Space::new();
    let both = chat(&space, "--system=beans", "When?\n\nWhere?");
    assert_eq!((both.0, both.2.as_str()), (Some(0), ""), "{both:?}");
    let [first, second]: [&str; 2] = both.1.lines().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(chat(&space, "--system=beans", "When?\n").1, format!("{first}\n"));
    assert_eq!(space.works(&format!("generate {FOLDER} {GREEDY} --system=beans --prompt When?")), format!("{first}\n"));
    // Asked first, the same question has another answer.
    assert_ne!(chat(&space, "--system=beans", "Where?\n").1, format!("{second}\n"));
    assert_eq!(chat(&space, "", "").1, "");
    let cut = chat(&space, "--max-tokens 1", "When?");
    assert_eq!((cut.0, cut.2.as_str()), (Some(0), "the answer was cut at --max-tokens 1\n"));
    let full = chat(&space, "", &format!("When?\n{}\nWhere?\n", "Where? ".repeat(30)));
    assert!(full.0 == Some(2) && full.1.lines().count() == 1 && full.2.contains("the context is full"), "{full:?}");
}

#[test]
fn what_chat_needs_is_said() {
    let space = Space::new();
    space.works("train text.txt --layers 1 --heads 2 --dim 16 --context 16 --batch 4 --steps 1 --out run");
    space.refuses(
        "generate run --chat",
        "the model has no chat template: expected chat_template in tokenizer_config.json",
    );
    space.write("talks.jsonl", r#"{"messages": [{"role": "user", "content": "a"}]}"#);
    space.refuses("train talks.jsonl", "talks.jsonl: conversations need a chat template, and a new tokenizer has none");
    space.refuses(
        "train talks.jsonl --init run",
        "talks.jsonl: conversations need a chat template, and the tokenizer has",
    );
    space.refuses("eval run talks.jsonl", "talks.jsonl: conversations need a chat template, and the tokenizer has");
    space.refuses(&format!("train talks.jsonl --init {FOLDER}"), "expected a turn of the role `assistant`");
    space.write("talks.jsonl", "{\"messages\": 3}");
    space.refuses(&format!("eval {FOLDER} talks.jsonl"), "talks.jsonl: line 1: expected a JSON object with a list of");
    assert!(!space.path("runs").exists() || space.entries("runs").is_empty());
}

#[test]
fn a_model_learns_conversations() {
    let space = Space::new();
    let line = |question: &str, answer: &str| {
        let turn = |role: &str, content: &str| format!(r#"{{"role": "{role}", "content": "{content}"}}"#);
        format!("{{\"messages\": [{}, {}]}}\n", turn("user", question), turn("assistant", answer))
    };
    space.write("talks.jsonl", (line("What is red?", "The sun.") + &line("What is green?", "A bean.")).repeat(4));
    space.write("held.jsonl", line("What is red?", "The sun.").repeat(8));
    let options = format!(
        "train talks.jsonl --init {FOLDER} --validation held.jsonl --isolate-documents --batch 4 --eval-every 20 --lr 0.01 \
         --optimizer adamw"
    );
    let told = space.told(&format!("{options} --steps 60 --out whole")).1;
    assert!(told.contains(" in the assistant's turns)"), "{told}");
    let answer = space.works(&format!("generate whole {GREEDY} --prompt=What"));
    assert!(answer.contains("The sun.") || answer.contains("A bean."), "{answer}");
    let evaluated = space.works("eval whole held.jsonl");
    let learned = evaluated.lines().last().unwrap();
    let counted = learned.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap();
    assert!(counted < 8 * 12 && learned.ends_with(&format!("{} bytes", 8 * "The sun.<|im_end|>\n".len())), "{learned}");
}

/// Most windows lie in what the user says: nothing is learned there, and the run goes on. Its card has the figures of the
/// terminal.
#[test]
fn windows_without_an_answer_do_not_end_a_run() {
    let space = Space::new();
    let line = |answer: &str| {
        let question = "Where is the long garden of beans? ".repeat(30);
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{question}\"}}, \
             {{\"role\": \"assistant\", \"content\": \"{answer}\"}}]}}\n"
        )
    };
    space.write("talks.jsonl", line("Here.").repeat(6));
    space.write("held.jsonl", line("Here.").repeat(2));
    let train = format!("train talks.jsonl --init {FOLDER} --validation held.jsonl --batch 1 --context 16 --steps 24");
    let (out, _) = space.told(&format!("{train} --eval-every 12 --out run"));
    let bits = out.split_once(" bits/byte)").unwrap().0.rsplit_once('(').unwrap().1.to_string();
    assert!(space.read("run/README.md").contains(&format!("{bits} bits per byte")), "{bits}");
    space.write("asked.jsonl", line("").replace("assistant", "user").repeat(6));
    space.refuses(
        &format!("train talks.jsonl --init {FOLDER} --validation asked.jsonl --steps 2 --out other"),
        "`assistant` in the conversations to validate on, got none",
    );
}
