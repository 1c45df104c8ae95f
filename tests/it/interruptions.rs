//! The command, killed or asked to stop: the run it leaves goes on as if nothing had happened.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A folder to run the command in.
struct Space(tempfile::TempDir);

impl Space {
    fn new() -> Self {
        let space = Self(tempfile::tempdir().unwrap());
        let lines = "O gato preto correu rapidamente.\nA gata preta correu rapidamente.\n".repeat(60);
        std::fs::write(space.path("text.txt"), lines).unwrap();
        space
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Starts the command, with its outputs piped.
    fn start(&self, line: &str) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
        command.args(line.split_whitespace()).current_dir(self.0.path());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs a command that should succeed, and gives what it prints.
    fn works(&self, line: &str) -> String {
        let output = self.start(line).wait_with_output().unwrap();
        assert!(output.status.success(), "attn {line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Trains in `run` to the end, starting it if it does not exist.
    fn train(&self, start: &str) -> String {
        self.works(if self.path("run").exists() { "train --resume --out run" } else { start })
    }
}

/// Sends a signal by its name.
fn send(signal: &str, child: &Child) {
    let killed = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
}

/// Waits for a line on standard error with this beginning; later lines are read and counted.
fn await_line(child: &mut Child, beginning: &str) -> std::thread::JoinHandle<usize> {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with(beginning)), "no line begins with {beginning}");
    std::thread::spawn(move || lines.count())
}

/// The end of a command: its exit status and what it printed.
fn end(child: Child, reader: std::thread::JoinHandle<usize>) -> (ExitStatus, String) {
    let output = child.wait_with_output().unwrap();
    reader.join().unwrap();
    (output.status, String::from_utf8(output.stdout).unwrap())
}

/// The content of a finished run that does not depend on time: the metrics without seconds, all files of weights or
/// moments, and the names of all others.
fn result(run: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let metrics = std::fs::read_to_string(run.join("training/metrics.jsonl")).unwrap();
    let without_seconds = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("seconds").unwrap();
        line.to_string() + "\n"
    };
    let mut files = vec![(PathBuf::from("metrics"), metrics.lines().map(without_seconds).collect::<String>().into())];
    let mut folders = vec![run.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                // The names of the event files are those of the day.
                folders.extend((!path.ends_with("tensorboard")).then_some(path));
            } else {
                let is_exact = path.extension().is_some_and(|extension| extension == "safetensors");
                let content = if is_exact { std::fs::read(&path).unwrap() } else { vec![] };
                files.push((path.strip_prefix(run).unwrap().to_path_buf(), content));
            }
        }
    }
    files
}

/// Fails where two runs differ, by the name of the file.
fn assert_same(got: &[(PathBuf, Vec<u8>)], expected: &[(PathBuf, Vec<u8>)], label: &str) {
    let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(got), names(expected), "{label}");
    for ((name, got), (_, expected)) in got.iter().zip(expected) {
        assert!(got == expected, "{label}: {} differs", name.display());
    }
}

const SIZES: &str = "--layers 1 --heads 2 --dim 16 --context 16 --batch 4";

#[test]
fn a_run_that_is_killed_a_hundred_times_ends_as_if_it_was_not() {
    let start = &format!("train text.txt --out run {SIZES} --steps 60 --eval-every 4");
    let space = Space::new();
    let begun = Instant::now();
    space.works(start);
    let whole = begun.elapsed();
    let expected = result(&space.path("run"));
    std::fs::remove_dir_all(space.path("run")).unwrap();

    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let pointer = || std::fs::read_to_string(space.path("run/training/current")).unwrap_or_default();
    let (mut kills, mut finished, mut moved) = (0, 0, 0);
    while kills < 100 {
        let exists = space.path("run").exists();
        let before = pointer();
        let mut child = space.start(if exists { "train --resume --out run" } else { start });
        std::thread::sleep(whole.mul_f64(rng.random_range(0.0..0.7)).max(Duration::from_millis(1)));
        match child.try_wait().unwrap() {
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                moved += u64::from(pointer() != before);
            }
            Some(_) => {
                let output = child.wait_with_output().unwrap();
                assert!(output.status.success(), "after {kills} kills: {}", String::from_utf8_lossy(&output.stderr));
                space.train(start);
                assert_same(&result(&space.path("run")), &expected, &format!("after {kills} kills"));
                std::fs::remove_dir_all(space.path("run")).unwrap();
                finished += 1;
            }
        }
    }
    // Not only while the command starts.
    assert!(moved >= 30, "in only {moved} of {kills} rounds was a checkpoint written");
    space.train(start);
    assert_same(&result(&space.path("run")), &expected, &format!("at the end, {finished} runs finished before"));
    let left = std::fs::read_dir(space.path(".")).unwrap().map(|entry| entry.unwrap().path());
    let left = left.filter(|path| path.join("training/lock").exists()).count();
    assert_eq!(left, 1, "more than the run is left");
}

