//! What a search has found: a line for each run, in a file that is committed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::point::Score;
use crate::recipes::shown;
use crate::{processor, timing};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/search.jsonl");

/// One run.
#[derive(Clone, Serialize, Deserialize)]
pub struct Line {
    pub text: String,
    pub seconds: u64,
    /// The version of the rules that have chosen the recipe, if it is the automatic choice.
    pub rules: Option<u32>,
    pub seed: u64,
    pub recipe: Table,
    pub score: Score,
    /// The processor that it ran on.
    pub processor: String,
}

/// All runs so far, and the processor that makes more.
pub struct Results {
    pub processor: String,
    lines: Mutex<Vec<Line>>,
}

impl Results {
    pub fn read() -> Result<Self> {
        let text = if Path::new(PATH).exists() { fs::read_to_string(PATH)? } else { String::new() };
        let lines = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(Self { processor: processor::name(), lines: Mutex::new(lines) })
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest of this processor that is wanted.
    pub fn found(&self, is_wanted: impl Fn(&Line) -> bool) -> Option<Line> {
        let is_wanted = |line: &&Line| line.processor == self.processor && is_wanted(line);
        self.lines().iter().rev().find(is_wanted).cloned()
    }

    /// The recipes of a round of so many points that another processor has run and this one has not, the best first.
    pub fn found_elsewhere(&self, text: &str, seconds: u64, seed: u64, points: usize) -> Vec<Table> {
        let lines = self.lines();
        let of_round = |line: &&Line| (&*line.text, line.seconds, line.seed) == (text, seconds, seed);
        let round = || lines.iter().filter(of_round);
        let points_of_round = round().filter(|line| line.rules.is_none());
        let found = ranked(points_of_round.map(|line| (line.score.validation, line.recipe.clone())));
        // A round that was stopped is not one.
        let is_here = round().any(|line| line.processor == self.processor);
        if is_here || found.len() < points { vec![] } else { found }
    }

    /// Appends a run.
    pub fn add(&self, line: Line) -> Result<()> {
        println!("{} {} s {}: {:.4}", line.text, line.seconds, shown(&line.recipe), line.score.test);
        let mut lines = self.lines();
        let mut file = fs::OpenOptions::new().create(true).append(true).open(PATH)?;
        writeln!(file, "{}", serde_json::to_string(&line)?)?;
        lines.push(line);
        Ok(())
    }

    /// The automatic choice beside the best of the search, for each text and time.
    pub fn print_table(&self) {
        println!(
            "| text | seconds | processor | automatic | bits per byte | best of the search | bits per byte | regret, % |"
        );
        println!("|{}", "---|".repeat(8));
        let lines = self.lines();
        let mut keys: Vec<_> = lines.iter().map(|line| (&*line.text, line.seconds, &*line.processor)).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut regrets: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for key @ (text, seconds, processor) in keys {
            let here = || lines.iter().filter(|line| (&*line.text, line.seconds, &*line.processor) == key);
            let automatic = here().rfind(|line| line.rules.is_some());
            let best = here().filter(|line| line.rules.is_none());
            let best = best.min_by(|a, b| a.score.validation.total_cmp(&b.score.validation));
            let (Some(automatic), Some(best)) = (automatic, best) else { continue };
            let regret = 100.0 * (automatic.score.test / best.score.test - 1.0);
            println!(
                "| {text} | {seconds} | {processor} | {} | {:.4} | {} | {:.4} | {regret:.1} |",
                shown(&automatic.recipe),
                automatic.score.test,
                shown(&best.recipe),
                best.score.test
            );
            regrets.entry(seconds).or_default().push(regret);
        }
        for (seconds, regrets) in regrets {
            let worst = regrets.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            println!("\n{seconds} s: median {:.1} %, worst {worst:.1} %", timing::median(regrets));
        }
    }
}

/// Recipes by their score, the lowest first.
pub fn ranked(scored: impl Iterator<Item = (f64, Table)>) -> Vec<Table> {
    let mut scored: Vec<_> = scored.collect();
    scored.sort_by(|a, b| a.0.total_cmp(&b.0));
    scored.into_iter().map(|(_, recipe)| recipe).collect()
}
