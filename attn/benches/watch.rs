//! What `--watch` costs: the seconds of runs that keep attention maps, next to the same runs without.
//!
//!     cargo bench --bench watch -- TEXT [PAIRS] [PRESET]
//!
//! Runs with and without take turns, with the recipe chosen for the text or that of a preset. "Maps" is the difference of the
//! medians as a share of the whole; start-up, validation and the closing sample are part of both.

use std::path::Path;

use anyhow::Result;

#[path = "../../benches/support/args.rs"]
mod args;
#[path = "../../benches/support/timing.rs"]
mod timing;
#[path = "support/training.rs"]
mod training;
use timing::median;
use training::Training;

const PAIRS: usize = 5;
/// Characters of the text that are watched: its first.
const WATCHED: usize = 50;

fn main() -> Result<()> {
    let (_, args) = args::read();
    let Some(text) = args.first() else {
        let space = tempfile::tempdir()?;
        let text = training::rehearsal(space.path())?;
        return compare(&text, 16, 1, "quick", &["--steps", "4", "--batch", "2", "--context", "16"]);
    };
    let pairs = args.get(1).map_or(Ok(PAIRS), |pairs| pairs.parse())?;
    compare(Path::new(text), WATCHED, pairs, args.get(2).map_or("auto", |preset| preset), &[])
}

fn compare(text: &Path, watched: usize, pairs: usize, preset: &str, few: &[&str]) -> Result<()> {
    let prompt: String = std::fs::read_to_string(text)?.chars().take(watched).collect();
    let watch = [few, &["--watch", &prompt]].concat();
    let (mut without, mut with) = (vec![], vec![]);
    for seed in 1..=pairs {
        without.push(training::train(text, preset, seed, few)?);
        with.push(training::train(text, preset, seed, &watch)?);
    }
    let seconds = |runs: &[Training]| median(runs.iter().map(|run| run.seconds).collect());
    let steps = |runs: &[Training]| median(runs.iter().map(|run| run.parts[1]).collect());
    println!("| preset | loss | seconds | of steps | with --watch: loss | seconds | of steps | maps |");
    println!("|{}", "---|".repeat(8));
    let cells = |runs: &[Training]| format!("{:.4} | {:.2} | {:.2}", runs[0].loss, seconds(runs), steps(runs));
    let share = 100.0 * (seconds(&with) / seconds(&without) - 1.0);
    println!("| {preset} | {} | {} | {share:.1} % |", cells(&without), cells(&with));
    Ok(())
}
