//! Requests to stop: Ctrl-C, SIGTERM of a job manager, SIGHUP of a closing terminal.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::{Running, Space, assert_same, heeding_signals};

const SIZES: &str = "--layers 1 --heads 2 --dim 16 --context 16 --batch 4";

/// A run that would last for hours, whose weights after a step do not depend on how many there will be.
fn endless() -> String {
    format!(
        "train text.txt --out run {SIZES} --preset gpt2 --schedule constant --warmup 0 --steps 1000000000 --eval-every 50"
    )
}

/// Its exit codes.
const CODES: [(&str, libc::c_int, i32); 3] =
    [("HUP", libc::SIGHUP, 129), ("INT", libc::SIGINT, 130), ("TERM", libc::SIGTERM, 143)];

/// Sends a signal.
pub fn send(signal: libc::c_int, child: &Running) {
    // SAFETY: the process is a child that has not been waited for, so its id is not another's.
    assert_eq!(unsafe { libc::kill(child.0.id() as libc::pid_t, signal) }, 0);
}

/// Waits until `is_reached`; fails if the process ends before.
pub fn wait_until(child: &mut Running, is_reached: impl Fn() -> bool) {
    while !is_reached() {
        assert_eq!(child.0.try_wait().unwrap(), None, "it has ended by itself");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Starts a run and waits until it is in training, with a checkpoint after the first.
fn start(space: &Space, mut command: Command) -> Running {
    let mut child = Running(command.spawn().unwrap());
    wait_until(&mut child, || space.checkpoints("run").last().is_some_and(|step| *step > 0));
    child
}

/// What a process has said on standard error, and on standard output.
fn said(output: &Output) -> (String, String) {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8(bytes.clone()).unwrap());
    (err, out)
}

/// Goes on with a stopped run for a while, and compares it with one that was never stopped.
pub fn is_resumable(space: &Space, label: &str) {
    let newest = *space.checkpoints("run").last().unwrap();
    // To the next validation that is due in both.
    let steps = (newest / 50 + 1) * 50;
    space.works(&format!("train --resume --out run --steps {steps}"));
    let whole = Space::new();
    whole.works(&format!("{} --steps {steps}", endless()));
    let [mut resumed, mut expected] = [space, &whole].map(|space| space.result("run"));
    for result in [&mut resumed, &mut expected] {
        // The one before the last was written when the run was stopped.
        result.retain(|name, _| !name.contains("training/step-") || name.contains(&format!("{steps:08}")));
        // It names the text, whose folder is another.
        result.remove("training/settings.toml").unwrap();
    }
    assert_same(label, &resumed, &expected);
}

#[test]
fn a_request_to_stop_finishes_the_step_saves_and_says_how_to_go_on() {
    for (name, signal, code) in CODES {
        let space = Space::new();
        let child = start(&space, space.command(&endless()));
        send(signal, &child);
        let output = child.end();
        let (told, printed) = said(&output);
        assert_eq!(output.status.code(), Some(code), "{name}: {told}");
        assert!(told.contains("stopping after this step, to save the run"), "{name}: {told}");
        assert!(printed.starts_with("stopped and saved at step "), "{name}: {printed}");
        assert!(printed.ends_with("; to continue: attn train --resume --out run\n"), "{name}: {printed}");
        let step: u64 = printed.split(' ').nth(5).unwrap().parse().unwrap();
        assert_eq!(space.checkpoints("run").last(), Some(&step), "{name}");
        is_resumable(&space, name);
    }
}

/// A run whose steps take much longer than a signal.
const SLOW: &str = "train text.txt --out run --preset gpt2 --layers 4 --dim 256 --context 64 --steps 100000";

/// A closing terminal sends SIGHUP from the kernel and from the shell, and `timeout` sends SIGTERM to the command and to
/// its group.
#[test]
fn a_repeated_request_within_a_second_is_the_same_request() {
    for (name, signal, code) in CODES {
        let space = Space::new();
        let child = start(&space, space.command(&format!("{SLOW} --batch 192 --save-every 0")));
        // The next step has begun by then, and lasts longer than this.
        for pause in [300, 60, 200, 200] {
            std::thread::sleep(Duration::from_millis(pause));
            send(signal, &child);
        }
        let output = child.end();
        let (told, printed) = said(&output);
        assert_eq!(output.status.code(), Some(code), "{name}: {told}");
        assert!(printed.starts_with("stopped and saved at step "), "{name}: {told}{printed}");
        assert_eq!(told.matches("stopping after this step").count(), 1, "{name}: {told}");
        let saved = *space.checkpoints("run").last().unwrap();
        assert!(printed.contains(&format!(" at step {saved} of ")), "{name}: {printed}");
        space.works(&format!("train --resume --out run --steps {saved}"));
    }
}

#[test]
fn a_request_after_more_than_a_second_leaves_at_once_and_the_last_checkpoint_stays() {
    let space = Space::new();
    // One step lasts for minutes.
    let mut child = Running(space.command(&format!("{SLOW} --batch 40000 --accumulate 400")).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("run from step 0 of ")));
    // The line is told just before training begins.
    std::thread::sleep(Duration::from_secs(1));
    send(libc::SIGINT, &child);
    assert!(lines.any(|line| line.unwrap().starts_with("stopping after this step")));
    std::thread::sleep(Duration::from_millis(1100));
    send(libc::SIGTERM, &child);
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let output = child.end();
    assert_eq!(rest.last().unwrap(), "stopped at once; the run can be resumed from its last checkpoint", "{rest:?}");
    assert_eq!((output.status.code(), said(&output).1.as_str()), (Some(143), ""));
    assert_eq!(space.checkpoints("run"), [0]);
}

