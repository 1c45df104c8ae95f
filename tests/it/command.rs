//! The command, from text to sample, and bad input.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_attention::generate::{Continuation, Piece, SamplingOptions};
use candle_attention::run::Run;

/// A folder to run the command in.
pub struct Space(tempfile::TempDir);

impl Space {
    pub fn new() -> Self {
        let space = Self(tempfile::tempdir().unwrap());
        let lines = "O gato preto correu rapidamente.\nA gata preta correu rapidamente.\n".repeat(60);
        space.write("text.txt", lines.as_bytes());
        space
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: &[u8]) {
        std::fs::write(self.path(name), content).unwrap();
    }

    pub fn attn(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
        command.args(line.split_whitespace()).current_dir(self.0.path()).output().unwrap()
    }

    /// Runs what should work, and gives what it prints on standard output.
    pub fn works(&self, line: &str) -> String {
        let output = self.attn(line);
        assert!(output.status.success(), "attn {line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("printed what is not UTF-8")
    }

    /// Runs what should be refused: exit code 2, one line on standard error that has `expected` in it, and nothing
    /// else.
    pub fn refuses(&self, line: &str, expected: &str) {
        let output = self.attn(line);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "attn {line}: {message}");
        assert!(message.contains(expected), "attn {line}: expected {expected:?} in {message:?}");
        assert_eq!(message.lines().count(), 1, "attn {line}: {message}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "attn {line}");
    }
}

/// The options of a run of a second.
const SMALL: &str = "--layers 1 --heads 2 --dim 16 --context 16 --batch 4 --steps 12 --eval-every 6";

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Each option alone gives what the library writes with it, which is not `text`, written without any.
fn each_sampling_option_is_the_librarys(space: &Space, text: &str) {
    let run = Run::open(&space.path("runs/text-1"), &candle_core::Device::Cpu).unwrap();
    // The command's default.
    let base = SamplingOptions { temperature: 0.8, ..Default::default() };
    for (option, sampling) in [
        ("--temperature 0", SamplingOptions { temperature: 0.0, ..base }),
        ("--temperature 3", SamplingOptions { temperature: 3.0, ..base }),
        ("--top-k 3", SamplingOptions { top_k: Some(3), ..base }),
        ("--top-p 0.2", SamplingOptions { top_p: Some(0.2), ..base }),
        ("--min-p 0.8", SamplingOptions { min_p: Some(0.8), ..base }),
        ("--repetition-penalty 9", SamplingOptions { repetition_penalty: 9.0, ..base }),
    ] {
        let continuation = Continuation { max_tokens: 30, seed: 5, sampling, ..Default::default() };
        let mut expected = b"gato".to_vec();
        let mut collect = |piece: Piece| {
            expected.extend_from_slice(piece.text);
            std::ops::ControlFlow::Continue(())
        };
        continuation.write(&run, "gato", &mut collect).unwrap();
        let written = space.works(&format!("generate runs/text-1 --prompt gato --max-tokens 30 --seed 5 {option}"));
        assert_eq!(written, String::from_utf8(expected).unwrap() + "\n", "{option}");
        assert_ne!(written, text, "{option}");
    }
}

#[test]
fn from_a_text_to_a_sample() {
    let space = Space::new();
    let printed = space.works(&format!("train text.txt {SMALL}"));
    for expected in ["training loss", "a sample, at temperature", "lowest validation loss", "attn generate runs/text-1"]
    {
        assert!(printed.contains(expected), "{printed}");
    }
    let root = space.path("runs/text-1");
    assert_eq!(
        entries(&root),
        [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "training"
        ]
    );
    assert_eq!(entries(&space.path("runs")), ["text-1"]);

    let text = space.works("generate runs/text-1 --prompt gato --max-tokens 30 --seed 5");
    assert!(text.starts_with("gato") && text.trim_end_matches('\n').chars().count() >= 30, "{text}");
    assert_eq!(text, space.works("generate runs/text-1 --prompt gato --max-tokens 30 --seed 5"));
    assert_ne!(text, space.works("generate runs/text-1 --prompt gato --max-tokens 30 --seed 6"));
    let three = space.works("generate runs/text-1 --prompt gato --max-tokens 30 --seed 5 --samples 3");
    let texts: Vec<&str> = three.split("---------------\n").collect();
    assert!(texts.len() == 3 && texts[0] == text && texts.iter().all(|text| text.starts_with("gato")), "{three}");
    assert!(texts[1] != text && texts[2] != text && texts[1] != texts[2], "{three}");
    // Each ends where the text would follow, and the next begins.
    let stop = &text[9..11];
    let stopped =
        space.works(&format!("generate runs/text-1 --prompt gato --max-tokens 30 --seed 5 --samples 3 --stop={stop}"));
    let cut = |text: &&str| match text[4..].find(stop) {
        Some(end) => text[..4 + end].to_string() + "\n",
        None => text.to_string(),
    };
    let expected: Vec<String> = texts.iter().map(cut).collect();
    assert_eq!(stopped, expected.join("---------------\n"), "stop {stop:?}");
    each_sampling_option_is_the_librarys(&space, &text);

    let printed = space.works("eval runs/text-1 text.txt");
    for expected in ["loss", "perplexity", "bits per byte"] {
        assert!(printed.contains(expected), "{printed}");
    }

    // The same command again takes the next folder, and gives the same weights.
    space.works(&format!("train text.txt {SMALL}"));
    let weights = |run: &str| std::fs::read(space.path(run).join("model.safetensors")).unwrap();
    assert_eq!(weights("runs/text-1"), weights("runs/text-2"));
}

#[test]
fn every_tokenizer_trains() {
    let space = Space::new();
    for tokenizer in ["char", "byte", "bpe:300", "runs/char/tokenizer.json"] {
        let out = format!("runs/{}", tokenizer.split(['/', ':']).next().unwrap());
        space.works(&format!("train text.txt {SMALL} --tokenizer {tokenizer} --out {out}"));
        let output = space.attn(&format!("generate {out} --max-tokens 5 --prompt gato"));
        assert!(output.status.success() && output.stdout.starts_with(b"gato"), "{tokenizer}: {output:?}");
        space.works(&format!("eval {out} text.txt"));
    }
    space.write("noise.bin", &(0..=255).cycle().take(2000).collect::<Vec<u8>>());
    space.works(&format!("train noise.bin {SMALL} --tokenizer byte"));
    space.refuses(&format!("train noise.bin {SMALL}"), "--tokenizer byte");
}

#[test]
fn several_texts_have_an_end_of_text_between_them() {
    let space = Space::new();
    space.write("other.txt", "zzz ".repeat(100).as_bytes());
    space.works(&format!("train text.txt other.txt {SMALL} --out runs/two"));
    let config = std::fs::read_to_string(space.path("runs/two/config.json")).unwrap();
    assert!(!config.contains("\"eos_token_id\": null"), "{config}");
    space.works(&format!("train text.txt {SMALL} --out runs/one"));
    let config = std::fs::read_to_string(space.path("runs/one/config.json")).unwrap();
    assert!(config.contains("\"eos_token_id\": null"), "{config}");
}

#[test]
fn texts_are_files_and_folders() {
    let space = Space::new();
    for (path, text) in [("texts/b.md", "bbb bbb\n"), ("texts/a/1.txt", "aaa aaa\n"), ("texts/.git/x", "xxx")] {
        std::fs::create_dir_all(space.path(path).parent().unwrap()).unwrap();
        space.write(path, text.repeat(60).as_bytes());
    }
    space.write("texts/empty", b"");
    let output = space.attn(&format!("train texts {SMALL} --validation texts/a --out run"));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && told.contains("2 texts; left out: 1 hidden, 1 empty"), "{told}");
    assert!(space.works("generate run --max-tokens 3 --prompt ab").starts_with("ab"));
    space.refuses("generate run --prompt x", "'x'"); // What is hidden is not learned from.

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
    // Both are as long, so the mean is in the middle.
    assert!((number(&printed, "loss") - (alone[0] + alone[1]) / 2.0).abs() < 1e-4, "{printed}");

