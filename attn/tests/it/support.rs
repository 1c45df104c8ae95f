//! A folder to run the command in, and a look at what it leaves there.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The options of a run of a second.
pub const SMALL: &str = "--layers 1 --heads 2 --dim 16 --context 16 --batch 4 --steps 12 --eval-every 6";

/// A folder to run the command in, with a text in it.
pub struct Space(tempfile::TempDir);

impl Space {
    pub fn new() -> Self {
        // Not hidden, as temporary folders are by default: a run is named after the folder of its texts.
        let space = Self(tempfile::Builder::new().prefix("space-").tempdir().unwrap());
        let lines = "O gato preto correu rapidamente.\nA gata preta correu rapidamente.\n".repeat(60);
        space.write("text.txt", lines);
        space
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), content).unwrap();
    }

    pub fn remove(&self, folder: &str) {
        std::fs::remove_dir_all(self.path(folder)).unwrap();
    }

    /// The names in a folder, sorted.
    pub fn entries(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The command with the words of `line`, to be run here, with its outputs piped.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
        command.args(line.split_whitespace()).current_dir(self.0.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        heeding_signals(command)
    }

    pub fn attn(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Runs what should work; gives what it prints on standard output and on standard error.
    pub fn told(&self, line: &str) -> (String, String) {
        let output = self.attn(line);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "attn {line}: {:?}: {told}", output.status);
        (String::from_utf8(output.stdout).expect("printed what is not UTF-8"), told)
    }

    /// Runs what should work, and gives what it prints on standard output.
    pub fn works(&self, line: &str) -> String {
        self.told(line).0
    }

    /// Runs what should be refused: exit code 2, one line on standard error that has `expected` in it, and nothing
    /// else. Gives that line.
    pub fn refuses(&self, line: &str, expected: &str) -> String {
        let output = self.attn(line);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "attn {line}: {message}");
        assert!(message.contains(expected), "attn {line}: expected {expected:?} in {message:?}");
        assert_eq!(message.lines().count(), 1, "attn {line}: {message}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "attn {line}");
        message
    }

    /// The data of a page.
    pub fn page_data(&self, page: &str) -> serde_json::Value {
        let html = self.read(page);
        let (_, json) = html.split_once(r#"<script type="application/json" id="data">"#).unwrap();
        serde_json::from_str(json.split_once("</script>").unwrap().0).unwrap()
    }

    /// The settings that a run has saved.
    pub fn settings(&self, run: &str) -> toml::Table {
        self.read(&format!("{run}/training/settings.toml")).parse().unwrap()
    }

    /// The lines of a run's metrics.
    pub fn metrics(&self, run: &str) -> Vec<serde_json::Value> {
        let lines = self.read(&format!("{run}/training/metrics.jsonl"));
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The steps of a run's checkpoints, oldest first.
    pub fn checkpoints(&self, run: &str) -> Vec<u64> {
        if !self.path(run).join("training").is_dir() {
            return vec![];
        }
        let names = self.entries(&format!("{run}/training"));
        let steps = names.iter().filter_map(|name| name.strip_prefix("step-")?.strip_suffix(".safetensors"));
        steps.map(|step| step.parse().unwrap()).collect()
    }

    /// Everything in a run's folder that is the same whenever the run is made: without event files, whose names are those
    /// of the day, and without the times in metrics and checkpoints.
    pub fn result(&self, run: &str) -> BTreeMap<String, Vec<u8>> {
        let mut files = files(&self.path(run));
        files.retain(|name, _| !name.contains("tensorboard/"));
        for (name, content) in &mut files {
            if name.ends_with("metrics.jsonl") {
                *content = without_times(content);
            } else if name.contains("training/step-") {
                *content = without_state(content);
            }
        }
        files
    }

    /// [`Self::result`] with the last checkpoint alone: which ones there are before it depends on when the run was ended.
    pub fn last_result(&self, run: &str) -> BTreeMap<String, Vec<u8>> {
        let mut result = self.result(run);
        for old in self.checkpoints(run).iter().rev().skip(1) {
            result.remove(&format!("training/step-{old:08}.safetensors")).unwrap();
        }
        result
    }
}

/// The command with its signals as by default, also where the tests run under nohup or in the background of a script.
pub fn heeding_signals(mut command: Command) -> Command {
    #[cfg(unix)]
    // SAFETY: between fork and exec only calls are made that are allowed there.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
    command
}

/// A process that ends with its test, also with one that fails.
pub struct Running(pub Child);

impl Running {
    /// Waits for the end, reading what has not been taken from the process.
    pub fn end(mut self) -> Output {
        let (mut out, mut err) = (vec![], vec![]);
        let streams = (self.0.stdout.take(), self.0.stderr.take());
        std::thread::scope(|scope| {
            scope.spawn(|| streams.1.map(|mut stream| stream.read_to_end(&mut err).unwrap()));
            streams.0.map(|mut stream| stream.read_to_end(&mut out).unwrap());
        });
        Output { status: self.0.wait().unwrap(), stdout: out, stderr: err }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All files below `folder`, by their paths in it.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        match path.is_dir() {
            true => all.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes))),
            false => drop(all.insert(name.to_string(), std::fs::read(&path).unwrap())),
        }
    }
    all
}

fn without_times(metrics: &[u8]) -> Vec<u8> {
    let mut lines = String::new();
    for line in metrics.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let mut line: serde_json::Value = serde_json::from_slice(line).unwrap();
        line.as_object_mut().unwrap().remove("seconds").unwrap();
        lines += &format!("{line}\n");
    }
    lines.into()
}

/// A checkpoint without what its state says of time (the seconds, and the length of the metrics, which counts the digits of
/// theirs) and of the audit, which begins anew with each session. The checksum goes with them.
fn without_state(checkpoint: &[u8]) -> Vec<u8> {
    let (len, metadata) = safetensors::SafeTensors::read_metadata(checkpoint).unwrap();
    let mut state: serde_json::Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["state"]).unwrap();
    for other in ["seconds", "metrics_bytes", "audit"] {
        state.as_object_mut().unwrap().remove(other).unwrap();
    }
    let mut tensors: Vec<_> = metadata.tensors().into_iter().map(|(name, info)| format!("{name}: {info:?}")).collect();
    tensors.sort();
    [format!("{state} {tensors:?}").as_bytes(), &checkpoint[8 + len..]].concat()
}

/// Fails where two results differ, by the name of the file.
pub fn assert_same(label: &str, got: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    assert!(got.keys().eq(expected.keys()), "{label}: {:?}, expected {:?}", got.keys(), expected.keys());
    for (name, content) in got {
        assert!(content == &expected[name], "{label}: {name} differs");
    }
}
