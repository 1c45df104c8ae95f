//! Options: one name each, and one value, the last one given.

use crate::support::{SMALL, Space};

/// Values out of bounds, for each option that has a bound.
const BAD: [(&str, &[&str]); 40] = [
    ("--validation", &["missing.txt"]),
    ("--validation-fraction", &["1", "-0.1", "nan", "a"]),
    ("--init", &["missing"]),
    (
        "--tokenizer",
        &["", "bpe", "bpe:", "bpe:x", "bpe:0", "bpe:3", "bpe:20000000", "bpe:99999999999999999", "nowhere.json"],
    ),
    ("--architecture", &["gpt3", ""]),
    ("--layers", &["0", "-1", "99999999999", "1.5", "x", "18446744073709551616"]),
    ("--heads", &["0", "99999999999", "x"]),
    ("--head-dim", &["0", "7", "99999999999", "x"]),
    ("--dim", &["0", "1", "33", "99999999999", "x"]),
    ("--kv-heads", &["0", "7", "99999999999", "x"]),
    ("--hidden", &["0", "99999999999", "x"]),
    ("--context", &["0", "99999999999", "x"]),
    ("--rope-theta", &["0", "-1", "nan", "inf", "x"]),
    ("--steps", &["0", "-1", "1e3", "18446744073709551615", "auto"]),
    ("--batch", &["0", "16777217", "18446744073709551615"]),
    ("--shards", &["0", "16777217"]),
    ("--accumulate", &["0", "13"]),
    ("--precision", &["f16", ""]),
    ("--dropout", &["1", "-0.1", "nan", "x"]),
    ("--lr", &["0", "-1", "nan", "inf", "1e-50", "1e300", "x"]),
    ("--min-lr", &["-0.1", "1.1", "nan"]),
    ("--warmup", &["-0.1", "1.1", "nan", "100%"]),
    ("--schedule", &["step", ""]),
    ("--decay", &["-0.1", "1.1", "nan"]),
    ("--optimizer", &["sgd", ""]),
    ("--matrix-lr", &["0", "-1", "inf"]),
    ("--matrix-weight-decay", &["-1", "inf"]),
    ("--momentum", &["1", "-0.1", "0.9999999999"]),
    ("--embedding-lr", &["0", "-1", "inf"]),
    ("--beta1", &["1", "-0.1", "nan"]),
    ("--beta2", &["1", "-0.1", "0.99999999999"]),
    ("--weight-decay", &["-1", "inf", "1e300"]),
    ("--clip", &["-1", "nan"]),
    ("--label-smoothing", &["1", "-0.1"]),
    ("--average", &["1.1", "-0.1"]),
    ("--eval-every", &["0", "-1", "1.5"]),
    ("--patience", &["-1", "1.5"]),
    ("--save-every", &["-1", "nan", "inf"]),
    ("--keep", &["0", "16777217"]),
    ("--statistics-every", &["-1", "x"]),
];

/// Whether `name` is in `text` as a whole word: `lr` is not in `min-lr`.
fn names(text: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.split(|c| !is_part(c)).any(|word| word.trim_start_matches("--") == name)
}

/// Fails if anything is left; the folder of all runs may be, if it is empty.
fn assert_no_run(space: &Space, files: &[&str]) {
    let left: Vec<String> = space.entries(".").into_iter().filter(|name| name != "runs").collect();
    assert_eq!(left, files);
    assert!(!space.path("runs").exists() || space.entries("runs").is_empty(), "{:?}", space.entries("runs"));
}

/// Every error is about the option, by its name and no other one.
#[test]
fn a_bad_value_is_refused_by_the_name_of_its_option() {
    let space = Space::new();
    // With the built-in recipe and the chosen one, all options have an effect that have none unless others have certain values.
    for recipe in [&["--preset", "quick"][..], &[]] {
        for (option, value) in BAD.iter().flat_map(|(option, values)| values.iter().map(move |value| (*option, *value)))
        {
            let name = option.trim_start_matches('-');
            let line = [&["train", "text.txt"], recipe, &[option, value]].concat();
            let output = space.command("").args(&line).output().unwrap();
            let told = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{line:?}: {told}");
            let first = told.lines().next().unwrap();
            assert!(names(first, name), "{line:?}: {told}");
            assert!(!first.contains('_'), "a second name? {line:?}: {told}");
            // The parser of the command line adds a usage; all others are a line.
            assert!(told.lines().count() == 1 || first.starts_with("error: "), "{line:?}: {told}");
        }
    }
    assert_no_run(&space, &["text.txt"]);
}

