//! What a terminal gets, and what its end does to a run.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::signals::{is_resumable, send, wait_until};
use crate::support::{Running, Space};

/// Our side of a pseudoterminal, and the side of the command.
fn pseudoterminal() -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: both numbers are written before the call returns; the other arguments may be null. On success both are open
    // files that nothing else owns.
    unsafe {
        let null = std::ptr::null_mut();
        assert_eq!(libc::openpty(&mut ours, &mut theirs, null, null.cast(), null.cast()), 0);
        // Only the command itself keeps them open.
        for file in [ours, theirs] {
            assert_eq!(libc::fcntl(file, libc::F_SETFD, libc::FD_CLOEXEC), 0);
        }
        (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))
    }
}

/// Starts the command as the first program of a terminal.
fn start(mut command: Command, terminal: OwnedFd) -> Running {
    let file = terminal.as_raw_fd();
    let stream = || terminal.try_clone().unwrap();
    command.stdin(stream()).stdout(stream()).stderr(stream()).env("TERM", "xterm");
    // SAFETY: between fork and exec only two calls are made, which are allowed there.
    unsafe {
        command.pre_exec(move || {
            let is_done = libc::setsid() != -1 && libc::ioctl(file, libc::TIOCSCTTY as _, 0) != -1;
            if is_done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    Running(command.spawn().unwrap())
}

const ENDLESS: &str = "train text.txt --out run --layers 1 --heads 2 --dim 16 --context 16 --batch 4 --preset gpt2 \
                       --schedule constant --warmup 0 --steps 1000000000 --eval-every 50";

/// Everything that comes through, until the other side is closed.
fn read_on(mut ours: File) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut all, mut buffer) = (vec![], [0; 4096]);
        while let Ok(count) = ours.read(&mut buffer)
            && count > 0
        {
            all.extend_from_slice(&buffer[..count]);
        }
        String::from_utf8_lossy(&all).into_owned()
    })
}

/// The kernel sends SIGHUP when a terminal is gone, and so does the shell; every write fails from then on.
#[test]
fn a_run_whose_terminal_is_closed_is_saved() {
    for more_signals in [0, 1, 3] {
        let space = Space::new();
        let (ours, theirs) = pseudoterminal();
        let mut child = start(space.command(ENDLESS), theirs);
        let reader = ours.try_clone().unwrap();
        // What it shows is read, or it would wait.
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let reading = std::thread::spawn(move || {
            let mut reader = reader;
            let mut buffer = [0; 4096];
            let mut poll = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            while stopped.try_recv().is_err() {
                // SAFETY: one valid entry is given, as its count says.
                if unsafe { libc::poll(&mut poll, 1, 10) } > 0 {
                    let _ = reader.read(&mut buffer);
                }
            }
        });
        wait_until(&mut child, || space.checkpoints("run").last().is_some_and(|step| *step > 0));
        stop.send(()).unwrap();
        reading.join().unwrap();
        drop(ours);
        for _ in 0..more_signals {
            send(libc::SIGHUP, &child);
            std::thread::sleep(std::time::Duration::from_millis(30));
        }
        assert_eq!(child.end().status.code(), Some(129), "{more_signals} more signals");
        is_resumable(&space, &format!("{more_signals} more signals"));
    }
}

#[test]
fn a_terminal_gets_bars_and_no_control_characters_of_a_text() {
    let space = Space::new();
    space.write("text.txt", "a\u{1b}]0;b\u{7}c\r\u{9b}2Jd ".repeat(300));
    let run = |line: &str| {
        let (ours, theirs) = pseudoterminal();
        let child = start(space.command(line), theirs);
        let reading = read_on(ours);
        assert!(child.end().status.success(), "{line}");
        reading.join().unwrap()
    };
    let shown = run(
        "train text.txt --out run --layers 1 --heads 2 --dim 16 --context 16 --batch 4 --steps 300 --eval-every 100",
    );
    assert!(shown.contains("step 100/300  validation loss "), "{shown}");
    assert!(shown.contains("more text: attn generate run"), "{shown}");
    assert!(!shown.contains("\u{1b}]0;") && !shown.contains('\u{7}') && !shown.contains('\u{9b}'), "{shown:?}");
    let shown = run("generate run --max-tokens 200");
    assert!(shown.contains('␛') && !shown.contains(['\u{1b}', '\u{7}', '\u{9b}']), "{shown:?}");
}

/// A model of bytes writes them one by one; a terminal gets whole characters.
#[test]
fn a_terminal_gets_the_characters_of_a_model_of_bytes() {
    let space = Space::new();
    space.write("text.txt", "çãoé🦀".repeat(300));
    let sizes = "--layers 1 --heads 2 --dim 32 --context 32 --batch 8";
    space.works(&format!("train text.txt --out run --tokenizer byte --preset quick {sizes} --steps 200"));
    let line = "generate run --temperature 0 --max-tokens 60 --prompt ç";
    let written = space.works(line);
    assert!(written.starts_with("çãoé🦀çãoé🦀"), "{written}");
    let (ours, theirs) = pseudoterminal();
    let child = start(space.command(line), theirs);
    let reading = read_on(ours);
    assert!(child.end().status.success());
    // A terminal ends lines in its own way.
    assert_eq!(reading.join().unwrap().replace("\r\n", "\n"), written);
}
