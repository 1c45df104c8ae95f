//! `attn train`.

use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_attention::evaluate::bits_per_byte;
use candle_attention::generate::{Continuation, SamplingOptions};
use candle_attention::model::ModelConfig;
use candle_attention::run::Run;
use candle_attention::train::{Event, Forecast, Outcome, Ramp, Remedy, RunFolder, TrainOptions, Trainer, train};
use candle_core::{Device, Error};
use clap::Args;

use super::document::{spill_beside, spill_for_now};
use super::options::Options;
use super::prepared::Prepared;
use super::progress::{Progress, lost_best, note};
use super::resume::resume;
use super::signals::Stage;
use super::stopwatch::Stopwatch;
use super::terminal::{one_line, quoted};
use super::{Failure, chart, counted, overfit, plan, sample, signals};

/// Arguments of `attn train`.
#[derive(Args)]
pub struct TrainArgs {
    #[command(flatten)]
    options: Options,
    /// A file of these options in TOML; what the command line gives goes first
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the run goes [default: the first unused runs/TEXT-N]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the run in --out; it keeps its options but for those given of --steps, --lr, --min-lr, --warmup,
    /// --schedule, --decay-steps, --weight-decay, --matrix-lr, --matrix-weight-decay, --embedding-lr, --head-lr, --clip,
    /// --eval-every, --save-every, --patience, --skip-bad-steps, --statistics-every.
    /// TEXT is not needed: if it is given, it must be the same
    #[arg(long, requires = "out", conflicts_with = "config")]
    resume: bool,
    /// Say what would be trained, how much memory and how long it takes, and leave it at that
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// Learn one batch by heart, the first thing to try on a new model: says whether that works, and saves nothing
    #[arg(long, conflicts_with_all = ["resume", "out", "dry_run"])]
    overfit_one_batch: bool,
}

/// The length of the sample at the end, and how bold it is.
const SAMPLE_TOKENS: usize = 300;
const SAMPLE_TEMPERATURE: f64 = 0.5;

/// Trains a model, or goes on training one. The process began at `begun`.
pub fn run(args: TrainArgs, begun: Instant, out: &mut dyn Write) -> Result<()> {
    signals::listen()?;
    if args.resume {
        let root = args.out.as_deref().context("--resume goes with --out")?;
        if RunFolder::exists(root) {
            Stage::Saved.enter();
        }
        let (trainer, folder) = resume(root, &args.options)?;
        return follow(trainer, folder, None, begun, out);
    }
    let options = match &args.config {
        Some(path) => args.options.or(&Options::from_file(path)?)?,
        None => args.options,
    };
    if args.overfit_one_batch {
        return overfit::run(options, out);
    }
    if let Some(root) = args.out.as_deref().filter(|root| root.file_name().is_none()) {
        bail!("expected the path of a new folder, got {}", root.display());
    }
    if let Some(root) = args.out.as_deref().filter(|root| root.exists() && !args.dry_run) {
        bail!("{} already exists; give another --out, or --resume to go on with a run", root.display());
    }
    let root = args.out.as_deref().unwrap_or(Path::new("runs/run"));
    let spill = if args.dry_run { spill_for_now() } else { spill_beside(root) };
    let prepared = Prepared::new(&options, spill)?;
    let options = prepared.options.clone();
    let train_options = options.train_options();
    if args.dry_run {
        return plan::print(&prepared, &train_options, begun, out);
    }
    plan::check_memory(&prepared.config, &prepared.corpus, &train_options)?;
    let settings = options.resolved(&prepared.choice, &prepared.config, &train_options)?.to_toml()?;
    note(&prepared.description());
    note(&plan::recipe(&prepared, &train_options));
    let forecast = plan::forecast(&prepared, &train_options)?;
    note(&plan::time(&forecast, &train_options, begun));
    let (trainer, tokenizer) = (prepared.trainer(&train_options)?, &prepared.tokenizer);
    let create = &|root: &Path| RunFolder::create(root, tokenizer, &trainer, &settings);
    Stage::Creating.enter();
    let mut folder = create_folder(args.out, &options, create)?;
    Stage::Saved.enter();
    options.save_time()?.into_iter().for_each(|time| folder.set_save_interval(time));
    follow(trainer, folder, forecast.as_ref().ok(), begun, out)
}

/// Creates the folder that was asked for, or the first `runs/TEXT-N` that does not exist yet.
fn create_folder(
    out: Option<PathBuf>,
    options: &Options,
    create: &dyn Fn(&Path) -> candle_core::Result<RunFolder>,
) -> Result<RunFolder> {
    if let Some(root) = out {
        return Ok(create(&root)?);
    }
    let stem = options.texts.first().and_then(|path| path.file_stem()).map(|stem| stem.to_string_lossy());
    let stem = stem.unwrap_or("sentences".into());
    let mut n = 1;
    loop {
        let root = PathBuf::from(format!("runs/{stem}-{n}"));
        match create(&root) {
            Err(Error::Io(error)) if error.kind() == ErrorKind::AlreadyExists => n += 1,
            folder => return Ok(folder?),
        }
    }
}

/// Whether there is nothing left to do.
pub(super) fn is_done(trainer: &Trainer) -> bool {
    trainer.step() == trainer.options().steps && !trainer.validation_is_pending()
}

