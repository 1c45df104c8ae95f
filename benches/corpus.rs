//! From a text larger than memory to its ids: peak memory and speed, with each kind of tokenizer.
//!
//!     cargo bench -p candle-attention --features lm --bench corpus           # 1 GB, written to the system's folder
//!                                                                            # for temporary files: a few minutes
//!     cargo bench -p candle-attention --features lm --bench corpus -- 5      # 5 GB
//!
//! Each side runs in its own process. Its peak is `VmHWM`, which only Linux has; elsewhere there are only times. The
//! text is generated from a seed: words by Zipf's law from a vocabulary of 20 million, with punctuation and line
//! breaks.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_attention::text::{Document, IdsStore, TextOptions, TokenizerChoice, Validation, prepare};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[path = "../attn/src/allocator.rs"]
mod allocator;

mod support {
    pub mod contest;
    pub mod peer;
    #[allow(dead_code)]
    pub mod timing;
}
use support::{contest::Contest, peer};

/// The tokenizers to compare.
const SIDES: [&str; 4] = ["char", "byte", "bpe:8192", "bpe:32768"];

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    if let Some(side) = peer::served_side() {
        return serve(&side);
    }
    // Without `--bench`, which `cargo bench` passes, this runs once as a test.
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

/// Prepares the text, with ids in a file beside it, and answers with seconds, MB/s and the peak so far.
fn serve(side: &str) -> Result<()> {
    let (choice, path) = side.split_once(' ').context("expected a tokenizer and a path")?;
    let path: &Path = path.as_ref();
    let ids = path.with_file_name(format!("{choice}.ids"));
    let choice: TokenizerChoice = choice.parse()?;
    peer::serve(|_| {
        let begun = Instant::now();
        let document = Document::open(path)?;
        let megabytes = document.len() as f64 / 1e6;
        prepare(
            &[document],
            &Validation::Fraction(0.1),
            &choice,
            TextOptions::default(),
            IdsStore::File(&ids),
            &mut |_| {},
        )?;
        let seconds = begun.elapsed().as_secs_f64();
        std::fs::remove_file(&ids)?;
        Ok(vec![seconds, megabytes / seconds, peak_mebibytes()])
    })
}

/// The peak of this process so far.
fn peak_mebibytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    kibibytes.map_or(f64::NAN, |kibibytes: f64| kibibytes / 1024.0)
}

/// Writes a text of at least `bytes` bytes.
fn write_text(path: &Path, bytes: u64) -> Result<()> {
    /// The size of the vocabulary.
    const WORDS: f64 = 2e7;
    let (mut rng, mut text) = (ChaCha8Rng::seed_from_u64(1), BufWriter::new(File::create(path)?));
    let mut written = 0;
    while written < bytes {
        // If the logarithm of the rank is uniform, a rank's probability is inversely proportional to it.
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

/// The word of a rank: its base-16 digits as syllables, so that frequent words are short.
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
