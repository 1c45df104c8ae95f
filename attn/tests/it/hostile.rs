//! Odd values for every option of the command, and in its files: it exits with 0, 1 or 2, and never panics or hangs.
//!
//! The cases are the same every time; with `HOSTILE_CASES=N` there are N times as many.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::support::files;

/// The library's own tests break files in the same ways.
#[allow(dead_code, reason = "not all of them")]
#[path = "../../../tests/it/hostile/mutate.rs"]
mod mutate;

/// The factor for the number of cases.
fn times() -> usize {
    std::env::var("HOSTILE_CASES").map_or(1, |times| times.parse().unwrap())
}

/// All ordered cases, and 60 random edits of `good`.
fn cases(ordered: Vec<Vec<u8>>, good: &[u8], seed: u64) -> Vec<Vec<u8>> {
    let random = mutate::broken(good, seed, 60 * times());
    ordered.into_iter().chain(random).collect()
}

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

/// A folder with a text and a run of two steps.
struct Space {
    space: crate::support::Space,
}

/// Sizes with which no run is long.
const SMALL: [&str; 6] = ["--layers=1", "--dim=4", "--heads=2", "--context=5", "--steps=2", "--batch=2"];

impl Space {
    fn new() -> Self {
        let space = crate::support::Space::new();
        space.write("text.txt", "ab ba abc cab. ".repeat(40));
        space.works(&format!("train text.txt --out victim {}", SMALL.join(" ")));
        Self { space }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.space.path(name)
    }

