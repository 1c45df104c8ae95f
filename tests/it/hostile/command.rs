//! Odd values for every option of the command: it exits with 0, 1 or 2, and never panics or hangs.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::*;

const VALUES: [&str; 24] = [
    "",
    " ",
    "-1",
    "-0",
    "0",
    "1",
    "2",
    "0.5",
    "1e300",
    "-1e300",
    "1e-320",
    "nan",
    "inf",
    "-inf",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "true",
    "1,5",
    "\u{1b}[2J",
    "a\nb",
    "🦀",
    "/dev/zero",
];

struct Space {
    dir: tempfile::TempDir,
    victim: Victim,
}

impl Space {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("text.txt"), "ab ba abc cab. ".repeat(40)).unwrap();
        Self { dir, victim: Victim::new(&TokenizerChoice::Characters) }
    }

    /// Runs the command for at most ten seconds.
    fn attn<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let read = |from: &mut dyn std::io::Read| {
            let mut bytes = vec![];
            from.read_to_end(&mut bytes).unwrap();
            bytes
        };
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let stdout = scope.spawn(|| read(&mut out));
            let stderr = scope.spawn(|| read(&mut err));
            let status = loop {
                match child.try_wait().unwrap() {
                    Some(status) => break status,
                    None if begun.elapsed() > Duration::from_secs(10) => child.kill().unwrap(),
                    None => std::thread::sleep(Duration::from_millis(2)),
                }
            };
            Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
        })
    }

    /// Fails unless the command ends by itself, successfully or with a readable error; returns the exit code.
    fn endures<S: AsRef<OsStr>>(&self, arguments: &[S]) -> i32 {
        let output = self.attn(arguments);
        let said: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
        let message = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        assert!(matches!(code, Some(0..=2)), "attn {said:?}: {:?}: {message}", output.status);
        assert!(!message.contains("panicked") && !message.contains("stack backtrace"), "attn {said:?}: {message}");
        assert!(!message.contains(|c: char| c.is_control() && c != '\n'), "attn {said:?}: {message:?}");
        if code != Some(0) && message.starts_with("attn: ") {
            assert_eq!(message.lines().count(), 1, "attn {said:?}: {message}");
        }
        code.unwrap()
    }
}

/// The options of a subcommand that take a value, from its help.
fn options(space: &Space, subcommand: &str) -> Vec<String> {
    let help = String::from_utf8(space.attn(&[subcommand, "--help"]).stdout).unwrap();
    let flag = |line: &str| {
        let option = line.split(", ").last()?.trim().strip_prefix("--")?;
        let (name, value) = option.split_once([' ', '['])?;
        ["<", "=<"].iter().any(|start| value.starts_with(start)).then(|| format!("--{name}"))
    };
    let all: Vec<String> = help.lines().filter_map(flag).collect();
    assert!(!all.is_empty(), "{help}");
    for optional in ["--isolate-documents", "--cautious-updates", "--steps"] {
        assert!(subcommand != "train" || all.iter().any(|name| name == optional), "{optional}: {all:?}");
    }
    all
}

#[test]
fn every_option_endures_every_value() {
    let space = Space::new();
    let root = space.victim.root.display().to_string();
    // All other values are small, so that no run is long.
    let train = [
        "train",
        "text.txt",
        "--dry-run",
        "--layers=1",
        "--dim=4",
        "--heads=2",
        "--context=5",
        "--steps=2",
        "--batch=2",
    ];
    let generate = ["generate", root.as_str(), "--max-tokens=2"];
    let eval = ["eval", root.as_str(), "text.txt"];
    for base in [&train[..], &generate, &eval] {
        for option in options(&space, base[0]) {
            for value in VALUES {
                // That many tokens, or texts, would really be written.
                if ["--max-tokens", "--samples"].contains(&option.as_str()) && value.len() > 4 {
                    continue;
                }
                let mut line: Vec<&str> = base.to_vec();
                line.retain(|given| !given.starts_with(&format!("{option}=")));
                let with_value = format!("{option}={value}");
                line.push(&with_value);
                space.endures(&line);
            }
        }
    }
}

