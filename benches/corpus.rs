//! From a text larger than memory to its ids: peak memory and speed, with characters and with a BPE.
//!
//!     cargo bench --bench corpus            # on 1 GB, made in the system's folder for temporary files: some minutes
//!     cargo bench --bench corpus -- 5       # on 5 GB
//!
//! Each side is a process of its own; its peak is the `VmHWM` of Linux, so elsewhere there are only times. The text is made
//! from a seed: words as often as Zipf's law has it, of some millions, with marks and lines between them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_attention::text::{CorpusOptions, Document, Spill, TokenizerChoice, Validation, prepare};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[path = "../src/allocator.rs"]
mod allocator;

mod support {
    pub mod contest;
    pub mod peer;
    #[allow(dead_code)]
    pub mod timing;
}
use support::{contest::Contest, peer};

/// The tokenizers that a text is prepared with.
const SIDES: [&str; 3] = ["char", "byte", "bpe:8192"];

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    if let Some(side) = peer::served_side() {
        return serve(&side);
    }
    // Without `--bench`, which `cargo bench` passes, it is run once as a test.
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let gigabytes: f64 = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(1.0);
    let bytes = if is_bench { (gigabytes * 1e9) as u64 } else { 300_000 };
    let space = tempfile::tempdir()?;
    let path = space.path().join("text.txt");
    write_text(&path, bytes)?;

    let mut contest = Contest::default();
    for side in SIDES {
        contest.enter(side, peer::this_bench(&format!("{side} {}", path.display()))?)?;
    }
    contest.ask("once", 1)?;
    contest.print_head(&format!("a text of {} MB to ids", bytes / 1_000_000));
    contest.print_row("seconds", 0);
    contest.print_row("MB/s", 1);
    contest.print_row("peak of the process, MiB", 2);
    Ok(())
}

/// Prepares the text, and answers with seconds, MB/s and the peak so far.
fn serve(side: &str) -> Result<()> {
    let (choice, path) = side.split_once(' ').context("expected a tokenizer and a path")?;
    let (choice, path): (TokenizerChoice, &Path) = (choice.parse()?, path.as_ref());
    let folder = path.parent().context("expected a path in a folder")?.to_path_buf();
    peer::serve(|_| {
        let begun = Instant::now();
        let document = Document::open(path)?;
        let megabytes = document.len() as f64 / 1e6;
        let options = CorpusOptions { context_len: 64, spill: Some(Spill { folder: folder.clone(), above: 1 << 16 }) };
        prepare(&[document], &Validation::Fraction(0.1), &choice, &options, &mut |_| {})?;
        let seconds = begun.elapsed().as_secs_f64();
        Ok(vec![seconds, megabytes / seconds, peak_mebibytes()])
    })
}

/// The peak of this process's memory; NaN where there is no way to know.
fn peak_mebibytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<f64>().ok());
    kib.map_or(f64::NAN, |kib| kib / 1024.0)
}

/// Writes a text of so many bytes, or a few more.
fn write_text(path: &Path, bytes: u64) -> Result<()> {
    /// Different words that may come.
    const WORDS: f64 = 2e7;
    let (mut rng, mut text) = (ChaCha8Rng::seed_from_u64(1), BufWriter::new(File::create(path)?));
    let mut written = 0;
    while written < bytes {
        // A rank whose logarithm is uniform is as likely as one over itself.
        let rank = WORDS.powf(rng.random::<f64>()) as u64;
        let end = match rng.random_range(0..60) {
            0 => "\n",
            1..4 => ". ",
            4..7 => ", ",
            7 => " — ",
            _ => " ",
        };
        let word = word(rank);
        text.write_all(word.as_bytes())?;
        text.write_all(end.as_bytes())?;
        written += (word.len() + end.len()) as u64;
    }
    Ok(text.flush()?)
}

/// The word of a rank: syllables by its digits, so that frequent words are short.
fn word(mut rank: u64) -> String {
    const SYLLABLES: [&str; 16] =
        ["a", "te", "ro", "mi", "es", "lan", "co", "vi", "ção", "tra", "u", "den", "pe", "nho", "si", "que"];
    let mut word = String::new();
    while rank > 0 {
        word.push_str(SYLLABLES[(rank % 16) as usize]);
        rank /= 16;
    }
    word
}
