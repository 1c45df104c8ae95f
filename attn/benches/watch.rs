//! What `--watch` costs: the seconds of runs that keep attention maps, next to the same runs without.
//!
//!     cargo bench --bench watch -- [PAIRS] [PRESET]
//!
//! On the built-in corpus, with the recipe chosen for it or a preset's, runs with and without take turns. "Maps" is the
//! difference of the medians, as a share of the whole time.

use anyhow::Result;
use candle_attention::BUILT_IN_CORPUS;

#[path = "../../benches/support/args.rs"]
mod args;
#[path = "../../benches/support/timing.rs"]
mod timing;
#[path = "support/training.rs"]
mod training;
use timing::median;

const PAIRS: usize = 5;
const WATCH: [&str; 2] = ["--watch", "Cada capela que os médicos viram estava meio escura."];

fn main() -> Result<()> {
    let (is_bench, args) = args::read();
    let space = tempfile::tempdir()?;
    let text = space.path().join("train.txt");
    std::fs::write(&text, BUILT_IN_CORPUS[0])?;
    let pairs = args.first().map_or(Ok(PAIRS), |pairs| pairs.parse())?;
    let preset = args.get(1).map_or("auto", |preset| preset);
    let few: &[&str] = if is_bench { &[] } else { &["--steps", "4", "--batch", "2"] };
    let seconds =
        |more: &[&str], seed| anyhow::Ok(training::train(&text, preset, seed, &[few, more].concat())?.seconds);
    let (mut without, mut with) = (vec![], vec![]);
    for seed in 1..=if is_bench { pairs } else { 1 } {
        without.push(seconds(&[], seed)?);
        with.push(seconds(&WATCH, seed)?);
    }
    let [without, with] = [without, with].map(median);
    println!("| preset | seconds | with --watch | maps |\n|---|---|---|---|");
    println!("| {preset} | {without:.2} | {with:.2} | {:.1} % |", 100.0 * (with - without) / without);
    Ok(())
}