    /// Runs the command for at most half a minute.
    fn attn<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        const SECONDS: u64 = 30;
        let mut child = self.space.command("").args(arguments).spawn().unwrap();
        let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let read = |from: &mut dyn std::io::Read| {
            let mut bytes = vec![];
            from.read_to_end(&mut bytes).unwrap();
            bytes
        };
        let started = Instant::now();
        std::thread::scope(|scope| {
            let stdout = scope.spawn(|| read(&mut out));
            let stderr = scope.spawn(|| read(&mut err));
            let status = loop {
                match child.try_wait().unwrap() {
                    Some(status) => break status,
                    None if started.elapsed() > Duration::from_secs(SECONDS) => child.kill().unwrap(),
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
        let (name, rest) = line.strip_prefix("      --")?.split_once(' ')?;
        rest.starts_with('<').then(|| format!("--{name}"))
    };
    let all: Vec<String> = help.lines().filter_map(flag).collect();
    assert!(!all.is_empty(), "{help}");
    for optional in ["--tokenizer", "--momentum", "--steps"] {
        assert!(subcommand != "train" || all.iter().any(|name| name == optional), "{optional}: {all:?}");
    }
    all
}

#[test]
fn every_option_endures_every_value() {
    let space = Space::new();
    for base in [train(), generate(), vec!["eval", "victim", "text.txt"]] {
        for option in options(&space, base[0]) {
            for value in VALUES {
                // That many tokens, or texts, would really be written.
                if ["--max-tokens", "--samples"].contains(&option.as_str()) && value.len() > 4 {
                    continue;
                }
                space.endures(&with(&base, &option, value));
            }
        }
    }
    assert_eq!(space.space.entries("."), ["text.txt", "victim"]);
}

/// A run that saves nothing.
fn train() -> Vec<&'static str> {
    [&["train", "text.txt", "--overfit-one-batch"][..], &SMALL].concat()
}

fn generate() -> Vec<&'static str> {
    vec!["generate", "victim", "--max-tokens=2"]
}

/// The command line with this option in place of any other value of it.
fn with(base: &[&str], option: &str, value: &str) -> Vec<String> {
    let is_other = |given: &&&str| !given.starts_with(&format!("{option}="));
    let others = base.iter().filter(is_other).map(|given| match *given {
        // So many steps would really be made; a dry run makes those of a second.
        "--overfit-one-batch" if option == "--steps" => "--dry-run".to_string(),
        given => given.to_string(),
    });
    others.chain([format!("{option}={value}")]).collect()
}

/// Options whose number may be 0, and those of them that take whole numbers only.
const MAY_BE_ZERO: [&str; 22] = [
    "--warmup",
    "--decay",
    "--patience",
    "--statistics-every",
    "--seed",
    "--validation-fraction",
    "--dropout",
    "--min-lr",
    "--beta1",
    "--beta2",
    "--weight-decay",
    "--clip",
    "--save-every",
    "--label-smoothing",
    "--average",
    "--momentum",
    "--matrix-weight-decay",
    "--temperature",
    "--min-p",
    "--top-k",
    "--max-tokens",
    "--lora",
];
const WHOLE: [&str; 6] = ["--lora", "--patience", "--statistics-every", "--seed", "--top-k", "--max-tokens"];

#[test]
fn useless_numbers_are_refused() {
    let space = Space::new();
    for base in [train(), generate()] {
        // For these any number is a path or a text.
        let is_number =
            |option: &String| !["--out", "--prompt", "--prompt-file", "--stop", "--watch"].contains(&option.as_str());
        for option in options(&space, base[0]).into_iter().filter(is_number) {
            for value in ["1e300", "-1", "nan", "inf", "0", "1e-400"] {
                let line = with(&base, &option, value);
                let is_zero = value == "0" || value == "1e-400" && !WHOLE.contains(&option.as_str());
                let is_fine = is_zero && MAY_BE_ZERO.contains(&option.as_str())
                    || ["--temperature", "--repetition-penalty", "--rope-theta"].contains(&option.as_str())
                        && value == "1e300";
                // Two steps do not learn a batch by heart.
                let code = if is_fine { i32::from(base[0] == "train") } else { 2 };
                assert_eq!(space.endures(&line), code, "{line:?}");
            }
        }
    }
}

/// `--resume` reads the settings of a run, which a stranger may have written.
#[test]
fn settings_of_a_stranger_lead_nowhere() {
    let space = Space::new();
    let (run, kept) = (space.path("run"), space.path("victim"));
    let good = std::fs::read_to_string(kept.join("training/settings.toml")).unwrap();
    let all = cases(structured_toml(&good), good.as_bytes(), 12);
    let step = (all.len() / (40 * times())).max(1);
    let mut settings: Vec<(Vec<u8>, bool)> = all.into_iter().step_by(step).map(|mutant| (mutant, true)).collect();
    // If the ids are missing, the texts are not read in their place.
    let texts = good.lines().find(|line| line.starts_with("texts")).unwrap();
    for place in ["/dev/zero", "/etc/passwd", "/", "../text.txt"] {
        settings.push((good.replace(texts, &format!("texts = [{place:?}]")).into_bytes(), false));
    }
    // Each session has an event file of its own, also one that ends at once.
    let contents = || {
        let mut files = files(&run);
        files.retain(|name, _| !name.starts_with("training/tensorboard/"));
        files
    };
    for (mutant, has_ids) in settings {
        let copied = Command::new("cp").args(["-r", "victim", "run"]).current_dir(space.path(".")).status().unwrap();
        assert!(copied.success());
        std::fs::write(run.join("training/settings.toml"), &mutant).unwrap();
        if !has_ids {
            std::fs::remove_file(run.join("training/ids.safetensors")).unwrap();
        }
        let before = contents();
        let code = space.endures(&["train", "--resume", "--out", "run", "--steps", "3"]);
        assert!(has_ids || code == 2, "{}", String::from_utf8_lossy(&mutant));
        if code == 2 {
            assert!(contents() == before, "changed by {}", String::from_utf8_lossy(&mutant));
        }
        assert_eq!(space.space.entries("."), ["run", "text.txt", "victim"]);
        std::fs::remove_dir_all(&run).unwrap();
    }
}

#[test]
fn bad_places_are_refused() {
    let space = Space::new();
    std::fs::create_dir(space.path("folder")).unwrap();
    std::fs::write(space.path("a b\nc\u{1b}[2J.txt"), "ab ba abc cab. ".repeat(40)).unwrap();
    #[cfg(unix)]
    assert!(Command::new("mkfifo").arg(space.path("pipe")).status().unwrap().success());
    let mut places = vec!["missing", "folder", "missing\n\u{1b}[2J"];
    if cfg!(unix) {
        places.extend(["/dev/null", "/dev/zero", "pipe"]);
    }
    let refused = |line: &[&str]| assert_eq!(space.endures(line), 2, "{line:?}");
    for place in places {
        refused(&["generate", place]);
        refused(&["eval", place, "text.txt"]);
        refused(&["train", "--resume", "--out", place]);
        for option in ["--init", "--config", "--tokenizer"] {
            refused(&["train", "--dry-run", "text.txt", option, place]);
        }
    }
    refused(&["train", "text.txt", "--out", "text.txt/run"]);
    refused(&["generate", "victim", "--prompt", "a\u{1b}[2J"]);
    // An odd name is allowed.
    assert_eq!(space.endures(&["eval", "victim", "a b\nc\u{1b}[2J.txt"]), 0);
}

#[cfg(unix)]
#[test]
fn names_that_are_not_utf8_are_allowed() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let space = Space::new();
    let name = OsString::from_vec(b"t\xff.txt".to_vec());
    std::fs::copy(space.path("text.txt"), space.path(".").join(&name)).unwrap();
    assert_eq!(space.endures(&["eval".into(), "victim".into(), name.clone()]), 0);
    // The run's settings are text, so this must be refused before training.
    let small = SMALL.map(OsString::from);
    assert_eq!(space.endures(&[&["train".into(), name][..], &small].concat()), 2);
    assert!(!space.path("runs").exists());
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
    // Fewer, as each is a process.
    let step = (all.len() / (60 * times())).max(1);
    // The file may ask for any number of steps.
    let line = ["train", "--overfit-one-batch", "--config", "options.toml", "--steps", "2"];
    for mutant in all.into_iter().step_by(step) {
        space.space.write("options.toml", &mutant);
        space.endures(&line);
    }
    space.space.write("options.toml", good);
    // Two steps do not learn a batch by heart.
    assert_eq!(space.endures(&line), 1);
}