    space.write("texts/c.bin", b"text\nte\xfft");
    let expected = "texts/c.bin: expected utf-8 text, got the byte 0xff at line 2, column 3";
    space.refuses(&format!("train text.txt texts/c.bin {SMALL}"), expected);
}

#[test]
fn a_run_goes_on_where_it_stopped_and_starts_from_another() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out runs/a"));
    assert!(
        space
            .works("train --resume --out runs/a")
            .contains("is already finished at step 12 of 12; a larger --steps trains on")
    );
    space.works("train --resume --out runs/a --steps 18");
    let metrics = std::fs::read_to_string(space.path("runs/a/training/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().filter(|line| line.contains("\"loss\"")).count(), 18);
    assert!(space.works("train --resume --out runs/a").contains("at step 18 of 18"));
    space.refuses("train --resume --out runs/a --steps 5", "at least the 18 steps that are done, got 5");
    assert!(space.works("train --resume --out runs/a").contains("at step 18 of 18"));
    space.refuses("train --resume --out runs/a --seed 2", "--seed cannot be given with --resume");

    space.works("train text.txt --init runs/a --steps 3 --out runs/b");
    space.works("train --resume --steps 4 --out runs/b");
    space.works("train --config runs/b/training/settings.toml --out runs/c");
    std::fs::create_dir(space.path("runs/d.tmp")).unwrap();
    space.works("train text.txt --init runs/a --steps 3 --out runs/d");
    assert!(space.path("runs/d.tmp").exists(), "a folder that is not ours is gone");
    // The ids that begin and end a text stay those of the folder.
    let config = std::fs::read_to_string(space.path("runs/d/config.json")).unwrap();
    space.write("runs/d/config.json", config.replace("\"bos_token_id\": null", "\"bos_token_id\": 3").as_bytes());
    space.write("runs/d/generation_config.json", br#"{ "eos_token_id": [4, 5] }"#);
    space.works("train text.txt --init runs/d --steps 1 --out runs/e");
    for name in ["config.json", "generation_config.json"] {
        let written = std::fs::read(space.path("runs/e").join(name)).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&written).unwrap();
        assert_eq!((&json["bos_token_id"], &json["eos_token_id"]), (&3.into(), &vec![4, 5].into()), "{name}");
    }
    space.refuses("train text.txt --init runs/a --dim 32", "--dim cannot be given with --init");

    // The ids are part of the run: the text is needed no more, but if it is given it must be the same.
    let ids = space.path("runs/a/training/ids.safetensors");
    std::fs::rename(space.path("text.txt"), space.path("moved.txt")).unwrap();
    space.works("train --resume --out runs/a --steps 19");
    space.works("train moved.txt --resume --out runs/a --steps 20");
    space.write("text.txt", "Another text altogether. ".repeat(90).as_bytes());
    space.refuses("train text.txt --resume --out runs/a --steps 24", "unknown character");
    let good = std::fs::read(&ids).unwrap();
    let mut damaged = good.clone();
    damaged[1030] ^= 1;
    std::fs::write(&ids, damaged).unwrap();
    space.refuses(
        "train --resume --out runs/a --steps 24",
        "the ids of the run cannot be read; giving TEXT encodes it again: broken ids",
    );
    std::fs::write(&ids, "").unwrap();
    space.refuses("train --resume --out runs/a --steps 24", "expected a safetensors file, got 0 bytes");
    // The text, where it is given, mends them; lost ones too.
    space.works("train moved.txt --resume --out runs/a --steps 21");
    assert!(std::fs::read(&ids).unwrap() == good);
    std::fs::remove_file(&ids).unwrap();
    // Without it they stay lost: a stranger's settings could name any file.
    space.refuses("train --resume --out runs/a --steps 22", "/moved.txt --resume --out runs/a");
    space.works("train moved.txt --resume --out runs/a --steps 22");
    space.works("train --resume --out runs/a --steps 23");
}