/// Options whose number may be 0, and those of them that take whole numbers only.
const MAY_BE_ZERO: [&str; 21] = [
    "--warmup",
    "--patience",
    "--skip-bad-steps",
    "--statistics-every",
    "--seed",
    "--momentum-warmup",
    "--validation-fraction",
    "--dropout",
    "--min-lr",
    "--beta1",
    "--beta2",
    "--weight-decay",
    "--clip",
    "--save-every",
    "--label-smoothing",
    "--z-loss",
    "--ema",
    "--momentum",
    "--matrix-weight-decay",
    "--temperature",
    "--max-tokens",
];
const WHOLE: [&str; 7] =
    ["--warmup", "--patience", "--skip-bad-steps", "--statistics-every", "--seed", "--momentum-warmup", "--max-tokens"];

#[test]
fn useless_numbers_are_refused() {
    let space = Space::new();
    let root = space.victim.root.display().to_string();
    let train = ["train", "text.txt", "--dry-run", "--layers=1", "--dim=4", "--heads=2", "--context=5", "--steps=2"];
    let generate = ["generate", root.as_str()];
    for base in [&train[..], &generate] {
        // For these any number is a path or a text.
        let is_number = |option: &String| !["--out", "--prompt", "--stop"].contains(&option.as_str());
        for option in options(&space, base[0]).into_iter().filter(is_number) {
            for value in ["1e300", "-1", "nan", "inf", "0", "1e-400"] {
                let line: Vec<String> = base.iter().map(|part| part.to_string()).collect();
                let mut line: Vec<String> =
                    line.into_iter().filter(|given| !given.starts_with(&format!("{option}="))).collect();
                line.push(format!("{option}={value}"));
                let is_zero = value == "0" || value == "1e-400" && !WHOLE.contains(&option.as_str());
                let is_fine = is_zero && MAY_BE_ZERO.contains(&option.as_str())
                    || ["--temperature", "--repetition-penalty", "--rope-theta"].contains(&option.as_str())
                        && value == "1e300";
                assert_eq!(space.endures(&line), if is_fine { 0 } else { 2 }, "{line:?}");
            }
        }
    }
}

/// `--resume` reads the settings of a run, which a stranger may have written.
#[test]
fn settings_of_a_stranger_lead_nowhere() {
    let space = Space::new();
    let small = ["--layers=1", "--dim=4", "--heads=2", "--context=5", "--steps=2", "--batch=2", "--shards=1"];
    let start: Vec<&str> = ["train", "text.txt", "--out", "run"].into_iter().chain(small).collect();
    assert_eq!(space.endures(&start), 0);
    let (run, kept) = (space.dir.path().join("run"), space.dir.path().join("kept"));
    std::fs::rename(&run, &kept).unwrap();
    let good = std::fs::read_to_string(kept.join("training/settings.toml")).unwrap();
    let all = cases(structured_toml(&good), good.as_bytes(), 12);
    let step = (all.len() / (40 * times())).max(1);
    let mut settings: Vec<(Vec<u8>, bool)> = all.into_iter().step_by(step).map(|mutant| (mutant, true)).collect();
    // If the ids are missing, the texts have to be read again.
    let texts = good.lines().find(|line| line.starts_with("texts")).unwrap();
    for place in ["/dev/zero", "/etc/passwd", "/", "../text.txt"] {
        settings.push((good.replace(texts, &format!("texts = [{place:?}]")).into_bytes(), false));
    }
    for (mutant, has_ids) in settings {
        let copied = Command::new("cp").args(["-r", "kept", "run"]).current_dir(space.dir.path()).status().unwrap();
        assert!(copied.success());
        std::fs::write(run.join("training/settings.toml"), &mutant).unwrap();
        if !has_ids {
            std::fs::remove_file(run.join("training/ids.safetensors")).unwrap();
        }
        let before = contents(&run);
        let code = space.endures(&["train", "--resume", "--out", "run", "--steps", "3"]);
        assert!(has_ids || code == 2, "{}", String::from_utf8_lossy(&mutant));
        if code == 2 {
            assert!(contents(&run) == before, "changed by {}", String::from_utf8_lossy(&mutant));
        }
        assert_eq!(std::fs::read_dir(space.dir.path()).unwrap().count(), 3);
        std::fs::remove_dir_all(&run).unwrap();
    }
}

