//! Which texts a run is trained, validated and evaluated on.

use crate::support::{SMALL, Space};

/// The numbers of tokens to train and to validate on that a dry run prints.
fn split(printed: &str) -> [usize; 2] {
    let line = printed.lines().find_map(|line| line.strip_prefix("# data: ")).unwrap();
    let numbers = line.split(' ').filter_map(|word| word.replace(',', "").parse().ok());
    numbers.take(2).collect::<Vec<usize>>().try_into().unwrap()
}

/// Neither the sizes, nor the batch, nor the machine.
#[test]
fn what_is_held_out_depends_on_the_text_alone() {
    let space = Space::new();
    for options in
        ["", "--shards 1", "--dim 256", "--context 300 --batch 3", "--threads 1 --layers 1", "--preset quick"]
    {
        let printed = space.works(&format!("train --tokenizer char {options} --dry-run"));
        assert_eq!(split(&printed), [1_085_911, 119_154], "{options}");
    }
    // Of a text, a tenth: of each of its documents' bytes, taken as one.
    let bytes = space.bytes("text.txt").len();
    for options in ["", "--shards 1 --preset gpt2 --context 32", "--dim 64"] {
        let printed = space.works(&format!("train text.txt {options} --dry-run"));
        assert_eq!(split(&printed), [bytes - bytes / 10, bytes / 10], "{options}");
    }
    for (fraction, held_out) in [("0.25", bytes / 4), ("0", 0)] {
        let printed = space.works(&format!("train text.txt --validation-fraction {fraction} --dry-run"));
        assert_eq!(split(&printed), [bytes - held_out, held_out], "{fraction}");
    }
}

#[test]
fn several_texts_have_an_end_of_text_between_them() {
    let space = Space::new();
    space.write("other.txt", "zzz ".repeat(100));
    for (texts, has_end) in [("text.txt other.txt", true), ("text.txt", false)] {
        space.works(&format!("train {texts} {SMALL} --out run"));
        let config = space.read("run/config.json");
        assert_eq!(!config.contains("\"eos_token_id\": null"), has_end, "{texts}: {config}");
        space.remove("run");
    }
}

#[test]
fn texts_are_files_and_folders() {
    let space = Space::new();
    for (path, text) in [("texts/b.md", "bbb bbb\n"), ("texts/a/1.txt", "aaa aaa\n"), ("texts/.git/x", "xxx")] {
        space.write(path, text.repeat(60));
    }
    space.write("texts/empty", "");
    let (_, told) = space.told(&format!("train texts {SMALL} --validation texts/a --out run"));
    assert_eq!(told.matches("2 texts; left out: 1 empty, 1 hidden").count(), 1, "{told}");
    assert!(told.contains("not trained on, as --validation has them: texts/a/1.txt"), "{told}");
    assert!(space.works("generate run --max-tokens 3 --prompt b").starts_with("b"));
    // What is hidden is not learned from, nor what is validated on.
    space.refuses("generate run --prompt x", "'x'");

    let number = |printed: &str, label: &str| -> f64 {
        let line = printed.lines().find(|line| line.starts_with(label)).unwrap_or_else(|| panic!("{label}: {printed}"));
        line[label.len()..].split_whitespace().next().unwrap().parse().unwrap()
    };
    let alone = ["texts/a", "texts/b.md"].map(|path| number(&space.works(&format!("eval run {path}")), "loss"));
    let printed = space.works("eval run texts");
    for (loss, name) in alone.iter().zip(["texts/a/1.txt", "texts/b.md"]) {
        let line = printed.lines().find(|line| line.ends_with(name)).unwrap();
        assert!(line.trim_start().starts_with(&format!("{loss:.4}")), "{line}");
    }
    // Both are as long, so the mean is in the middle; the numbers are rounded to four digits.
    assert!((number(&printed, "loss") - (alone[0] + alone[1]) / 2.0).abs() < 1e-4, "{printed}");

    space.write("texts/c.bin", b"text\nte\xfft");
    let expected = "texts/c.bin: expected utf-8 text, got the byte 0xff at line 2, column 3";
    space.refuses(&format!("train text.txt texts/c.bin {SMALL}"), expected);
    space.refuses(&format!("train text.txt {SMALL} --validation text.txt"), "besides those of --validation, got none");
}

#[test]
fn runs_in_a_folder_of_texts_are_left_out() {
    let space = Space::new();
    let ids = |run: &str| space.bytes(&format!("{run}/training/ids.safetensors"));
    for tokenizer in ["char", "byte"] {
        let line = format!("train . {SMALL} --tokenizer {tokenizer}");
        let (_, told) = space.told(&line);
        assert!(!told.contains("left out"), "{told}");
        let (_, told) = space.told(&line);
        assert_eq!(told.matches("1 texts; left out: 1 runs\n").count(), 1, "{told}");
        // Its own folder is never one of the texts.
        let (_, told) = space.told(&format!("{line} --out own"));
        assert!(told.contains("1 texts; left out: 2 runs\n"), "{told}");
        std::fs::create_dir(space.path("empty")).unwrap();
        let (_, told) = space.told(&format!("{line} --out empty"));
        assert!(told.contains("1 texts; left out: 3 runs\n"), "{told}");
        let runs = space.entries("runs").into_iter().map(|run| format!("runs/{run}"));
        let runs: Vec<String> = runs.chain(["own".to_string(), "empty".to_string()]).collect();
        assert_eq!(runs.len(), 4, "{runs:?}");
        for run in &runs {
            assert!(ids(run) == ids("own"), "{tokenizer}: {run} was trained on something else");
        }
        for folder in ["runs", "own", "empty"] {
            space.remove(folder);
        }
    }
    // A run as the only text is refused.
    space.works(&format!("train text.txt {SMALL} --out run"));
    space.refuses(&format!("train run {SMALL}"), "expected text files in run, got none (left out: 1 runs)");
}