#[test]
fn checkpoints_by_time_are_an_option_that_changes_nothing() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    space.works(&format!("train text.txt {SMALL} --save-every 0 --out often"));
    let settings = std::fs::read_to_string(space.path("often/training/settings.toml")).unwrap();
    assert!(settings.contains("save-every = 0.0"), "{settings}");
    let told = space.attn("train --resume --out often --save-every 0.5 --steps 13");
    let told = String::from_utf8(told.stderr).unwrap();
    assert!(!told.contains("save_every") && told.contains("step 13/13"), "{told}");
    space.works("train --resume --out run --steps 13");
    for file in ["model.safetensors", "training/step-00000013/optimizer.safetensors"] {
        assert!(
            std::fs::read(space.path("run").join(file)).unwrap()
                == std::fs::read(space.path("often").join(file)).unwrap()
        );
    }
    for minutes in ["-1", "nan", "inf"] {
        space.refuses(
            &format!("train text.txt {SMALL} --save-every {minutes}"),
            "--save-every expects a number of minutes of at least 0",
        );
    }
}

/// What the error says goes to the end.
#[test]
fn a_run_that_has_diverged_goes_on_at_a_lower_rate() {
    let space = Space::new();
    let start =
        format!("train text.txt --preset gpt2 {SMALL} --lr 1e5 --out run").replace("--steps 12 ", "--steps 60 ");
    for (often, more) in [("6", ""), ("1", ""), ("6", "--save-every 0"), ("6", "--validation-fraction 0")] {
        let output =
            space.attn(&format!("{} {more}", start.replace("--eval-every 6", &format!("--eval-every {often}"))));
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{often} {more}: {message}");
        let advice = message.lines().last().unwrap();
        assert!(advice.contains("a lower learning rate may help; the "), "{message}");
        if advice.ends_with(" is kept: attn train --resume --out run --lr RATE") {
            assert!(advice.contains("; the checkpoint of step "), "{message}");
            let output = space.attn("train --resume --out run --lr 0.001");
            let (printed, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(printed.contains("60 steps in"), "{often} {more}: {told}");
        } else {
            // Nothing has been learned since the checkpoint, which is of the best model or of no step at all.
            let (from_best, from_scratch) =
                ("; the best model is kept: attn train TEXT --init run --lr RATE", "; attn train TEXT --lr RATE");
            let anew = if advice.ends_with(from_best) {
                "train text.txt --init run --steps 20 --lr 0.001 --out anew".to_string()
            } else {
                assert!(advice.ends_with(from_scratch), "{message}");
                start.replace("--lr 1e5 --out run", "--lr 0.001 --out anew")
            };
            assert!(space.works(&anew).contains(" steps in"), "{often} {more}");
            std::fs::remove_dir_all(space.path("anew")).unwrap();
        }
        std::fs::remove_dir_all(space.path("run")).unwrap();
    }
}

/// Trains, goes on, starts from, evaluates and generates, past the context too.
#[test]
fn every_preset_goes_all_the_way() {
    let space = Space::new();
    for (preset, more, expected) in [
        ("gpt2", "--zero-residual", "\"n_inner\": 64"),
        ("llama", "--tie=false --bias --dropout 0.1", "\"mlp_bias\": true"),
        ("qwen3", "--kv-heads 1 --head-dim 6 --rope-theta 500 --zero-residual=true", "\"rope_theta\": 500.0"),
    ] {
        space.works(&format!("train text.txt {SMALL} --preset {preset} {more} --out {preset}"));
        let config = std::fs::read_to_string(space.path(preset).join("config.json")).unwrap();
        assert!(config.contains(&format!("\"model_type\": \"{preset}\"")) && config.contains(expected), "{config}");
        space.works(&format!("train --config {preset}/training/settings.toml --out again/{preset}"));
        let weights = |run: &str| std::fs::read(space.path(run).join("model.safetensors")).unwrap();
        assert!(weights(preset) == weights(&format!("again/{preset}")), "{preset}");
        space.works(&format!("train --resume --out {preset} --steps 15"));
        space.works(&format!("train text.txt --init {preset} --steps 2 --out next/{preset}"));
        assert!(space.works(&format!("eval next/{preset} text.txt")).contains("bits per byte"));
        let text = space.works(&format!("generate next/{preset} --prompt gato --max-tokens 40"));
        assert!(text.trim_end_matches('\n').chars().count() >= 40, "{text}");
    }
    // One step says nothing about what lies behind zeros; the second does.
    let one = SMALL.replace("--steps 12", "--steps 1");
    space.works(&format!("train text.txt {one} --zero-residual --out short"));
    space.works("train --resume --out short --steps 2");
    space.refuses("train text.txt --init qwen3 --kv-heads 1", "--kv-heads cannot be given with --init");
    space.refuses("train --resume --out qwen3 --rope-theta 5", "--rope-theta cannot be given with --resume");
}

#[test]
fn settings_alone_lead_to_no_file() {
    let space = Space::new();
    let other = "O gato preto correu.\n".repeat(30);
    space.write("other.txt", other.as_bytes());
    space.works(&format!("train text.txt --validation other.txt {SMALL} --out run"));
    std::fs::remove_file(space.path("run/training/ids.safetensors")).unwrap();
    let resume = "--resume --out run --steps 14";
    for given in ["", "text.txt", "--validation other.txt"] {
        space.refuses(&format!("train {given} {resume}"), "expected its texts on the command line");
    }
    space.works(&format!("train text.txt --validation other.txt {resume}"));
    // The built-in corpus is no file of anybody's.
    space.works(&format!("train {SMALL} --steps 2 --out built-in").replace("--steps 12", ""));
    std::fs::remove_file(space.path("built-in/training/ids.safetensors")).unwrap();
    space.works("train --resume --out built-in --steps 3");
}

#[test]
fn a_resumed_run_takes_other_rates_and_says_so() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --lr 0.01 --min-lr 0.005 --out run"));
    let output = space.attn("train --resume --out run --steps 18 --lr 0.002 --clip 0.5 --skip-bad-steps 3");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{told}");
    for change in ["learning_rate 0.01 -> 0.002", "min_learning_rate 0.005 -> 0.001", "clip_norm 1.0 -> 0.5"] {
        assert!(told.contains(change), "{told}");
    }
    let saved = std::fs::read_to_string(space.path("run/training/settings.toml")).unwrap();
    assert!(saved.contains("lr = 0.002") && saved.contains("skip-bad-steps = 3"), "{saved}");
    // Only what changes is told.
    let output = space.attn("train --resume --out run --steps 20");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("changed: steps 18 -> 20; the result will differ") && !told.contains("learning_rate"),
        "{told}"
    );
    space.works("train --resume --out run --steps 30 --schedule warmup-stable-decay --decay-steps 5");
    space.works("train --resume --out run --steps 32 --schedule linear --embedding-lr 0.01");
    let output = space.attn("train --resume --out run --steps 34 --schedule constant");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("schedule \"linear\" -> \"constant\", steps 32 -> 34; the result"), "{told}");
    assert!(!told.contains("min_learning_rate") && !told.contains("decay_steps"), "{told}");
    let output = space.attn("train --resume --out run --warmup 40 --steps 35 --schedule linear");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success()
            && told
                .contains("the learning rate never reaches its full value: --warmup takes 40 steps, but --steps is 35"),
        "{told}"
    );
    // What is done already says nothing of what would change.
    let output = space.attn("train --resume --out run --patience 3");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !told.contains("patience"), "{told}");
    space.refuses("train --resume --out run --optimizer muon", "--optimizer cannot be given with --resume");
    space.refuses("train --resume --out run --decay-steps 4", "--decay-steps needs --schedule warmup-stable-decay");
    space.refuses("train --resume --out run --dropout 0.1", "--dropout cannot be given with --resume");
}