/// Neither closed streams nor those that nobody reads any more keep a run from being saved, or its exit code from telling.
#[test]
fn a_run_without_a_reader_is_saved_all_the_same() {
    for (name, signal, code) in CODES {
        // Nothing reads what it writes, from the first byte on.
        let space = Space::new();
        let mut command = space.command(&endless());
        let [(reader, out), (other_reader, err)] = [std::io::pipe().unwrap(), std::io::pipe().unwrap()];
        drop((reader, other_reader));
        let child = start(&space, {
            command.stdout(out).stderr(err);
            command
        });
        send(signal, &child);
        assert_eq!(child.end().status.code(), Some(code), "{name}, a broken pipe");
        is_resumable(&space, &format!("{name}, a broken pipe"));

        let space = Space::new();
        let mut command = Command::new("sh");
        let line = format!("exec \"$0\" {} <&- >&- 2>&-", endless());
        command.args(["-c", &line, env!("CARGO_BIN_EXE_attn")]).current_dir(space.path("."));
        let child = start(&space, heeding_signals(command));
        send(signal, &child);
        assert_eq!(child.end().status.code(), Some(code), "{name}, closed");
        is_resumable(&space, &format!("{name}, closed"));
    }
}

/// Before there is a checkpoint: while a BPE is learned, for which the folder is there already.
#[test]
fn a_request_to_stop_before_the_first_checkpoint_leaves_nothing_behind() {
    let words = |n: u32| (0..n).map(|i| format!("{:x} ", i.wrapping_mul(2_654_435_761) >> 8)).collect::<String>();
    let text = words(600_000);
    for (name, signal, code) in CODES {
        let space = Space::new();
        space.write("text.txt", &text);
        for (out, more) in [("run", "--out run"), ("empty", "--out empty"), ("runs/text-1", "")] {
            std::fs::create_dir_all(space.path("empty")).unwrap();
            let line = format!("train text.txt {more} {SIZES} --tokenizer bpe:20000");
            let mut child = Running(space.command(&line).spawn().unwrap());
            let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap().starts_with("learning a BPE: at most 19,744 merges")));
            assert!(space.path(out).join("training/lock").exists());
            send(signal, &child);
            let rest: Vec<String> = lines.map(Result::unwrap).collect();
            let output = child.end();
            assert_eq!(output.status.code(), Some(code), "{name} {out}: {rest:?}");
            assert_eq!(rest.last().unwrap(), "stopped; nothing was saved", "{name} {out}");
            assert_eq!(said(&output).1, "");
            assert!(space.path(out).exists() == (out == "empty"), "{name}: {out} is left");
            assert_eq!(space.entries("empty"), [""; 0], "{name} {out}");
        }
    }
}

/// A large model takes a while to write.
fn start_of_large_run() -> String {
    let sizes = SIZES.replace("--layers 1", "--layers 12").replace("--dim 16", "--dim 384");
    format!("train text.txt --out run {sizes} --preset gpt2 --steps 1000 --eval-every 1000")
}

/// While the first checkpoint is written, and other threads meet the end of their folder.
#[test]
fn a_request_to_stop_while_the_first_checkpoint_is_written_leaves_nothing() {
    for is_new in [true, false] {
        let space = Space::new();
        if !is_new {
            std::fs::create_dir(space.path("run")).unwrap();
        }
        let mut child = Running(space.command(&start_of_large_run()).spawn().unwrap());
        wait_until(&mut child, || space.path("run/training/step-00000000.safetensors.tmp").exists());
        send(libc::SIGTERM, &child);
        let output = child.end();
        let (told, printed) = said(&output);
        assert_eq!(output.status.code(), Some(143), "{told}");
        assert!(told.ends_with("\nstopped; nothing was saved\n") && printed.is_empty(), "{told}{printed}");
        if !is_new {
            assert_eq!(space.entries("run"), [""; 0]);
            std::fs::remove_dir(space.path("run")).unwrap();
        }
        assert_eq!(space.entries("."), ["text.txt"]);
    }
}