#[test]
fn bad_places_are_refused() {
    let space = Space::new();
    let here = space.dir.path();
    let root = space.victim.root.clone();
    std::fs::create_dir(here.join("folder")).unwrap();
    std::fs::write(here.join("a b\nc\u{1b}[2J.txt"), "ab ba abc cab. ".repeat(40)).unwrap();
    #[cfg(unix)]
    assert!(Command::new("mkfifo").arg(here.join("pipe")).status().unwrap().success());
    let os = |text: &str| OsString::from(text);
    let refused = |arguments: &[OsString]| assert_eq!(space.endures(arguments), 2, "{arguments:?}");
    let mut places = vec![os("missing"), os("folder"), os("missing\n\u{1b}[2J")];
    if cfg!(unix) {
        places.extend([os("/dev/null"), os("/dev/zero"), os("pipe")]);
    }
    for place in &places {
        for line in [
            &["generate"][..],
            &["eval"],
            &["train", "--dry-run", "text.txt", "--init"],
            &["train", "--resume", "--out"],
        ] {
            let mut line: Vec<OsString> = line.iter().map(|part| os(part)).collect();
            line.push(place.clone());
            if line[0] == "eval" {
                line.push(os("text.txt"));
            }
            refused(&line);
        }
        refused(&[os("train"), os("--dry-run"), os("text.txt"), os("--config"), place.clone()]);
        refused(&[os("train"), os("--dry-run"), os("text.txt"), os("--tokenizer"), place.clone()]);
    }
    refused(&[os("train"), os("text.txt"), os("--out"), os("folder")]);
    refused(&[os("train"), os("text.txt"), os("--out"), os("text.txt/run")]);
    refused(&[os("generate"), root.clone().into(), os("--prompt"), os("a\u{1b}[2J")]);
    // An odd name is allowed.
    let odd = [os("eval"), root.into(), os("a b\nc\u{1b}[2J.txt")];
    assert_eq!(space.endures(&odd), 0);
}

#[cfg(unix)]
#[test]
fn names_that_are_not_utf8_are_allowed() {
    use std::os::unix::ffi::OsStringExt;
    let space = Space::new();
    let name = OsString::from_vec(b"t\xff.txt".to_vec());
    std::fs::copy(space.dir.path().join("text.txt"), space.dir.path().join(&name)).unwrap();
    assert_eq!(space.endures(&[OsString::from("eval"), space.victim.root.clone().into(), name.clone()]), 0);
    let small = ["--layers=1", "--dim=4", "--heads=2", "--context=5", "--steps=2", "--batch=2"].map(OsString::from);
    let line = [vec![OsString::from("train"), name], small.into()].concat();
    // The run's settings are text, so this must be refused before training.
    assert_eq!(space.endures(&line), 2);
    assert!(!Path::new(&space.dir.path().join("runs")).exists());
}

/// A TOML file with each odd value in each line `key = value`, and with each line removed and doubled.
fn structured_toml(good: &str) -> Vec<Vec<u8>> {
    let mut all = vec![];
    let lines: Vec<&str> = good.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        let with = |new: &str| [&lines[..i], &[new], &lines[i + 1..]].concat().join("\n");
        all.extend([with(""), with(&format!("{line}\n{line}"))]);
        if let Some((key, _)) = line.split_once(" = ") {
            all.extend(mutate::values().iter().map(|value| with(&format!("{key} = {value}"))));
        }
    }
    all.into_iter().map(String::into_bytes).collect()
}

#[test]
fn a_file_of_options_endures_everything() {
    let space = Space::new();
    let good = "texts = [\"text.txt\"]\nlayers = 1\ndim = 4\nheads = 2\nhidden = 3\ncontext = 5\nsteps = 2\nbatch = 2\nlr = 0.001\n\
                tokenizer = \"char\"\nbias = false\nseed = 1\nvalidation-fraction = 0.1\n";
    let all = cases(structured_toml(good), good.as_bytes(), 11);
    let path = space.dir.path().join("options.toml");
    // Fewer, as each is a process.
    let step = (all.len() / (60 * times())).max(1);
    for mutant in all.into_iter().step_by(step) {
        std::fs::write(&path, &mutant).unwrap();
        space.endures(&["train", "--dry-run", "--config", "options.toml"]);
    }
    std::fs::write(&path, good).unwrap();
    assert_eq!(space.endures(&["train", "--dry-run", "--config", "options.toml"]), 0);
}