#[test]
fn a_request_to_stop_finishes_the_step_saves_and_says_how_to_go_on() {
    let start = &format!("train text.txt --out run {SIZES} --steps 1500 --eval-every 500");
    let undisturbed = Space::new();
    undisturbed.works(start);
    let expected = result(&undisturbed.path("run"));
    let sample = "generate run --seed 3 --max-tokens 40";
    for signal in ["INT", "TERM", "HUP"] {
        let space = Space::new();
        let mut child = space.start(start);
        let reader = await_line(&mut child, "step 1/");
        send(signal, &child);
        let (status, printed) = end(child, reader);
        assert_eq!(status.code(), Some(0), "{signal}: {printed}");
        assert!(printed.contains("stopped and saved at step "), "{signal}: {printed}");
        assert!(printed.contains("to continue: attn train --resume --out run"), "{signal}: {printed}");
        space.train(start);
        assert_same(&result(&space.path("run")), &expected, signal);
        assert_eq!(space.works(sample), undisturbed.works(sample), "{signal}");
    }
}

#[test]
fn a_second_request_leaves_at_once_and_the_last_checkpoint_stays() {
    // Steps that take much longer than a signal.
    let start =
        "train text.txt --out run --layers 2 --heads 2 --dim 128 --context 64 --batch 96 --steps 4 --eval-every 2";
    let undisturbed = Space::new();
    undisturbed.works(start);
    let space = Space::new();
    let mut child = space.start(start);
    let reader = await_line(&mut child, "step 1/");
    // Both at once, however busy the machine is.
    for signal in ["STOP", "INT", "TERM", "CONT"] {
        send(signal, &child);
    }
    let (status, printed) = end(child, reader);
    assert_eq!((status.code(), printed.as_str()), (Some(130), ""));
    assert_eq!(std::fs::read_to_string(space.path("run/training/current")).unwrap(), "step-00000000\n");
    space.train(start);
    assert_same(&result(&space.path("run")), &result(&undisturbed.path("run")), "resumed");
}

#[test]
fn a_request_to_stop_before_training_leaves_at_once_and_nothing_behind() {
    let space = Space::new();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let words = (0..600_000).map(|_| format!("{:x} ", rng.random::<u32>() >> 8)).collect::<String>();
    std::fs::write(space.path("text.txt"), words).unwrap();
    let mut child = space.start(&format!("train text.txt --out run {SIZES} --tokenizer bpe:20000"));
    let reader = await_line(&mut child, "learning a BPE");
    send("TERM", &child);
    let (status, printed) = end(child, reader);
    assert_eq!((status.code(), printed.as_str()), (Some(130), ""));
    assert_eq!(std::fs::read_dir(space.0.path()).unwrap().count(), 1);
}

/// Writes a text whose ids are kept in a file.
fn write_large_text(space: &Space) {
    std::fs::write(space.path("text.txt"), "uma linha de texto que se repete\n".repeat(540_000)).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_request_to_stop_while_a_text_is_encoded_removes_the_ids() {
    let space = Space::new();
    write_large_text(&space);
    let mut child = space.start(&format!("train text.txt --out run {SIZES} --steps 1000000"));
    while !names(space.0.path()).iter().any(|name| name.starts_with(".attn-ids-")) {
        assert!(child.try_wait().unwrap().is_none(), "it has ended by itself");
        std::thread::sleep(Duration::from_millis(1));
    }
    send("TERM", &child);
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), told.contains("stopped, with nothing saved")), (Some(130), true), "{told}");
    assert_eq!(names(space.0.path()), ["text.txt"]);
}