/// Trains to the end, or to the first Ctrl-C, and reports.
fn follow(
    mut trainer: Trainer,
    mut folder: RunFolder,
    forecast: Option<&Forecast>,
    begun: Instant,
    out: &mut dyn Write,
) -> Result<()> {
    let steps = trainer.options().steps;
    let root = folder.root().to_path_buf();
    if is_done(&trainer) {
        // A crash after the last checkpoint may have left older weights at the root.
        folder.begin(&mut trainer)?;
        folder.take_lost_best().iter().for_each(|best| note(&lost_best(best)));
        writeln!(out, "{} is at step {} of {steps} already; --steps gives it more", root.display(), trainer.step())?;
        return Ok(());
    }
    note_excused(trainer.config());
    note_short(trainer.options());
    note(&format!("{} from step {} of {steps}", one_line(&root.display().to_string()), trainer.step()));
    let mut progress = Progress::new(trainer.options(), trainer.step(), !trainer.corpus().validation.is_empty());
    forecast.into_iter().for_each(|forecast| progress.expect_validation(forecast.validation));
    let (mut saved, mut remedy) = (trainer.step(), None);
    let mut stopwatch = Stopwatch::new(begun);
    let on_event = &mut |event: Event| {
        stopwatch.hear(&event);
        progress.show(&event);
        match event {
            Event::Saved(step) => saved = step,
            Event::Failed(its) => remedy = Some(its),
            _ => {}
        }
        if signals::is_asked_to_stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    Stage::Training.enter();
    let outcome = train(&mut trainer, Some(&mut folder), on_event);
    Stage::Saved.enter();
    progress.finish();
    let on = format!("attn train --resume --out {}", quoted(&root));
    match outcome {
        Err(error) => {
            let (message, kept) = (one_line(&error.to_string()), format!("the checkpoint of step {saved} is kept"));
            let advice = match remedy {
                None => format!("{kept}: {on}"),
                Some(Remedy::LowerRate) => format!("{kept}: {on} --lr RATE"),
                Some(Remedy::SkipOrLowerRate) => format!("{kept}: {on} --skip-bad-steps N or --lr RATE"),
                Some(Remedy::StartAnew) => {
                    format!("the best model is kept: attn train TEXT --init {} --lr RATE", quoted(&root))
                }
            };
            Err(Failure(format!("{message}; {advice}")).into())
        }
        Ok(Outcome::Interrupted) => {
            writeln!(out, "stopped and saved at step {} of {steps}; to go on: {on}", trainer.step())?;
            Ok(())
        }
        Ok(Outcome::StoppedEarly) => {
            let (counters, patience) = (trainer.counters(), trainer.options().patience);
            let without = counters.without_improvement;
            writeln!(
                out,
                "stopped early at step {} of {steps}: {} without a lower loss (--patience {patience}); to go on all the same: {on} --patience N",
                trainer.step(),
                counted(without as usize, "validation"),
            )?;
            report(&trainer, &folder, &stopwatch, out)
        }
        Ok(Outcome::Finished) => report(&trainer, &folder, &stopwatch, out),
    }
}

/// Names what the run is too short for.
fn note_short(options: &TrainOptions) {
    let steps = options.steps;
    let until = |ramp: Option<Ramp>| ramp.map_or(0, |ramp| ramp.steps);
    for (what, name, end) in [
        ("the learning rate", "warmup", options.warmup_steps),
        ("the batch", "batch-ramp", until(options.batch_ramp)),
        ("the context", "context-ramp", until(options.context_ramp)),
    ] {
        if end >= steps {
            note(&format!(
                "{what} does not reach its highest: the {end} steps of --{name} are no fewer than --steps {steps}"
            ));
        }
    }
}

/// Lists the tensors that the gradient audit does not expect to learn, by reason.
fn note_excused(config: &ModelConfig) {
    let excused = config.zero_gradient_parameters();
    let mut reasons: Vec<&str> = excused.iter().map(|(_, reason)| *reason).collect();
    reasons.dedup();
    for reason in reasons {
        let names: Vec<&str> =
            excused.iter().filter(|(_, its)| *its == reason).map(|(name, _)| name.as_str()).collect();
        note(&format!("no gradient expected at {}: {reason}", names.join(", ")));
    }
}

/// The loss curve, a sample, and where the run lies.
fn report(trainer: &Trainer, folder: &RunFolder, stopwatch: &Stopwatch, out: &mut dyn Write) -> Result<()> {
    Stage::Complete.enter();
    let root = folder.root();
    if let Some(curve) = chart::loss_curve(root)? {
        writeln!(out, "{curve}")?;
    }
    let run = Run::open(root, &Device::Cpu)?;
    let sampling = SamplingOptions { temperature: SAMPLE_TEMPERATURE, ..Default::default() };
    let seed = trainer.options().seed;
    writeln!(out, "a sample, at temperature {SAMPLE_TEMPERATURE}:")?;
    let continuation = Continuation { max_tokens: SAMPLE_TOKENS, sampling, seed, ..Default::default() };
    sample::write(&run, "", &continuation, out)?;
    writeln!(out)?;
    if let Some(best) = trainer.best() {
        let (loss, corpus) = (best.validation_loss, trainer.corpus());
        let bits = bits_per_byte(loss, corpus.validation.len(), corpus.validation_bytes);
        writeln!(out, "lowest validation loss {loss:.4} ({bits:.4} bits/byte) at step {}", best.step)?;
    }
    let steps = counted(trainer.step() as usize, "step");
    writeln!(out, "{steps} in {:.0} s: {}", folder.seconds(), root.display())?;
    writeln!(out, "{stopwatch}")?;
    let plot = folder.plot();
    if plot.exists() {
        writeln!(out, "loss plot: {}", plot.display())?;
    }
    writeln!(out, "more text: attn generate {}", quoted(root))?;
    Ok(())
}