#[test]
fn every_training_option_is_saved_and_read_back() {
    let space = Space::new();
    let options = "--accumulate 2 --schedule warmup-stable-decay --decay-steps 3 --dropout 0.1 --label-smoothing 0.1 \
                   --ema 0.9 --patience 5 --skip-bad-steps 2 --statistics-every 4 --tie=false --optimizer muon --matrix-lr 0.03 \
                   --matrix-weight-decay 0.2 --momentum 0.9 --momentum-warmup 5 --embedding-lr 0.004 --head-lr 0.002 --z-loss 0.001 \
                   --batch-ramp 2:5 --context-ramp 8:6 --architecture gpt2";
    space.works(&format!("train text.txt {SMALL} {options} --out runs/a"));
    let saved = std::fs::read_to_string(space.path("runs/a/training/settings.toml")).unwrap();
    for option in options.split("--").skip(1) {
        let (name, value) = option.trim().split_once([' ', '=']).unwrap();
        let value = if ["schedule", "optimizer", "batch-ramp", "context-ramp", "architecture"].contains(&name) {
            format!("{value:?}")
        } else {
            value.to_string()
        };
        assert!(saved.contains(&format!("{name} = {value}")), "{name} = {value} is not in {saved}");
    }
    space.works("train --config runs/a/training/settings.toml --out runs/b");
    let weights = |run: &str| std::fs::read(space.path(run).join("model.safetensors")).unwrap();
    assert_eq!(weights("runs/a"), weights("runs/b"));
    let config = std::fs::read_to_string(space.path("runs/a/config.json")).unwrap();
    assert!(config.contains("\"attn_pdrop\": 0.1"), "{config}");

    // The rates of --init are kept, unless others are given.
    let dropout = |line: &str, run: &str| {
        space.works(&format!("train text.txt --init runs/a --steps 2 {line} --out {run}"));
        std::fs::read_to_string(space.path(run).join("config.json")).unwrap().contains("\"resid_pdrop\": 0.1")
    };
    assert!(dropout("", "runs/c") && !dropout("--dropout 0", "runs/d"));
}