#[test]
fn a_request_to_stop_learning_one_batch_by_heart_leaves_nothing() {
    let space = Space::new();
    write_large_text(&space);
    let temporary = space.path("temporary");
    std::fs::create_dir(&temporary).unwrap();
    let line = format!("train text.txt {SIZES} --tokenizer byte --lr 1e-9 --steps 1000000 --overfit-one-batch");
    let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
    command.args(line.split_whitespace()).current_dir(space.0.path()).env("TMPDIR", &temporary);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let reader = await_line(&mut child, "step 1/");
    assert_eq!(names(&temporary).len(), 1, "the text is too short for this test");
    send("INT", &child);
    let (status, printed) = end(child, reader);
    assert_eq!((status.code(), printed.as_str()), (Some(130), ""));
    assert!(names(&temporary).is_empty());
    let mut left = names(space.0.path());
    left.sort();
    assert_eq!(left, ["temporary", "text.txt"]);
}

#[test]
fn a_request_to_stop_the_closing_sample_finds_the_run_whole() {
    let space = Space::new();
    let sizes = SIZES.replace("--layers 1", "--layers 12").replace("--dim 16", "--dim 256");
    let mut child = space.start(&format!("train text.txt --out run {sizes} --preset gpt2 --steps 1"));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("a sample, at temperature")));
    send("TERM", &child);
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.ends_with("stopped; the run is complete and saved\n"), "{told}");
    assert!(lines.all(|line| !line.unwrap().contains("more text:")), "too late for this test");
}

/// A large model takes a while to write.
fn start_of_large_run() -> String {
    let sizes = SIZES.replace("--layers 1", "--layers 12").replace("--dim 16", "--dim 384");
    format!("train text.txt --out run {sizes} --preset gpt2 --steps 1000 --eval-every 1000")
}

#[test]
fn a_request_to_stop_while_the_run_is_created_leaves_nothing() {
    let space = Space::new();
    let mut child = space.start(&start_of_large_run());
    while !names(space.0.path()).iter().any(|name| name.starts_with(".run.attn-")) {
        assert!(child.try_wait().unwrap().is_none(), "it has ended by itself");
        std::thread::yield_now();
    }
    send("TERM", &child);
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.ends_with("stopped before training began\n"), "{told}");
    assert_eq!(names(space.0.path()), ["text.txt"]);
}

#[test]
fn a_request_to_stop_while_a_run_is_opened_says_that_it_can_be_resumed() {
    let space = Space::new();
    let mut child = space.start(&start_of_large_run());
    let reader = await_line(&mut child, "run from step 0");
    child.kill().unwrap();
    end(child, reader);
    let lock = space.path("run/training/lock");
    std::fs::remove_file(&lock).unwrap();
    let mut child = space.start("train --resume --out run");
    while !lock.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it has ended by itself");
        std::thread::yield_now();
    }
    send("INT", &child);
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.ends_with("stopped; the run can be resumed from its last checkpoint\n"), "{told}");
    assert_eq!(std::fs::read_to_string(space.path("run/training/current")).unwrap(), "step-00000000\n");
}

#[test]
fn a_hangup_that_was_ignored_at_the_start_stays_so() {
    let space = Space::new();
    let line = format!("trap '' HUP; exec \"$0\" train text.txt --out run {SIZES} --steps 300");
    let mut command = Command::new("sh");
    command.args(["-c", &line, env!("CARGO_BIN_EXE_attn")]).current_dir(space.0.path());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let reader = await_line(&mut child, "step 1/");
    send("HUP", &child);
    let (status, printed) = end(child, reader);
    assert!(status.success() && printed.contains("300 steps in"), "{printed}");
}

#[test]
fn writing_ends_in_silence_when_nobody_reads_on_and_at_an_interrupt() {
    const INTERRUPT: i32 = 2;
    let space = Space::new();
    space.works(&format!("train text.txt --out run {SIZES} --steps 3"));
    for (samples, interrupts) in [(1, false), (3, false), (1, true), (3, true)] {
        let line = format!("generate run --prompt gato --max-tokens 1000000000 --samples {samples}");
        let mut child = space.start(&line);
        let mut stdout = child.stdout.take().unwrap();
        let mut begun = [0; 30];
        stdout.read_exact(&mut begun).unwrap();
        assert!(begun.starts_with(b"gato"), "{begun:?}");
        let stays_open = interrupts.then_some(stdout);
        if interrupts {
            send("INT", &child);
        }
        let output = child.wait_with_output().unwrap();
        drop(stays_open);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{line}");
        let (code, signal) = (output.status.code(), output.status.signal());
        assert_eq!((code, signal), if interrupts { (None, Some(INTERRUPT)) } else { (Some(0), None) }, "{line}");
    }
}