/// Dropout of merges is for training; what is evaluated, and what a command trains on, is not random.
#[test]
fn a_tokenizer_with_dropout_encodes_without_it() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --tokenizer bpe:300 --out bpe"));
    let mut ours: serde_json::Value = serde_json::from_str(&space.read("bpe/tokenizer.json")).unwrap();
    ours["model"]["dropout"] = 0.5.into();
    space.write("ours.json", ours.to_string());
    // Of another maker: no kind of this crate's.
    let mut characters: Vec<char> = space.read("text.txt").chars().collect();
    characters.sort();
    characters.dedup();
    let merges = [["g", "a"], ["t", "o"], ["ga", "to"], ["p", "r"], ["e", "t"], ["r", "e"]];
    let tokens = characters.iter().map(char::to_string).chain(merges.iter().map(|[a, b]| format!("{a}{b}")));
    let vocab: serde_json::Map<_, _> = tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
    let model = serde_json::json!({ "type": "BPE", "dropout": 0.5, "vocab": vocab, "merges": merges });
    space.write("theirs.json", serde_json::json!({ "version": "1.0", "model": model }).to_string());
    for tokenizer in ["ours.json", "theirs.json"] {
        let train = format!("train text.txt {SMALL} --tokenizer {tokenizer}");
        space.works(&format!("{train} --out a"));
        space.works(&format!("{train} --out b"));
        assert!(space.bytes("a/model.safetensors") == space.bytes("b/model.safetensors"), "{tokenizer}");
        let evaluated = [1, 2, 3].map(|_| space.works("eval a text.txt"));
        assert!(evaluated.iter().all(|printed| *printed == evaluated[0]), "{tokenizer}: {evaluated:?}");
        space.remove("a");
        space.remove("b");
    }
}

/// A short text is trained on as it is, with what fits.
#[test]
fn a_text_of_a_few_characters_is_trained_on() {
    let space = Space::new();
    for (text, context) in [("hello world, hello you", 11), ("ab", 1), ("abc\r\n", 2)] {
        space.write("t.txt", text);
        let (_, told) = space.told("train t.txt --steps 3 --out run");
        assert!(told.contains("nothing is held out") && told.contains("a text this short"), "{told}");
        assert_eq!(space.settings("run")["context"], context.into(), "{text}");
        space.works("generate run --max-tokens 3");
        space.remove("run");
    }
    // A preset gives way, an option does not.
    space.write("t.txt", "hello world, hello you");
    let (_, told) = space.told("train t.txt --preset quick --steps 3 --out run");
    assert!(told.contains("sequences of 11 tokens instead of 64 (--context)"), "{told}");
    space.refuses("train t.txt --context 22", "--context: expected at most 21, as the training text has 22 tokens");
}

#[test]
fn standard_input_is_a_text() {
    let space = Space::new();
    let text = space.bytes("text.txt");
    let given = |line: &str, input: &[u8]| {
        let mut child = space.command(line).stdin(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input).unwrap();
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{line}: {told}");
        (String::from_utf8(output.stdout).unwrap(), told)
    };
    given(&format!("train - {SMALL}"), &text);
    assert_eq!(space.entries("runs"), ["stdin-1"]);
    space.works(&format!("train text.txt {SMALL} --out file"));
    assert_eq!(space.bytes("runs/stdin-1/model.safetensors"), space.bytes("file/model.safetensors"));
    assert_eq!(space.settings("runs/stdin-1")["texts"], toml::Value::Array(vec!["-".into()]));
    // Its ids are in the run; the text is not needed again.
    space.works("train --resume --out runs/stdin-1 --steps 13");
    assert_eq!(given("eval file -", &text).0, space.works("eval file text.txt"));
    // A byte order mark is no part of it.
    let marked = [b"\xef\xbb\xbf", &text[..]].concat();
    given(&format!("train - {SMALL} --out marked"), &marked);
    assert_eq!(space.bytes("marked/model.safetensors"), space.bytes("file/model.safetensors"));
    // Nothing is read before a folder is known to be free.
    space.write("full/mine", "");
    space.refuses(&format!("train - {SMALL} --out full"), "full exists and is not empty");
    let validated = given(&format!("train text.txt --validation - {SMALL} --out held"), &text).1;
    assert!(validated.contains("3,960 for validation"), "{validated}");
}

#[test]
fn the_same_file_given_twice_is_said() {
    let space = Space::new();
    space.write("texts/a.txt", "aaa ".repeat(50));
    let (_, told) = space.told(&format!("train text.txt texts ./text.txt texts/../texts/a.txt {SMALL} --out run"));
    assert!(told.contains("given more than once, and counted as often: ./text.txt and 1 more\n"), "{told}");
    let (_, told) = space.told("eval run text.txt text.txt");
    assert!(told.contains("given more than once, and counted as often: text.txt\n"), "{told}");
}
