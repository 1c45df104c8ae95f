//! How right the time is that `attn train` says before it begins.
//!
//!     cargo bench --bench forecast -- FILE
//!
//! Texts of several lengths, cut from the front of the file, with nothing but what a row names; on all cores of the machine.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// The first bytes of the text, and options.
const ROWS: &[(usize, &str)] = &[
    (2_000, ""),
    (20_000, ""),
    (50_000, ""),
    (100_000, ""),
    (400_000, ""),
    (usize::MAX, ""),
    (400_000, "--tokenizer bpe:1024"),
    (20_000, "--preset quick"),
    (usize::MAX, "--preset quick"),
    (usize::MAX, "--preset gpt2 --steps 200"),
    (usize::MAX, "--preset best --steps 100"),
];
const REHEARSAL: &[(usize, &str)] = &[(usize::MAX, "--steps 2 --dim 32 --layers 1")];

fn main() -> Result<()> {
    let text = std::env::args().skip(1).find(|arg| arg != "--bench");
    let space = tempfile::tempdir()?;
    let (text, rows) = match text {
        Some(text) => (std::fs::read(&text).context(text)?, ROWS),
        // `cargo test --benches` has no text.
        None => ("The cat that the children saw ran down the street.\n".repeat(200).into(), REHEARSAL),
    };
    println!("| bytes of text | options | said | took, s | ratio |\n|---|---|---|---|---|");
    for (bytes, options) in rows {
        let text = &text[..text.len().min(*bytes)];
        let (said, took) = train(text, options, space.path())?;
        let ratio = seconds(&said).map_or("-".to_string(), |said| format!("{:.2}", took / said));
        println!("| {} | {options} | {said} | {took:.1} | {ratio} |", text.len());
    }
    Ok(())
}

/// What a run says that it will take, and the seconds of its whole process.
fn train(text: &[u8], options: &str, space: &Path) -> Result<(String, f64)> {
    let (file, root) = (space.join("cut.txt"), tempfile::tempdir_in(space)?);
    std::fs::write(&file, text)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
    command.arg("train").args(options.split_whitespace()).arg("--out").arg(root.path().join("run")).arg(&file);
    let begun = Instant::now();
    let output = command.output()?;
    let took = begun.elapsed().as_secs_f64();
    let notes = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{notes}");
    let (_, said) = notes.split_once("time, expected: ").context("expected a time in the notes")?;
    Ok((said.split(" (").next().unwrap_or_default().to_string(), took))
}

/// The seconds in `about 1.5 min`; none in words.
fn seconds(said: &str) -> Option<f64> {
    let (number, unit) = said.strip_prefix("about ")?.split_once(' ')?;
    let unit = match unit {
        "s" => 1.0,
        "min" => 60.0,
        _ => 3600.0,
    };
    Some(number.parse::<f64>().ok()? * unit)
}