#[test]
fn training_stops_early_and_says_so() {
    let space = Space::new();
    let wild = "--steps 200 --eval-every 2 --lr 0.5 --min-lr 0.5 --warmup 0 --clip 0 --patience 2";
    let line = format!("train text.txt {} {wild} --out run", SMALL.replace("--steps 12 --eval-every 6", ""));
    let printed = space.works(&line);
    for expected in ["stopped early at step", "2 validations without a lower loss", "lowest validation loss"] {
        assert!(printed.contains(expected), "{printed}");
    }
    assert!(space.works("train --resume --out run").contains("stopped early at step"));
}

#[test]
fn one_batch_is_learned_by_heart_and_nothing_is_saved() {
    let space = Space::new();
    let small = "--layers 1 --heads 2 --dim 32 --context 16 --batch 2 --lr 0.01 --overfit-one-batch";
    let printed = space.works(&format!("train text.txt {small} --dropout 0.5"));
    assert!(printed.contains("memorised: data, model and optimizer work together"), "{printed}");
    let output = space.attn(&format!("train text.txt {small} --steps 3"));
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("not memorised; the loss falls, but not far enough: try more --steps"), "{told}");
    let output = space.attn(&format!("train text.txt {small} --steps 1"));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("expected steps of at least 2, got 1"), "{told}");
    // What of a batch can be learned depends on the documents that a window may look back into.
    space.write("other.txt", "um dois três quatro\n".repeat(4).as_bytes());
    space.works(&format!("train text.txt other.txt {small} --isolate-documents"));
    assert_eq!(entries(space.0.path()), ["other.txt", "text.txt"]);
}

#[test]
fn options_come_from_a_file_and_the_command_line_goes_first() {
    let space = Space::new();
    space.write(
        "small.toml",
        b"texts = ['text.txt']\nlayers = 1\ndim = 16\nheads = 2\ncontext = 16\nbatch = 4\nsteps = 7\n",
    );
    space.works("train --config small.toml --steps 5 --out runs/a");
    let saved = std::fs::read_to_string(space.path("runs/a/training/settings.toml")).unwrap();
    assert!(saved.contains("steps = 5") && saved.contains("dim = 16"), "{saved}");
    // The settings of a run are such a file.
    space.works("train --config runs/a/training/settings.toml --out runs/b");
    let weights = |run: &str| std::fs::read(space.path(run).join("model.safetensors")).unwrap();
    assert_eq!(weights("runs/a"), weights("runs/b"));
    // They are a recipe, which adapts to what is given.
    let dry = |given: &str| space.works(&format!("train --config runs/quick/training/settings.toml {given} --dry-run"));
    space.works("train text.txt --preset quick --steps 30 --context 16 --out runs/quick");
    for (given, expected) in [
        ("", "30 steps"),
        ("--steps 20", "no warm-up, decay to 0 over the last 16 steps"),
        ("--dim 128", "2 heads, 128 channels"),
        ("--heads 4", "4 heads, 64 channels"),
        ("--optimizer adamw", "AdamW at 0.001; warm-up"),
        ("--lr 0.005", "Muon at 0.01, AdamW at 0.005, embeddings at 0.01"),
        ("--tie", "152 320 parameters"),
        ("--schedule cosine", "cosine decay to 0"),
        ("--decay-steps 30", "no warm-up, decay to 0 over the last 30 steps"),
    ] {
        let printed = dry(given);
        assert!(printed.contains(expected), "{given}: {expected} is not in {printed}");
    }
    space.write("both.toml", b"validation = ['text.txt']\nvalidation-fraction = 0.1\n");
    space.refuses("train --config both.toml", "both.toml: validation cannot be given with validation-fraction");
    space.write("wrong.toml", b"layers = 1\nlayer = 2\n");
    space.refuses("train --config wrong.toml", "wrong.toml: line 2: unknown field `layer`");
}

