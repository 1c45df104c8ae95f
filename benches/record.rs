//! The record: seconds from the start of the process to a saved model whose loss on the whole validation part is 1.88 or less,
//! beside nanoGPT's recipe for the CPU in torch, from its start to its end.
//!
//!     CANDLE_ATTENTION_PYTHON=venv/bin/python cargo bench --bench record -- tinyshakespeare.txt [SEEDS]
//!
//! `attn train FILE --preset quick` and `benches/peers/nanogpt_cpu.py --text FILE --every 2000` take turns, seed by seed, each with two
//! threads. Without that variable torch's side is missing.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

mod support {
    pub mod timing;
}
use support::timing::median;

/// Threads of each side.
const THREADS: &str = "2";
const SEEDS: usize = 5;
/// nanoGPT's own end.
const GOAL: f64 = 1.88;

/// What one training gave: its validation loss, its seconds, and where these went.
struct Training {
    loss: f64,
    seconds: f64,
    parts: Vec<f64>,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let Some(text) = args.first() else { return rehearse() };
    let seeds = args.get(1).map_or(Ok(SEEDS), |seeds| seeds.parse())?;
    let python = std::env::var_os("CANDLE_ATTENTION_PYTHON");
    println!(
        "| seed | loss | seconds | start-up | steps | validation | checkpoints | torch: loss | seconds | start-up | steps | validation | ratio |"
    );
    println!("|{}", "---|".repeat(13));
    let (mut all_ours, mut all_torch) = (vec![], vec![]);
    for seed in 1..=seeds {
        let ours = ours(Path::new(text), seed, &[])?;
        let torch = python.as_ref().map(|python| torch(Command::new(python), text, seed)).transpose()?;
        print_row(&seed.to_string(), &ours, torch.as_ref());
        all_ours.push(ours);
        all_torch.extend(torch);
    }
    let middle_torch = (!all_torch.is_empty()).then(|| middle(&all_torch));
    print_row("median", &middle(&all_ours), middle_torch.as_ref());
    let reached = all_ours.iter().filter(|training| training.loss <= GOAL).count();
    println!("\n{reached} of {seeds} seeds reach {GOAL}");
    Ok(())
}

/// Without a text, which `cargo test --benches` has not, some steps on a few lines.
fn rehearse() -> Result<()> {
    let space = tempfile::tempdir()?;
    let text = space.path().join("text.txt");
    std::fs::write(&text, "The cat that the children saw yesterday ran down the old street.\n".repeat(200))?;
    let few = ["--steps", "4", "--warmup", "1", "--decay-steps", "2", "--batch", "2", "--context", "16"];
    print_row("rehearsal", &ours(&text, 1, &few)?, None);
    Ok(())
}

/// One run of the command.
fn ours(text: &Path, seed: usize, more: &[&str]) -> Result<Training> {
    let space = tempfile::tempdir()?;
    let root = space.path().join("run");
    let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
    command.args(["train", "--preset", "quick", "--threads", THREADS, "--shards", THREADS]).args(more);
    command.arg("--seed").arg(seed.to_string()).arg("--out").arg(&root).arg(text);
    let (seconds, output) = timed(&mut command)?;
    // `8.61 s since the start: 0.31 start-up, 7.20 steps, 0.95 validation, 0.15 checkpoints`
    let (_, parts) = output.split_once(" s since the start: ").context("expected the time and its parts")?;
    let parts = parts.lines().next().unwrap_or_default().split(", ");
    let parts = parts.map(|part| Ok(part.split(' ').next().unwrap_or_default().parse()?));
    let metrics = std::fs::read_to_string(root.join("training/metrics.jsonl"))?;
    let last = metrics.lines().last().context("expected metrics")?;
    let last: serde_json::Value = serde_json::from_str(last)?;
    let loss = last["validation_loss"].as_f64().context("expected a validation at the end")?;
    Ok(Training { loss, seconds, parts: parts.collect::<Result<_>>()? })
}

/// One run of nanoGPT's recipe.
fn torch(mut python: Command, text: &str, seed: usize) -> Result<Training> {
    python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/nanogpt_cpu.py"));
    python.args(["--text", text, "--every", "2000", "--threads", THREADS, "--seed", &seed.to_string()]);
    let (seconds, output) = timed(&mut python)?;
    // `step 2000  val 1.8862  seconds 104.2` and `seconds: start-up 2.1  steps 99.0  validation 3.1`
    let number_behind = |name: &str| {
        let (_, behind) = output.rsplit_once(name).with_context(|| format!("expected {name} in {output}"))?;
        let number = behind.split_whitespace().next().unwrap_or_default();
        number.parse::<f64>().with_context(|| format!("{name}: {number}"))
    };
    let parts = ["start-up ", "  steps ", "validation "].map(number_behind);
    Ok(Training { loss: number_behind("val ")?, seconds, parts: parts.into_iter().collect::<Result<_>>()? })
}

/// The seconds of a process, and what it printed.
fn timed(command: &mut Command) -> Result<(f64, String)> {
    let begun = Instant::now();
    let output = command.output()?;
    let seconds = begun.elapsed().as_secs_f64();
    if !output.status.success() {
        bail!("{}: {}", command.get_program().display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok((seconds, String::from_utf8(output.stdout)?))
}

/// The median of each number.
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
