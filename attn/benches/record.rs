//! The record: seconds from the start of the process to a saved model with a loss of at most 1.88 on the whole
//! validation text, next to nanoGPT's CPU recipe in torch from its start to its end.
//!
//!     CANDLE_ATTENTION_PYTHON=venv/bin/python cargo bench --bench record -- tinyshakespeare.txt [SEEDS]
//!
//! `attn train FILE --preset quick` and `benches/peers/nanogpt_cpu.py --text FILE --every 2000` take turns, seed by
//! seed, each on two threads. The torch side validates at its start too, as nanoGPT does. The ratio in the last row is
//! that of the medians; a seed that does not reach 1.88 counts as infinite in the median. Without the variable there
//! are no torch columns.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

#[path = "../../benches/support/args.rs"]
mod args;
#[path = "../../benches/support/timing.rs"]
mod timing;
#[path = "support/training.rs"]
mod training;
use timing::median;
use training::{GOAL, THREADS, Training, timed};

const SEEDS: usize = 5;
const NO_MORE: &[&str] = &[];

fn main() -> Result<()> {
    let (_, args) = args::read();
    let Some(text) = args.first() else { return rehearse() };
    let seeds = args.get(1).map_or(Ok(SEEDS), |seeds| seeds.parse())?;
    let python = std::env::var_os("CANDLE_ATTENTION_PYTHON");
    println!(
        "| seed | loss | seconds | start-up, sample | steps | validation | checkpoints | torch: loss | seconds | start-up | steps | validation | ratio |"
    );
    println!("|{}", "---|".repeat(13));
    let (mut all_ours, mut all_torch) = (vec![], vec![]);
    for seed in 1..=seeds {
        let ours = training::train(Path::new(text), "quick", seed, NO_MORE)?;
        let torch = python.as_ref().map(|python| torch(Command::new(python), text, seed)).transpose()?;
        print_row(&seed.to_string(), &ours, torch.as_ref());
        let seconds = if ours.loss <= GOAL { ours.seconds } else { f64::INFINITY };
        all_ours.push(Training { seconds, ..ours });
        all_torch.extend(torch);
    }
    let middle_torch = (!all_torch.is_empty()).then(|| middle(&all_torch));
    print_row("median", &middle(&all_ours), middle_torch.as_ref());
    let reached = all_ours.iter().filter(|training| training.loss <= GOAL).count();
    println!("\n{reached} of {seeds} seeds reach {GOAL}");
    Ok(())
}

/// Some steps on a few lines, as a test.
fn rehearse() -> Result<()> {
    let space = tempfile::tempdir()?;
    let text = training::rehearsal(space.path())?;
    let few = ["--steps", "4", "--batch", "2", "--context", "16"];
    print_row("rehearsal", &training::train(&text, "quick", 1, &few)?, None);
    Ok(())
}

/// One run of nanoGPT's recipe in torch.
fn torch(mut python: Command, text: &str, seed: usize) -> Result<Training> {
    python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/peers/nanogpt_cpu.py"));
    python.args(["--text", text, "--every", "2000", "--threads", THREADS, "--seed", &seed.to_string()]);
    let (seconds, output) = timed(&mut python)?;
    // `step 2000  val 1.8862  seconds 104.2` and `seconds: start-up 2.1  steps 99.0  validation 3.1`
    let number_after = |name: &str| {
        let (_, after) = output.rsplit_once(name).with_context(|| format!("expected {name} in {output}"))?;
        let number = after.split_whitespace().next().unwrap_or_default();
        number.parse::<f64>().with_context(|| format!("{name}: {number}"))
    };
    let parts = ["start-up ", "  steps ", "validation "].map(number_after);
    Ok(Training { loss: number_after("val ")?, seconds, parts: parts.into_iter().collect::<Result<_>>()? })
}

/// The medians of all numbers.
fn middle(trainings: &[Training]) -> Training {
    let of = |number: &dyn Fn(&Training) -> f64| median(trainings.iter().map(number).collect());
    let parts = (0..trainings[0].parts.len()).map(|i| of(&|training| training.parts[i])).collect();
    Training { loss: of(&|training| training.loss), seconds: of(&|training| training.seconds), parts }
}

fn print_row(label: &str, ours: &Training, torch: Option<&Training>) {
    let cells = |Training { loss, seconds, parts }: &Training| {
        let parts: String = parts.iter().map(|part| format!(" {part:.2} |")).collect();
        format!(" {loss:.4} | {seconds:.2} |{parts}")
    };
    let torch = torch.map_or(" - |".repeat(6), |torch| {
        let ratio = torch.seconds / ours.seconds;
        format!("{} {ratio:.1} |", cells(torch))
    });
    println!("| {label} |{}{torch}", cells(ours));
}
