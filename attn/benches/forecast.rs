//! How accurate the time is that `attn train --dry-run` measures or, with `--minutes`, that a run is given.
//!
//!     cargo bench --bench forecast -- FILE [long]
//!
//! Texts of several lengths, cut from the start of the file, with the options of the row and the automatic choice for
//! all others, on all cores of the machine. Each row is run three times. `long` adds rows of 2 to 20 minutes a run.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

#[path = "../../benches/support/args.rs"]
mod args;
#[path = "../../benches/support/timing.rs"]
mod timing;
use timing::{median, ms};

/// Bytes of text, and options.
type Row = (usize, &'static str);

const ROWS: &[Row] = &[
    (2_000, "--minutes 0.1"),
    (50_000, "--minutes 0.1"),
    (usize::MAX, "--minutes 0.1"),
    (400_000, "--minutes 0.3"),
    (usize::MAX, ""),
    (usize::MAX, "--dim 192 --minutes 0.5"),
    (400_000, "--steps 500"),
    (400_000, "--tokenizer bpe:1024 --steps 500"),
    (20_000, "--preset quick"),
    (usize::MAX, "--preset quick"),
    (usize::MAX, "--preset gpt2 --steps 200"),
    (usize::MAX, "--preset best --steps 100"),
];
const LONG_ROWS: &[Row] = &[
    (usize::MAX, "--minutes 5"),
    (usize::MAX, "--steps 6000"),
    (usize::MAX, "--preset best --steps 400"),
    (usize::MAX, "--preset best"),
];
const RUNS: usize = 3;

fn main() -> Result<()> {
    let (_, args) = args::read();
    let space = tempfile::tempdir()?;
    let (text, rows) = match args.split_first() {
        Some((text, more)) => {
            let long_rows = if more.iter().any(|arg| arg == "long") { LONG_ROWS } else { &[] };
            (std::fs::read(text).context(text.clone())?, [ROWS, long_rows].concat())
        }
        // As a test.
        None => {
            let text = "The cat that the children saw ran down the street.\n".repeat(200);
            (text.into_bytes(), vec![(usize::MAX, "--steps 300 --dim 32 --layers 1"), (usize::MAX, "--minutes 0.1")])
        }
    };
    println!("| bytes of text | options | expected, s | took, s | took / expected | lowest, highest |");
    println!("|{}", "---|".repeat(6));
    for (bytes, options) in rows {
        let text = &text[..text.len().min(bytes)];
        let runs = (0..RUNS).map(|_| train(text, options, space.path())).collect::<Result<Vec<_>>>()?;
        let ratios: Vec<f64> = runs.iter().map(|(expected, took)| took / expected).collect();
        let (lowest, highest) =
            ratios.iter().fold((f64::INFINITY, 0f64), |(low, high), &ratio| (low.min(ratio), high.max(ratio)));
        let (expected, took) = runs.into_iter().unzip();
        let (expected, took) = (median(expected), median(took));
        let ratio = median(ratios);
        println!("| {} | {options} | {expected:.2} | {took:.2} | {ratio:.2} | {lowest:.2}, {highest:.2} |", text.len());
    }
    Ok(())
}

/// The seconds that a dry run expects, and those of the whole process of a run.
fn train(text: &[u8], options: &str, space: &Path) -> Result<(f64, f64)> {
    let (file, root) = (space.join("cut.txt"), tempfile::tempdir_in(space)?);
    std::fs::write(&file, text)?;
    let attn = |more: &[&OsStr]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
        let output = command.arg("train").args(options.split_whitespace()).arg(&file).args(more).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let plan = attn(&["--dry-run".as_ref()])?;
    let (_, expected) = plan.split_once("time: about ").context("expected a time in the plan")?;
    let took = ms(|| attn(&["--out".as_ref(), root.path().join("run").as_os_str()]))?;
    Ok((seconds(expected).context("expected a number and a unit of time")?, took / 1e3))
}

/// The seconds in a text that starts with a time, such as `2 min (26.0 ms per step)` or `2 min, 4,000 steps`.
fn seconds(text: &str) -> Option<f64> {
    let (number, rest) = text.split_once(' ')?;
    let unit = match rest.split([' ', ',']).next()? {
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * unit)
}
