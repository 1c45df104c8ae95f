//! What each part of a recipe contributes: a preset with one change at a time, over three seeds.
//!
//!     cargo bench --bench recipe -- tinyshakespeare.txt [--base PRESET] [NAME...]
//!
//! The base is the preset `quick` by default. With NAMEs, only variants
//! with one of them in their name are measured, next to the base.
//!
//! In each round, that is for each seed, all variants take turns. For each variant: the validation loss after as many
//! steps as the base makes, and the time of a step relative to that of the base in the same round (the median of the
//! rounds). With the base `quick` also the number of steps to a mean loss of 1.88, and the time of these steps relative
//! to the base: from runs of several lengths with the schedule stretched accordingly, interpolated linearly in the
//! logarithm of the number of steps.

use std::path::Path;

use anyhow::{Context, Result};

#[path = "../../benches/support/args.rs"]
mod args;
#[path = "../../benches/support/timing.rs"]
mod timing;
#[path = "support/training.rs"]
mod training;
use timing::median;
use training::{GOAL, Training};

const SEEDS: usize = 3;
/// The ratio of two lengths tried in a row.
const STRETCH: f64 = 1.35;
/// A variant that has not reached the goal after this many steps is given up.
const MAX_STEPS: usize = 2000;

/// Names of the variants and the options they add. Rates are multiples of the base's 0.01.
const VARIANTS: &[(&str, &str)] = &[
    ("base", ""),
    ("architecture llama: queries and keys not normalised", "--architecture llama"),
    ("architecture gpt2", "--architecture gpt2"),
    ("AdamW for everything, at 0.001", "--optimizer adamw --lr 0.001 --embedding-lr 1"),
    ("AdamW for everything, at 0.0025", "--optimizer adamw --lr 0.0025 --embedding-lr 1"),
    ("AdamW for everything, at 0.005", "--optimizer adamw --lr 0.005 --embedding-lr 1"),
    ("AdamW for everything, at 0.01", "--optimizer adamw --lr 0.01 --embedding-lr 1"),
    ("residual projections initialised to zero", "--zero-residual"),
    ("tied embeddings", "--tie"),
    ("embeddings at 0.01", "--embedding-lr 1"),
    ("embeddings at 0.05", "--embedding-lr 5"),
    ("cosine", "--schedule cosine"),
    ("linear", "--schedule linear"),
    ("decay over the last 40 %", "--decay 0.4"),
    ("no warm-up", "--warmup 0"),
    ("momentum 0.95", "--momentum 0.95"),
    ("momentum 0.75", "--momentum 0.75"),
    ("matrices at 0.02", "--matrix-lr 2"),
    ("weight decay 0.1", "--weight-decay 0.1 --matrix-weight-decay 0.1"),
    ("moving average of the weights", "--average 0.15"),
    ("no clipping", "--clip 0"),
    ("batch 8", "--batch 8"),
    ("batch 18", "--batch 18"),
    ("context 128, batch 6", "--context 128 --batch 6"),
    ("1 layer", "--layers 1"),
    ("3 layers", "--layers 3"),
    ("48 channels", "--dim 48 --heads 2"),
    ("96 channels", "--dim 96 --heads 3"),
    ("nanoGPT's sizes", "--dim 128 --heads 4 --layers 4"),
];

fn main() -> Result<()> {
    let (_, args) = args::read();
    let Some((text, more)) = args.split_first() else { return rehearse() };
    let (base, names) = match more {
        [option, base, names @ ..] if option == "--base" => (base.as_str(), names),
        names => ("quick", names),
    };
    let setting = Setting { text: Path::new(text), base, steps: steps(text, base)? };
    let is_chosen = |name: &str| name == "base" || names.is_empty() || names.iter().any(|part| name.contains(part));
    let chosen = VARIANTS.iter().filter(|(name, _)| is_chosen(name));
    let mut variants: Vec<Variant> = chosen.map(|&(name, options)| Variant { name, options, runs: vec![] }).collect();
    for seed in 1..=SEEDS {
        variants.retain_mut(|variant| match setting.train(variant.options, seed, setting.steps) {
            Ok(run) => {
                variant.runs.push(run);
                true
            }
            Err(error) => {
                // An option may have no place in this base.
                eprintln!("{} is left out: {error}", variant.name);
                false
            }
        });
    }
    setting.print(&variants)
}