#[test]
fn a_dry_run_writes_nothing() {
    let space = Space::new();
    let printed = space.works(&format!("train text.txt {SMALL} --dry-run"));
    for expected in ["\n# recipe: 12 steps of 4 sequences", "\n# memory: ", "\n# time: about ", "\nlayers = 1\n"] {
        assert!(printed.contains(expected), "{printed}");
    }
    assert!(printed.starts_with("# model: qwen3, ") && printed.contains("\n# data: "), "{printed}");
    let printed = space.works("train text.txt --layers 4000 --dim 100000 --heads 1 --dry-run");
    assert!(printed.contains("no step was run"), "{printed}");
    assert_eq!(entries(space.0.path()), ["text.txt"]);
}

/// What it prints is a file of options for the run that it describes.
#[test]
fn a_dry_run_prints_a_recipe() {
    let space = Space::new();
    space.write("other.txt", &std::fs::read(space.path("text.txt")).unwrap());
    for more in ["--preset quick --cautious-updates", "--ema 0.5 --validation other.txt --tokenizer byte"] {
        let printed = space.works(&format!("train text.txt {SMALL} {more} --dry-run"));
        space.write("recipe.toml", printed.as_bytes());
        space.works("train --config recipe.toml --out a");
        space.works(&format!("train text.txt {SMALL} {more} --out b"));
        for name in ["model.safetensors", "training/settings.toml"] {
            let file = |run: &str| std::fs::read(space.path(run).join(name)).unwrap();
            assert!(file("a") == file("b"), "{more}: {name} differs");
        }
        for run in ["a", "b"] {
            std::fs::remove_dir_all(space.path(run)).unwrap();
        }
    }
    // What memory cannot hold is printed all the same.
    let printed = space.works("train text.txt --layers 4000 --dim 100000 --heads 1 --dry-run");
    assert!(printed.contains("\nlayers = 4000\n"), "{printed}");
}

/// Every option that the help of `--resume` lists is accepted, and no other that shapes a run.
#[test]
fn the_options_that_a_resumed_run_may_change_are_listed() {
    let values = [
        ("steps", "18"),
        ("lr", "0.004"),
        ("min-lr", "0.0001"),
        ("warmup", "2"),
        ("schedule", "warmup-stable-decay"),
        ("decay-steps", "4"),
        ("weight-decay", "0.05"),
        ("matrix-lr", "0.03"),
        ("matrix-weight-decay", "0.02"),
        ("embedding-lr", "0.005"),
        ("head-lr", "0.006"),
        ("clip", "0.5"),
        ("eval-every", "4"),
        ("save-every", "1"),
        ("patience", "7"),
        ("skip-bad-steps", "2"),
        ("statistics-every", "5"),
    ];
    let space = Space::new();
    let help = space.works("train --help").split_whitespace().collect::<Vec<_>>().join(" ");
    let (_, listed) = help.split_once("only these can be changed: ").unwrap();
    let listed: Vec<&str> = listed.split(". TEXT").next().unwrap().split(", ").collect();
    let names: Vec<String> = values.iter().map(|(name, _)| format!("--{name}")).collect();
    assert_eq!(listed, names);
    space.works(&format!("train text.txt {SMALL} --optimizer muon --tie=false --lr 0.01 --out run"));
    let changes: Vec<String> = values.iter().map(|(name, value)| format!("--{name} {value}")).collect();
    let told = space.attn(&format!("train --resume --out run {}", changes.join(" ")));
    let told = String::from_utf8(told.stderr).unwrap();
    assert!(told.contains("changed: ") && told.contains("step 18/18"), "{told}");
    let settings = std::fs::read_to_string(space.path("run/training/settings.toml")).unwrap();
    let settings: toml::Table = settings.parse().unwrap();
    for (name, value) in values {
        let saved = settings[name].to_string();
        assert!(saved.trim_matches('"') == value || saved == format!("{value}.0"), "{name} = {saved}, given {value}");
    }
    for more in ["--batch 5", "--dropout 0.1", "--seed 2", "--optimizer adamw", "--dim 32", "--tokenizer byte"] {
        space.refuses(&format!("train --resume --out run {more}"), "cannot be given with --resume");
    }
}

