//! Bad input: one line that says what is wrong, exit code 2, and nothing left behind.

use crate::support::{SMALL, Space};

#[test]
fn bad_input_is_one_line_and_leaves_nothing_behind() {
    let space = Space::new();
    space.write("empty.txt", "");
    std::fs::create_dir(space.path("nothing")).unwrap();
    space.write("short.txt", "a");
    space.write("same.txt", "a".repeat(2000));
    space.write("latin1.txt", b"Primeira linha.\nA\xe7\xe3o.\n");
    for (line, expected) in [
        ("train nothing", "expected text files in nothing, got none\n"),
        ("train missing.txt", "missing.txt: No such file or directory"),
        ("train empty.txt", "empty.txt, got an empty file"),
        ("train short.txt --tokenizer byte", "expected a training text of at least 2 tokens, got 1"),
        ("train latin1.txt", "latin1.txt: expected utf-8"),
        ("train same.txt --tokenizer char", "expected a text of at least two different tokens"),
        ("train text.txt --batch 16000000 --context 100", "MB of memory, and there are"),
        ("train text.txt --dim 1000000 --heads 1", "MB of memory, and there are"),
        ("train text.txt --preset llama --dim 1000000 --heads 2", "MB of memory, and there are"),
        ("train text.txt --layers 4000 --dim 100000 --heads 1 --dry-run", "MB of memory, and there are"),
        ("train text.txt --patience 2 --validation-fraction 0", "--patience: expected a validation text, got none"),
        ("train text.txt --isolate-documents", "--isolate-documents: expected several documents"),
        (
            "train text.txt --context 5000",
            "--context: expected at most 395, as the validation text has 396 tokens, got 5000",
        ),
        ("train text.txt false", "false: No such file or directory"),
        ("train text.txt --config missing.toml", "missing.toml: No such file or directory"),
        ("train text.txt --init missing", "--init: missing: expected the folder of a model"),
        ("train --resume --out missing", "missing is not a run"),
        ("generate missing", "missing: expected the folder of a model"),
        ("eval missing text.txt", "missing: expected the folder of a model"),
    ] {
        let message = space.refuses(line, expected);
        // The system's words are said once.
        assert!(message.matches("No such file").count() <= 1, "attn {line}: {message}");
    }
    let left: Vec<String> = space.entries(".").into_iter().filter(|name| name != "runs").collect();
    assert_eq!(left, ["empty.txt", "latin1.txt", "nothing", "same.txt", "short.txt", "text.txt"]);
    assert!(!space.path("runs").exists() || space.entries("runs").is_empty());
}

/// As everywhere, one can ask for less than the processor has.
#[test]
fn products_in_bf16_are_refused_where_the_processor_has_none() {
    let space = Space::new();
    let output = space
        .command("train text.txt --precision bf16 --out run")
        .env("CANDLE_ATTENTION_SIMD", "avx2")
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(message, "attn: --precision: expected f32 on a processor without avx512_bf16, got bf16\n");
    assert_eq!((output.status.code(), space.path("run").exists()), (Some(2), false));
}

#[test]
fn bad_input_to_a_trained_model_is_one_line() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    space.write("greek.txt", "O gato\npreto α.\n");
    space.write("utf16.txt", "\u{feff}O gato".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
    for (line, expected) in [
        ("generate run --prompt gaßto", "'ß'"),
        ("generate run --temperature -1", "--temperature: expected a number of at least 0, got -1"),
        ("generate run --top-p 2", "above 0 and up to 1, got 2"),
        ("generate run --min-p 1.5", "--min-p: expected a number from 0 to 1, got 1.5"),
        ("generate run --repetition-penalty 0", "--repetition-penalty: expected"),
        ("generate run --stop=", "--stop: expected"),
        ("generate run --prompt-file missing", "--prompt-file: cannot read missing"),
        ("generate run --prompt-file utf16.txt", "utf16.txt: expected utf-8 text, got UTF-16"),
        ("train utf16.txt", "utf16.txt: expected utf-8 text, got UTF-16; this converts it: iconv -f UTF-16 -t UTF-8"),
        ("eval run utf16.txt", "utf16.txt: expected utf-8 text, got UTF-16"),
        ("train text.txt --resume --out run", "TEXT cannot be given with --resume"),
        ("train --resume --out run --batch 3", "--batch: cannot be changed when resuming"),
        ("train text.txt --init run --context 17", "--context: expected at most 16, the model's own, got 17"),
        ("train text.txt --tokenizer nowhere", "--tokenizer: expected auto, char, byte, bpe:N"),
        ("train text.txt --tokenizer bpe:2", "--tokenizer: expected a bpe of 256"),
        ("train text.txt --dim 30 --head-dim 4", "--dim: expected a multiple of --head-dim 4, got 30"),
        ("train - --validation -", "--validation: expected other texts than standard input"),
        ("train - -", "expected -, standard input, once"),
        ("train -", "expected text in standard input, got nothing"),
        ("eval run -", "expected text in standard input, got nothing"),
        ("eval run greek.txt", "line 2, column 7"),
        ("eval run missing.txt", "missing.txt"),
    ] {
        space.refuses(line, expected);
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    use super::*;

    /// The outcome of a line of a shell, in which `$0` is the command.
    fn shell(space: &Space, line: &str) -> (Option<i32>, String) {
        let mut command = Command::new("sh");
        let output = command.args(["-c", line, env!("CARGO_BIN_EXE_attn")]).current_dir(space.path(".")).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    #[test]
    fn what_the_system_refuses_is_one_line() {
        let space = Space::new();
        let (code, message) = shell(&space, "$0 example >/dev/full");
        assert_eq!((code, message.lines().count()), (Some(2), 1), "{message}");
        assert!(message.contains("cannot write to standard output: No space left on device"), "{message}");

        // One in some hundred times the memory ends where the standard library sets up a thread that it has started, and aborts.
        let is_answered = |(code, _): &(Option<i32>, String)| *code != Some(134);
        let mut tries = (0..5).map(|_| shell(&space, "ulimit -v 1000000; $0 --threads 1000 example"));
        let (code, message) = tries.find(is_answered).unwrap();
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
        assert_eq!(space.entries("."), ["text.txt"]);
    }

    #[test]
    fn a_text_whose_name_settings_cannot_hold_is_refused() {
        let space = Space::new();
        let name = std::ffi::OsStr::from_bytes(b"a\xff.txt");
        std::fs::copy(space.path("text.txt"), space.path(".").join(name)).unwrap();
        let output = space.command("train").arg(name).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains("UTF-8"), "{message}");
    }
}

/// A command that cannot exchange must not train as often as it is started.
#[cfg(not(feature = "mpi"))]
#[test]
fn one_of_several_processes_is_refused_without_mpi() {
    let space = Space::new();
    for [count, rank] in [
        ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"],
        ["PMI_SIZE", "PMI_RANK"],
        ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID"],
    ] {
        let started = |number: &str| {
            let mut command = space.command("train text.txt --out run");
            command.env(count, "2").env(rank, number).output().unwrap()
        };
        for output in ["0", "1"].map(started) {
            let message = String::from_utf8(output.stderr).unwrap();
            let expected =
                "this is one of 2 processes, and was built without MPI: cargo install --path attn --features mpi\n";
            assert_eq!((message.as_str(), output.status.code()), (&*format!("attn: {expected}"), Some(2)));
        }
        assert!(!space.path("run").exists());
    }
}
