//! Generates the built-in corpus from its grammar and a fixed seed, and prints its statistics.
//!
//! `make_corpus FOLDER` writes `train.txt` and `validation.txt` to the folder; `make_corpus FOLDER --check` compares
//! instead and fails at the first line that differs. Both print the figures in the folder's README.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

mod grammar;
mod lexicon;
mod reading;
mod statistics;

use lexicon::ENDINGS;
use statistics::{Accuracy, MODELS};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (folders, options): (Vec<&String>, Vec<&String>) = arguments.iter().partition(|word| !word.starts_with("--"));
    let check = options == ["--check"];
    let ([folder], true) = (folders.as_slice(), check || options.is_empty()) else {
        return Err("usage: make_corpus FOLDER [--check]".into());
    };
    let corpus = grammar::corpus();
    for (name, text) in [("train.txt", &corpus.train), ("validation.txt", &corpus.validation)] {
        let path = PathBuf::from(folder).join(name);
        if check { compare(&path, text)? } else { replace(&path, text)? }
    }
    report(&corpus.train, &corpus.validation);
    Ok(())
}

fn replace(path: &Path, text: &str) -> Result<()> {
    let sibling = path.with_extension("txt.tmp");
    fs::write(&sibling, text).map_err(|error| format!("cannot write {}: {error}", sibling.display()))?;
    Ok(fs::rename(&sibling, path).map_err(|error| format!("cannot replace {}: {error}", path.display()))?)
}

fn compare(path: &Path, expected: &str) -> Result<()> {
    let bytes = fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    if bytes == expected.as_bytes() {
        return Ok(());
    }
    let (mut found, mut made) = (bytes.split_inclusive(|&byte| byte == b'\n'), expected.split_inclusive('\n'));
    let mut number = 1;
    loop {
        let (found, made) = (found.next(), made.next());
        if found != made.map(str::as_bytes) {
            let found = found.map(String::from_utf8_lossy);
            let place = format!("{} differs from the grammar at line {number}", path.display());
            return Err(format!("{place}: expected {made:?}, got {found:?}").into());
        }
        number += 1;
    }
}

fn report(train: &str, validation: &str) {
    let reader = reading::Reader::new();
    let (trained, held) = (statistics::agreements(&reader, train), statistics::agreements(&reader, validation));
    for (name, text, found) in [("train", train, &trained), ("validation", validation, &held)] {
        let characters: BTreeSet<char> = text.chars().collect();
        let (lines, bytes, pairs) = (text.lines().count(), text.len(), statistics::pairs(found).len());
        println!("{name}: {lines} sentences, {bytes} bytes, {} different characters, {pairs} pairs", characters.len());
        let faults = text.lines().filter(|line| reader.fault(line).is_some()).count();
        let adjacent = found.iter().filter(|found| found.adjacent).count();
        println!("    {faults} with a fault of agreement, {adjacent} with the adjective next to its noun");
    }
    let (trained_pairs, held_pairs) = (statistics::pairs(&trained), statistics::pairs(&held));
    println!("pairs of validation that training shows: {}", held_pairs.intersection(&trained_pairs).count());
    println!("\nagreement guessed in validation     all     -{}", ENDINGS.join("      -"));
    print_accuracy("character bigram", &statistics::character_bigram(train, &held));
    for (name, key) in MODELS {
        print_accuracy(name, &statistics::counted(&trained, &held, key));
    }
}

fn print_accuracy(name: &str, accuracy: &Accuracy) {
    let by_form = accuracy.by_form.map(|share| format!("{:6.1}%", 100.0 * share)).join(" ");
    println!("{name:32} {:5.1}% {by_form}", 100.0 * accuracy.overall);
}