/// One short run of each variant, as a test.
fn rehearse() -> Result<()> {
    let space = tempfile::tempdir()?;
    let text = training::rehearsal(space.path())?;
    let setting = Setting { text: &text, base: "quick", steps: 2 };
    for (name, options) in VARIANTS {
        println!("{name}: {:.4}", setting.train(options, 1, setting.steps).context(*name)?.loss);
    }
    Ok(())
}

/// The steps of the base.
fn steps(text: &str, base: &str) -> Result<usize> {
    let (_, recipe) = training::timed(training::command(base).args([text, "--dry-run"]))?;
    let steps = recipe.lines().find_map(|line| line.strip_prefix("steps = "));
    Ok(steps.context("expected the steps in the recipe")?.parse()?)
}

/// What the variants are changes of.
struct Setting<'a> {
    text: &'a Path,
    base: &'a str,
    steps: usize,
}

struct Variant {
    name: &'static str,
    options: &'static str,
    /// One for each seed.
    runs: Vec<Training>,
}

impl Variant {
    fn mean_loss(&self) -> f64 {
        self.runs.iter().map(|run| run.loss).sum::<f64>() / self.runs.len() as f64
    }

    /// The time of the steps relative to that of the base, round by round.
    fn relative_time(&self, base: &Self) -> f64 {
        median(self.runs.iter().zip(&base.runs).map(|(run, base)| run.parts[1] / base.parts[1]).collect())
    }
}

impl Setting<'_> {
    fn train(&self, options: &str, seed: usize, steps: usize) -> Result<Training> {
        let steps = steps.to_string();
        let words: Vec<&str> = options.split_whitespace().chain(["--steps", &steps]).collect();
        training::train(self.text, self.base, seed, &words)
    }

    fn print(&self, variants: &[Variant]) -> Result<()> {
        let has_goal = self.base == "quick";
        let goal_columns =
            if has_goal { format!(" steps to {GOAL} | relative time to {GOAL} |") } else { String::new() };
        println!("| {} | loss after {} steps | lowest, highest | relative time |{goal_columns}", self.base, self.steps);
        println!("|{}", "---|".repeat(if has_goal { 6 } else { 4 }));
        let base = variants.first().context("the base cannot be trained")?;
        let base_steps = if has_goal { self.steps_to_goal(base)? } else { None };
        for variant in variants {
            let losses = variant.runs.iter().map(|run| run.loss);
            let (lowest, highest) = (losses.clone().fold(f64::INFINITY, f64::min), losses.fold(0.0, f64::max));
            let time = variant.relative_time(base);
            print!("| {} | {:.4} | {lowest:.4}, {highest:.4} | {time:.2} |", variant.name, variant.mean_loss());
            match if has_goal { self.steps_to_goal(variant)? } else { None } {
                _ if !has_goal => println!(),
                Some(steps) => {
                    println!(" {steps:.0} | {:.2} |", base_steps.map_or(f64::NAN, |base| time * steps / base))
                }
                None => println!(" more than {MAX_STEPS} | - |"),
            }
        }
        Ok(())
    }

    /// The steps after which the mean loss is the goal.
    fn steps_to_goal(&self, variant: &Variant) -> Result<Option<f64>> {
        let (mut steps, mut loss) = (self.steps, variant.mean_loss());
        let is_there = loss <= GOAL;
        loop {
            let factor = if is_there { 1.0 / STRETCH } else { STRETCH };
            let next_steps = (steps as f64 * factor).round() as usize;
            if next_steps > MAX_STEPS {
                return Ok(None);
            }
            let runs = (1..=SEEDS).map(|seed| self.train(variant.options, seed, next_steps));
            let next_loss = Variant { runs: runs.collect::<Result<_>>()?, ..*variant }.mean_loss();
            if (next_loss <= GOAL) != is_there {
                let (x0, x1) = ((steps as f64).ln(), (next_steps as f64).ln());
                return Ok(Some((x0 + (x1 - x0) * (GOAL - loss) / (next_loss - loss)).exp()));
            }
            (steps, loss) = (next_steps, next_loss);
        }
    }
}