#[test]
fn a_request_to_stop_while_a_run_is_opened_says_that_it_can_be_resumed() {
    let space = Space::new();
    let mut child = Running(space.command(&start_of_large_run()).spawn().unwrap());
    wait_until(&mut child, || space.checkpoints("run") == [0]);
    drop(child);
    let lock = std::fs::File::open(space.path("run/training/lock")).unwrap();
    let mut child = Running(space.command("train --resume --out run").spawn().unwrap());
    wait_until(&mut child, || lock.try_lock().is_err() || lock.unlock().is_err());
    send(libc::SIGINT, &child);
    let output = child.end();
    let (told, _) = said(&output);
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.ends_with("stopped; the run can be resumed from its last checkpoint\n"), "{told}");
    assert_eq!(space.checkpoints("run"), [0]);
}

#[test]
fn a_request_to_stop_where_nothing_is_kept_leaves_nothing() {
    let space = Space::new();
    std::fs::create_dir(space.path("temporary")).unwrap();
    // Its ids are kept in a temporary file.
    space.write("large.txt", "uma linha de texto que se repete\n".repeat(540_000));
    for (line, waits_for) in [
        (
            format!("train large.txt {SIZES} --tokenizer byte --lr 1e-9 --steps 1000000000 --overfit-one-batch"),
            "model: ",
        ),
        (format!("train large.txt {SIZES} --tokenizer bpe:500 --dry-run"), "learning a BPE"),
    ] {
        let mut child = Running(space.command(&line).env("TMPDIR", space.path("temporary")).spawn().unwrap());
        let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with(waits_for)), "{line}");
        send(libc::SIGINT, &child);
        let rest: Vec<String> = lines.map(Result::unwrap).collect();
        let output = child.end();
        assert_eq!((output.status.code(), said(&output).1.as_str()), (Some(130), ""), "{line}: {rest:?}");
        assert_eq!(rest.last().unwrap(), "stopped; nothing was saved", "{line}");
        assert_eq!(space.entries("temporary"), [""; 0], "{line}");
        assert_eq!(space.entries("."), ["large.txt", "temporary", "text.txt"], "{line}");
    }
}

#[test]
fn a_request_to_stop_the_closing_sample_finds_the_run_whole() {
    let space = Space::new();
    let sizes = SIZES.replace("--layers 1", "--layers 12").replace("--dim 16", "--dim 256");
    let line = format!("train text.txt --out run {sizes} --preset gpt2 --steps 1");
    let mut child = Running(space.command(&line).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("a sample, at temperature")));
    send(libc::SIGTERM, &child);
    let output = child.end();
    let (told, _) = said(&output);
    assert_eq!(output.status.code(), Some(143), "{told}");
    assert!(told.ends_with("stopped; the run is complete and saved\n"), "{told}");
    assert!(lines.all(|line| !line.unwrap().contains("more text:")), "too late for this test");
    assert!(space.works("train --resume --out run").contains("is already finished at step 1 of 1"));
}

#[test]
fn a_hangup_that_was_ignored_at_the_start_stays_so() {
    let space = Space::new();
    let line = format!("trap '' HUP; exec \"$0\" {}", endless());
    let mut command = Command::new("sh");
    command.args(["-c", &line, env!("CARGO_BIN_EXE_attn")]).current_dir(space.path("."));
    let mut child = start(&space, {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    });
    let before = *space.checkpoints("run").last().unwrap();
    send(libc::SIGHUP, &child);
    wait_until(&mut child, || space.checkpoints("run").last().is_some_and(|step| *step > before + 50));
    drop(child);
}

#[test]
fn writing_ends_in_silence_when_nobody_reads_on_and_at_an_interrupt() {
    let space = Space::new();
    space.works(&format!("train text.txt --out run {SIZES} --steps 3"));
    for (samples, interrupts) in [(1, false), (3, false), (1, true), (3, true)] {
        let line = format!("generate run --prompt gato --max-tokens 1000000000 --samples {samples}");
        let mut child = Running(space.command(&line).spawn().unwrap());
        let mut stdout = child.0.stdout.take().unwrap();
        let mut first = [0; 30];
        stdout.read_exact(&mut first).unwrap();
        assert!(first.starts_with(b"gato"), "{first:?}");
        let stays_open = interrupts.then_some(stdout);
        if interrupts {
            send(libc::SIGINT, &child);
        }
        let output = child.end();
        drop(stays_open);
        assert_eq!(said(&output).0, "", "{line}");
        let (code, signal) = (output.status.code(), output.status.signal());
        assert_eq!((code, signal), if interrupts { (None, Some(libc::SIGINT)) } else { (Some(0), None) }, "{line}");
    }
}