#[test]
fn the_example_and_the_version() {
    let space = Space::new();
    let example = space.works("example");
    for number in ["0.5646", "0.6271", "0.3491", "0.5355", "0.47", "1.40"] {
        assert!(example.contains(number), "{number} is missing: {example}");
    }
    assert!(space.works("--version").starts_with("attn "));
}

#[test]
fn bad_input_is_one_line_and_leaves_nothing_behind() {
    let space = Space::new();
    space.write("empty.txt", b"");
    space.write("short.txt", b"abc");
    space.write("same.txt", "a".repeat(2000).as_bytes());
    space.write("latin1.txt", b"Primeira linha.\nA\xe7\xe3o.\n");
    for (line, expected) in [
        ("train missing.txt", "missing.txt"),
        ("train empty.txt", "empty.txt"),
        ("train short.txt", "of at least 2 tokens"),
        ("train latin1.txt", "line 2"),
        ("train text.txt --tokenizer bpe:3", "3"),
        ("train text.txt --tokenizer bpe:99999999999999999", "at most 1048576"),
        ("train text.txt --batch 18446744073709551615", "batch_size"),
        ("train text.txt --batch 16000000 --context 100", "of memory"),
        ("train text.txt --dim 1000000 --heads 1", "of memory"),
        ("train same.txt", "expected a text of at least two different tokens"),
        ("train text.txt --lr -1", "learning_rate"),
        ("train text.txt --out new/..", "expected the path of a new folder"),
        ("train text.txt --tokenizer nowhere.json", "nowhere.json"),
        ("train text.txt --preset gpt2 --heads 3", "num_heads 3 and embed_dim"),
        ("train text.txt --preset gpt2 --kv-heads 2", "--kv-heads needs --architecture llama or qwen3"),
        ("train text.txt --preset llama --kv-heads 3", "num_kv_heads to divide num_heads, got 3 and 4"),
        ("train text.txt --preset qwen3 --head-dim 5", "even head_dim"),
        ("train text.txt --preset qwen3 --rope-theta 0", "rope_theta above 0"),
        ("train text.txt --preset llama --dim 1000000 --heads 2", "of memory"),
        (
            "train text.txt --tie false",
            "no text is named false; to set an option that is true or false, write --tie=false",
        ),
        ("train text.txt --beta2 0.99999999", "beta2 from 0 to below 1 in f32"),
        ("train text.txt --steps 0", "steps"),
        ("train text.txt --lr nan", "learning_rate"),
        ("train text.txt --min-lr 1", "min_learning_rate of at most the learning_rate 0.01, got 1"),
        ("train text.txt --schedule constant --min-lr 0", "--min-lr has no effect with --schedule constant"),
        ("train text.txt --patience 2 --validation-fraction 0", "patience expects a validation text"),
        ("train text.txt --eval-every 0", "eval_every of at least 1"),
        ("train text.txt --preset gpt2 --accumulate 13", "accumulate from 1 to 12, got 13"),
        ("train text.txt --dropout 1", "embedding dropout from 0 to below 1, got 1"),
        ("train text.txt --label-smoothing 1", "label_smoothing"),
        ("train text.txt --ema 1", "ema"),
        ("train text.txt --preset gpt2 --decay-steps 5", "--decay-steps needs --schedule warmup-stable-decay"),
        (
            "train text.txt --preset gpt2 --schedule warmup-stable-decay --decay-steps 0",
            "decay_steps from 1 to the 1900 steps after the warm-up",
        ),
        ("train text.txt --preset gpt2 --matrix-lr 0.1", "--matrix-lr needs --optimizer muon"),
        ("train text.txt --preset gpt2 --optimizer adamw --momentum 0.9", "--momentum needs --optimizer muon"),
        ("train text.txt --optimizer muon --momentum 1", "momentum from 0 to below 1, got 1"),
        ("train text.txt --preset gpt2 --context-ramp 65:9", "expected context_ramp to start from 2 to 64, got 65"),
        ("train text.txt --preset gpt2 --head-lr 0.1", "head_learning_rate expects an untied head"),
        ("train text.txt --layers 99999999999", "num_layers"),
        ("train text.txt --validation-fraction 1.5", "validation fraction"),
        ("train text.txt --config missing.toml", "missing.toml"),
        ("train text.txt --init missing", "missing"),
        ("train --resume --out missing", "not a run to resume"),
        ("generate missing", "missing is not a folder"),
        ("eval missing text.txt", "missing is not a folder"),
    ] {
        space.refuses(line, expected);
    }
    assert_eq!(entries(space.0.path()), ["empty.txt", "latin1.txt", "same.txt", "short.txt", "text.txt"]);
}

