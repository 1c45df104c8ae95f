//! What each part of the preset `quick` gives: the preset with one thing changed, over three seeds.
//!
//!     cargo bench --bench recipe -- tinyshakespeare.txt [NAME...]
//!
//! For each variant the validation loss after as many steps as the preset makes, and the steps and seconds until the mean
//! loss of the seeds is 1.88: runs of several lengths, each with the schedule stretched to it, and between two of them a
//! straight line over the logarithm of the steps. With NAMEs only the variants of which one is a part of the name.

use std::path::Path;

use anyhow::Result;

mod support {
    pub mod quick;
    pub mod timing;
}
use support::quick::{self, Training};
use support::timing::median;

const SEEDS: usize = 3;
const GOAL: f64 = 1.88;
/// The preset, and its steps.
const QUICK: &str = include_str!("../src/cli/presets/quick.toml");
const STEPS: usize = 300;
/// Between the lengths that are tried.
const STRETCH: f64 = 1.35;
/// A variant that has not reached the goal by so many steps does not.
const MOST_STEPS: usize = 2000;

/// The preset's other selves: their names and what is added on the command line.
const VARIANTS: &[(&str, &str)] = &[
    ("quick", ""),
    ("architecture llama: queries and keys as they are", "--architecture llama"),
    ("architecture gpt2", "--architecture gpt2"),
    ("AdamW throughout, at 0.005", "--optimizer adamw --lr 0.005 --min-lr 0 --weight-decay 0"),
    ("AdamW throughout, at 0.01", "--optimizer adamw --lr 0.01 --min-lr 0 --weight-decay 0"),
    ("residual projections not at zero", "--zero-residual false"),
    ("tied embeddings", "--tie true"),
    ("embeddings at the rate of the rest", "--embedding-lr 0.01"),
    ("embeddings at 0.05", "--embedding-lr 0.05"),
    ("cosine", "--schedule cosine"),
    ("linear", "--schedule linear"),
    ("decay over the last 40 %", "--decay-steps 120"),
    ("momentum 0.95", "--momentum 0.95"),
    ("momentum 0.75", "--momentum 0.75"),
    ("matrices at 0.03", "--matrix-lr 0.03"),
    ("weight decay 0.1", "--weight-decay 0.1 --matrix-weight-decay 0.1"),
    ("weight decay 0.1, cautious", "--weight-decay 0.1 --matrix-weight-decay 0.1 --cautious-decay"),
    ("cautious updates", "--cautious-updates"),
    ("z-loss 0.0001", "--z-loss 0.0001"),
    ("moving average of the weights", "--ema 0.98"),
    ("batches from 4, growing over 40 %", "--batch-ramp 4:120"),
    ("contexts from 16, growing over 40 %", "--context-ramp 16:120"),
    ("no clipping", "--clip 0"),
    ("batch 8", "--batch 8"),
    ("batch 18", "--batch 18"),
    ("context 128, batch 6", "--context 128 --batch 6"),
    ("2 layers", "--layers 2"),
    ("4 layers", "--layers 4"),
    ("48 channels", "--dim 48 --heads 2"),
    ("96 channels", "--dim 96 --heads 3"),
    ("nanoGPT's sizes", "--dim 128 --heads 4 --layers 4"),
];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    anyhow::ensure!(QUICK.contains(&format!("\nsteps = {STEPS}\n")), "the preset has other steps than {STEPS}");
    let Some((text, names)) = args.split_first() else { return rehearse() };
    println!(
        "| variant | loss after {STEPS} steps | lowest and highest | ms a step | steps to {GOAL} | seconds to {GOAL} |"
    );
    println!("|{}", "---|".repeat(6));
    for (name, options) in VARIANTS {
        if names.is_empty() || names.iter().any(|part| name.contains(part)) {
            measure(name, Path::new(text), options)?;
        }
    }
    Ok(())
}

/// Without a text, which `cargo test --benches` has not, one short run of each.
fn rehearse() -> Result<()> {
    let space = tempfile::tempdir()?;
    let text = quick::rehearsal(space.path())?;
    for (name, options) in VARIANTS {
        println!("{name}: {:.4}", quick::train(&text, 1, &words(options, 2))?.loss);
    }
    Ok(())
}

/// The trainings of one variant and one length.
struct Length {
    steps: usize,
    trainings: Vec<Training>,
}

impl Length {
    fn run(text: &Path, options: &str, steps: usize) -> Result<Self> {
        let words = words(options, steps);
        let trainings = (1..=SEEDS).map(|seed| quick::train(text, seed, &words)).collect::<Result<_>>()?;
        Ok(Self { steps, trainings })
    }

    fn losses(&self) -> Vec<f64> {
        let mut losses: Vec<f64> = self.trainings.iter().map(|training| training.loss).collect();
        losses.sort_by(f64::total_cmp);
        losses
    }

    fn mean_loss(&self) -> f64 {
        self.losses().iter().sum::<f64>() / self.trainings.len() as f64
    }

    /// Seconds of a step, and of all but the steps.
    fn seconds(&self) -> (f64, f64) {
        let steps = self.trainings.iter().map(|training| training.parts[1] / self.steps as f64).collect();
        let rest = self.trainings.iter().map(|training| training.seconds - training.parts[1]).collect();
        (median(steps), median(rest))
    }
}

/// The options for a run of so many steps: `--decay-steps` and ramps stretch with it.
fn words(options: &str, steps: usize) -> Vec<String> {
    let mut words: Vec<String> = options.split_whitespace().map(str::to_string).collect();
    words.extend(["--steps".to_string(), steps.to_string()]);
    for at in 1..words.len() {
        if !["--decay-steps", "--batch-ramp", "--context-ramp"].contains(&words[at - 1].as_str()) {
            continue;
        }
        let (from, count) = words[at].split_once(':').map_or(("", words[at].as_str()), |(from, count)| (from, count));
        if let Ok(count) = count.parse::<usize>() {
            let colon = if from.is_empty() { "" } else { ":" };
            words[at] = format!("{from}{colon}{}", (count * steps / STEPS).max(1));
        }
    }
    words
}

/// Prints the row of a variant.
fn measure(name: &str, text: &Path, options: &str) -> Result<()> {
    let first = Length::run(text, options, STEPS)?;
    let (losses, (step, rest)) = (first.losses(), first.seconds());
    print!("| {name} | {:.4} | {:.4} {:.4} | {:.2} |", first.mean_loss(), losses[0], losses[SEEDS - 1], step * 1e3);
    match steps_to_goal(text, options, first)? {
        Some(steps) => println!(" {steps:.0} | {:.2} |", rest + steps * step),
        None => println!(" more than {MOST_STEPS} | - |"),
    }
    Ok(())
}

/// The steps after which the mean loss is the goal.
fn steps_to_goal(text: &Path, options: &str, first: Length) -> Result<Option<f64>> {
    let is_there = first.mean_loss() <= GOAL;
    let mut last = first;
    loop {
        let factor = if is_there { 1.0 / STRETCH } else { STRETCH };
        let steps = (last.steps as f64 * factor).round() as usize;
        if steps > MOST_STEPS {
            return Ok(None);
        }
        let next = Length::run(text, options, steps)?;
        if (next.mean_loss() <= GOAL) != is_there {
            let (x0, x1) = ((last.steps as f64).ln(), (next.steps as f64).ln());
            let (y0, y1) = (last.mean_loss(), next.mean_loss());
            return Ok(Some((x0 + (x1 - x0) * (GOAL - y0) / (y1 - y0)).exp()));
        }
        last = next;
    }
}
