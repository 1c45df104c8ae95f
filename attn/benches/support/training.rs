//! Runs of `attn train`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::timing::ms;

/// Threads of each side.
pub const THREADS: &str = "2";

/// The validation loss that nanoGPT promises for its CPU recipe on Tiny Shakespeare.
#[allow(dead_code, reason = "the bench watch has no goal")]
pub const GOAL: f64 = 1.88;

/// The result of one run: its validation loss, its seconds, and where these went.
pub struct Training {
    pub loss: f64,
    #[allow(dead_code, reason = "the bench recipe compares steps only")]
    pub seconds: f64,
    /// Start-up (for `attn` with the closing sample), steps, validation and, for `attn`, checkpoints.
    pub parts: Vec<f64>,
}

/// `attn train` with a preset, or with `auto` without one.
pub fn command(preset: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
    command.args(["train", "--threads", THREADS, "--shards", THREADS]);
    if preset != "auto" {
        command.args(["--preset", preset]);
    }
    command
}

/// One run, with further options.
pub fn train(text: &Path, preset: &str, seed: usize, more: &[impl AsRef<str>]) -> Result<Training> {
    let space = tempfile::tempdir()?;
    let root = space.path().join("run");
    let mut command = command(preset);
    command.args(more.iter().map(AsRef::as_ref));
    command.arg("--seed").arg(seed.to_string()).arg("--out").arg(&root).arg(text);
    let (seconds, output) = timed(&mut command)?;
    // `8.61 s since the start: 7.20 s for steps, 0.95 for validation, 0.15 for checkpoints`
    let (before, parts) = output.split_once(" s since the start: ").context("expected the time and its parts")?;
    let number = |text: &str| -> Result<f64> { Ok(text.parse()?) };
    let whole = number(before.rsplit('\n').next().unwrap_or_default())?;
    let parts = parts.lines().next().unwrap_or_default().split(", ");
    let parts = parts.map(|part| number(part.split(' ').next().unwrap_or_default())).collect::<Result<Vec<f64>>>()?;
    let the_rest = whole - parts.iter().sum::<f64>();
    let metrics = std::fs::read_to_string(root.join("training/metrics.jsonl"))?;
    let last = metrics.lines().last().context("expected metrics")?;
    let last: serde_json::Value = serde_json::from_str(last)?;
    let loss = last["validation_loss"].as_f64().context("expected a validation at the end")?;
    Ok(Training { loss, seconds, parts: [&[the_rest][..], &parts].concat() })
}

/// The seconds that a process takes, and its output.
pub fn timed(command: &mut Command) -> Result<(f64, String)> {
    let mut output = None;
    let milliseconds = ms(|| command.output().map(|all| output = Some(all)))?;
    let output = output.context("expected the process's output")?;
    if !output.status.success() {
        bail!("{}: {}", command.get_program().display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok((milliseconds / 1e3, String::from_utf8(output.stdout)?))
}

/// A short text for a test run, for which no file is given.
pub fn rehearsal(folder: &Path) -> Result<PathBuf> {
    let text = folder.join("text.txt");
    std::fs::write(&text, "The cat that the children saw yesterday ran down the old street.\n".repeat(200))?;
    Ok(text)
}