/// In a file there is no parser of the command line before it.
#[test]
fn a_bad_value_in_a_file_is_one_line_with_the_name_of_its_option() {
    let space = Space::new();
    let mut options: Vec<(String, String)> = vec![];
    for (option, values) in BAD {
        let name = option.trim_start_matches('-');
        // Numbers stay numbers where TOML has them.
        let literal = |value: &str| match value.parse::<f64>() {
            Ok(_) if value.parse::<i64>().is_ok() || value.parse::<u128>().is_err() => value.to_string(),
            _ => format!("{value:?}"),
        };
        options.extend(values.iter().map(|value| (name.to_string(), literal(value))));
        options.push((name.to_string(), "{}".into()));
    }
    for (name, value) in
        [("texts", "1"), ("texts", "[1]"), ("tie", "1"), ("tie", "\"yes\""), ("layers", "\"2\""), ("lr", "true")]
    {
        options.push((name.into(), value.into()));
    }
    for (name, value) in options {
        let line = format!("{name} = {value}");
        space.write("bad.toml", format!("{name} = {value}\n"));
        let message = space.refuses("train text.txt --preset quick --config bad.toml", "attn: ");
        assert!(names(&message, &name) && !message.contains('_'), "{line}: {message}");
    }
    for (file, expected) in [
        ("layers = 1\nlayer = 2\n", "bad.toml: there is no option layer"),
        ("layers = 1\n\nlayers = 2\n", "bad.toml: line 3: duplicate key"),
        ("layers 1\n", "bad.toml: line 1: "),
        ("[model]\nlayers = 1\n", "bad.toml: there is no option model"),
        ("min_lr = 0.1\n", "bad.toml: there is no option min_lr"),
        ("preset = \"quick\"\n", "bad.toml: there is no option preset"),
        ("steps = 2\nlr = \"x\"\n", "bad.toml: lr: expected a number, got \"x\""),
    ] {
        space.write("bad.toml", file);
        space.refuses("train text.txt --config bad.toml", expected);
    }
    assert_no_run(&space, &["bad.toml", "text.txt"]);
}

#[test]
fn the_last_of_a_repeated_option_counts() {
    let space = Space::new();
    let train = format!("train text.txt {SMALL} --out run");
    for (given, name, expected) in [
        ("--lr 0.1 --lr 0.002", "lr", toml::Value::Float(0.002)),
        ("--tokenizer byte --tokenizer char", "tokenizer", "char".into()),
        ("--preset gpt2 --preset qwen3", "architecture", "qwen3".into()),
        ("--tie", "tie", true.into()),
        ("--no-tie", "tie", false.into()),
        ("--tie --no-tie", "tie", false.into()),
        ("--no-tie --tie", "tie", true.into()),
        ("--tie --no-tie --no-tie --tie --tie", "tie", true.into()),
        ("--preset gpt2 --no-tie --preset gpt2", "tie", false.into()),
        ("--bias --no-bias", "bias", false.into()),
        ("--eval-every 3 --eval-every auto", "eval-every", "auto".into()),
    ] {
        space.works(&format!("{train} {given}"));
        assert_eq!(space.settings("run")[name], expected, "{given}");
        space.remove("run");
    }
    // Those that are no settings.
    space.write("empty.toml", "");
    space.works(&format!("{train} --out other --out run --config missing.toml --config empty.toml"));
    let resume = "train --resume --out missing --resume --out run --steps 13 --steps 14 --keep 1 --keep 2";
    space.works(&format!("--threads 2 --threads 1 {resume} --threads 1 --threads 2"));
    let generate = "generate run --max-tokens 1 --max-tokens 0 --prompt a --prompt o --temperature -1 --temperature 0";
    let printed = space.works(&format!("{generate} --top-k 1 --top-k 0 --seed 1 --seed 2 --samples 2 --samples 1"));
    assert_eq!(printed, "o\n");
    space.works("generate run --prompt-file missing --prompt-file text.txt --max-tokens 1");
    assert_eq!(space.settings("run")["steps"], 14.into());
    space.remove("run");
    // A switch in a file can be turned off, as one of a preset.
    space.write("on.toml", "bias = true\nzero-residual = true\n");
    space.works(&format!("{train} --config on.toml --no-bias --no-zero-residual"));
    let settings = space.settings("run");
    assert_eq!((&settings["bias"], &settings["zero-residual"]), (&false.into(), &false.into()));
    // Several texts are several, not a repeated one.
    space.write("other.txt", "zzz ".repeat(100));
    space.works(&format!("train text.txt other.txt {SMALL} --out two"));
    assert_eq!(space.settings("two")["texts"].as_array().unwrap().len(), 2);
}