#[test]
fn bad_input_to_a_trained_model_is_one_line() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    space.write("greek.txt", "O gato\npreto α.\n".as_bytes());
    for (line, expected) in [
        (format!("train text.txt {SMALL} --out run"), "run already exists"),
        ("generate run --prompt gaßto".into(), "'ß'"),
        ("generate run --temperature -1".into(), "temperature"),
        ("generate run --top-p 2".into(), "top_p"),
        ("generate run --min-p 0".into(), "min_p"),
        ("generate run --repetition-penalty 0".into(), "repetition penalty"),
        ("generate run --stop=".into(), "stop texts"),
        ("eval run greek.txt".into(), "line 2, column 7"),
        ("eval run missing.txt".into(), "missing.txt"),
    ] {
        space.refuses(&line, expected);
    }
    for (file, line) in [
        ("config.json", "generate run"),
        ("tokenizer.json", "generate run"),
        ("model.safetensors", "generate run"),
        ("training/step-00000012/optimizer.safetensors", "train --resume --out run --steps 20"),
        ("training/step-00000012/state.json", "train --resume --out run --steps 20"),
        ("training/current", "train --resume --out run --steps 20"),
    ] {
        let path = space.path("run").join(file);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        space.refuses(line, file.rsplit('/').next().unwrap());
        std::fs::write(&path, &good).unwrap();
    }
    space.works("train --resume --out run --steps 13");
}

/// A run of a stranger's, or of a larger machine's.
#[test]
fn a_run_that_memory_cannot_hold_is_not_resumed() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    let (settings, state) =
        (space.path("run/training/settings.toml"), space.path("run/training/step-00000012/state.json"));
    let text = std::fs::read_to_string(&settings).unwrap();
    assert!(text.contains("batch = 4"), "{text}");
    std::fs::write(&settings, text.replace("batch = 4", "batch = 16777216")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    json["options"]["batch_size"] = 16777216.into();
    std::fs::write(&state, crate::training::sealed(json)).unwrap();
    space.refuses("train --resume --out run --steps 13", "of memory, with");
}

#[cfg(unix)]
#[test]
fn an_interrupt_saves_and_says_how_to_go_on() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::Stdio;

    let space = Space::new();
    let line = format!("train text.txt {SMALL} --steps 1000000 --eval-every 1000000 --out run")
        .replace("--steps 12 --eval-every 6", "");
    let mut child = Command::new(env!("CARGO_BIN_EXE_attn"))
        .args(line.split_whitespace())
        .current_dir(space.0.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("step 1/")), "the first step is never told");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let rest = std::thread::spawn(move || lines.count());
    let mut printed = String::new();
    child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{printed}");
    rest.join().unwrap();
    assert!(printed.contains("stopped and saved") && printed.contains("attn train --resume --out run"), "{printed}");
    let step: u64 = printed.split("at step ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    space.works(&format!("train --resume --out run --steps {}", step + 2));
}

#[cfg(target_os = "linux")]
mod linux {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    /// The outcome of a line of a shell, in which `$0` is the command.
    fn shell(space: &Space, line: &str) -> (Option<i32>, String) {
        let mut command = Command::new("sh");
        let output =
            command.args(["-c", line, env!("CARGO_BIN_EXE_attn")]).current_dir(space.0.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    #[test]
    fn what_the_system_refuses_is_one_line() {
        let space = Space::new();
        let (code, message) = shell(&space, "$0 example >/dev/full");
        assert_eq!((code, message.lines().count()), (Some(2), 1), "{message}");
        assert!(message.contains("cannot write to standard output: No space left on device"), "{message}");

        let (code, message) = shell(&space, "ulimit -v 1000000; $0 --threads 1000 example");
        assert_eq!((code, message.lines().count()), (Some(1), 1), "{message}");
        assert!(
            message.contains("cannot start worker threads: ") && message.contains("; try fewer with --threads N"),
            "{message}"
        );
    }

    #[test]
    fn a_limit_on_the_size_of_files_is_an_error_that_leaves_nothing() {
        let space = Space::new();
        let sizes = SMALL.replace("--dim 16", "--dim 128");
        let (code, message) = shell(&space, &format!("ulimit -f 100; $0 train text.txt {sizes} --out run"));
        assert!(code == Some(2) && message.contains("File too large"), "{code:?}: {message}");
        assert_eq!(entries(space.0.path()), ["text.txt"]);
    }

    #[test]
    fn a_name_that_is_no_utf8_is_shown() {
        let space = Space::new();
        let name = std::ffi::OsStr::from_bytes(b"a\xff.txt");
        std::fs::copy(space.path("text.txt"), space.0.path().join(name)).unwrap();
        let output =
            Command::new(env!("CARGO_BIN_EXE_attn")).arg("train").arg(name).current_dir(space.0.path()).output();
        let message = String::from_utf8(output.unwrap().stderr).unwrap();
        assert!(message.contains("a\u{fffd}.txt: expected a path in UTF-8"), "{message}");
    }
}
