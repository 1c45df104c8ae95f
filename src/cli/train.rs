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
use super::progress::{Progress, lost_best};
use super::resume::{self, resume};
use super::signals::Stage;
use super::stopwatch::Stopwatch;
use super::terminal::{note, one_line, quoted};
use super::{Failure, chart, counted, overfit, plan, sample, signals};

/// Arguments of `attn train`.
#[derive(Args)]
pub struct TrainArgs {
    #[command(flatten)]
    options: Options,
    /// TOML file of these options, such as a run's training/settings.toml, used as a recipe in place of a --preset; the
    /// command line takes precedence
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the run [default: the first unused runs/TEXT-N]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[arg(long, requires = "out", conflicts_with = "config", help = resume::help())]
    resume: bool,
    /// Print the model, recipe, memory and expected time, then exit; the output is a file for --config
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// Sanity check for a new model: train on one batch until it is memorised, and report whether that worked
    #[arg(long, conflicts_with_all = ["resume", "out", "dry_run"])]
    overfit_one_batch: bool,
}

/// The length and temperature of the sample at the end.
const SAMPLE_TOKENS: usize = 300;
const SAMPLE_TEMPERATURE: f64 = 0.5;

/// Trains a model, or resumes a run. The process started at `begun`.
pub fn run(args: TrainArgs, begun: Instant, out: &mut dyn Write) -> Result<()> {
    signals::listen()?;
    check_values(&args.options, std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()))?;
    if args.resume {
        let root = args.out.as_deref().context("--resume needs --out")?;
        if RunFolder::exists(root) {
            Stage::Saved.enter();
        }
        let (trainer, folder) = resume(root, &args.options)?;
        return follow(trainer, folder, None, begun, out);
    }
    if args.config.is_some() && args.options.preset.is_some() {
        bail!("--preset cannot be given with --config, which is a recipe itself");
    }
    let options = match &args.config {
        Some(path) => args.options.with_recipe(&Options::from_file(path)?)?,
        None => args.options,
    };
    if args.overfit_one_batch {
        return overfit::run(options, out);
    }
    if let Some(root) = args.out.as_deref().filter(|root| root.file_name().is_none()) {
        bail!("expected the path of a new folder, got {}", root.display());
    }
    if let Some(root) = args.out.as_deref().filter(|root| root.exists() && !args.dry_run) {
        bail!("{} already exists; give another --out, or --resume to continue that run", root.display());
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
    let settings = prepared.settings(&train_options)?;
    note(&prepared.description());
    note(&plan::recipe(&prepared, &train_options));
    note(&plan::memory(&prepared, &train_options));
    let forecast = plan::forecast(&prepared, &train_options)?;
    note(&plan::time(&forecast, &prepared, &train_options, begun));
    let (trainer, tokenizer) = (prepared.trainer(&train_options)?, &prepared.tokenizer);
    let create = &|root: &Path| RunFolder::create(root, tokenizer, &trainer, &settings);
    Stage::Creating.enter();
    let mut folder = create_folder(args.out, &options, create)?;
    Stage::Saved.enter();
    options.save_time()?.into_iter().for_each(|time| folder.set_save_interval(time));
    follow(trainer, folder, forecast.as_ref().ok(), begun, out)
}

/// Refuses `--flag false`, in which `false` would be the name of a text.
fn check_values(options: &Options, args: impl Iterator<Item = String>) -> Result<()> {
    let args: Vec<String> = args.collect();
    for pair in args.windows(2) {
        let [option, value] = pair else { continue };
        let is_text = options.texts.iter().any(|text| text.as_os_str() == value.as_str());
        if is_text
            && option.starts_with("--")
            && ["true", "false"].contains(&value.as_str())
            && !Path::new(value).exists()
        {
            bail!("no text is named {value}; to set an option that is true or false, write {option}={value}");
        }
    }
    Ok(())
}

/// Creates the given folder, or the first `runs/TEXT-N` that does not exist yet.
fn create_folder(
    out: Option<PathBuf>,
    options: &Options,
    create: &dyn Fn(&Path) -> candle_core::Result<RunFolder>,
) -> Result<RunFolder> {
    if let Some(root) = out {
        return Ok(create(&root)?);
    }
    let stem = options.texts.first().map_or("sentences".to_string(), |path| stem(path));
    let mut n = 1;
    loop {
        let root = PathBuf::from(format!("runs/{stem}-{n}"));
        match create(&root) {
            Err(Error::Io(error)) if error.kind() == ErrorKind::AlreadyExists => n += 1,
            folder => return Ok(folder?),
        }
    }
}

/// The name of a text in that of its run: that of a file without its extension, or of a folder.
fn stem(text: &Path) -> String {
    // A path such as `.` has no name of its own.
    let whole = text.canonicalize().ok();
    let name = text.file_stem().or(whole.as_deref().and_then(Path::file_name));
    name.map_or("text".into(), |name| name.to_string_lossy().into_owned())
}

/// Whether there is nothing left to do.
pub(super) fn is_done(trainer: &Trainer) -> bool {
    trainer.step() == trainer.options().steps && !trainer.validation_is_pending()
}

/// Trains to the end or the first Ctrl-C, and reports.
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
        // A crash after the last checkpoint may have left older weights in the root.
        folder.begin(&mut trainer)?;
        folder.take_lost_best().iter().for_each(|best| note(&lost_best(best)));
        let (root, step) = (root.display(), trainer.step());
        writeln!(out, "{root} is already finished at step {step} of {steps}; a larger --steps trains on")?;
        return Ok(());
    }
    note_excused(trainer.config());
    note_short(trainer.options());
    note(&format!("{} from step {} of {steps}", one_line(&root.display().to_string()), trainer.step()));
    let (context_len, validates) = (trainer.config().context_len, !trainer.corpus().validation.is_empty());
    let mut progress = Progress::new(trainer.options(), context_len, trainer.step(), validates, begun);
    forecast.into_iter().for_each(|forecast| progress.expect_validation(forecast.validation));
    let (mut saved, mut remedy) = (trainer.step(), None);
    let on_event = &mut |event: Event| {
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
    let resume = resume_command(&root);
    match outcome {
        Err(error) => {
            let has_best = folder.best().is_some();
            Err(Failure(format!("{}; {}", one_line(&error.to_string()), advice(remedy, saved, has_best, &root))).into())
        }
        Ok(Outcome::Interrupted) => {
            writeln!(out, "stopped and saved at step {} of {steps}; to continue: {resume}", trainer.step())?;
            Ok(())
        }
        Ok(Outcome::StoppedEarly) => {
            let (counters, patience) = (trainer.counters(), trainer.options().patience);
            let without = counters.without_improvement;
            writeln!(
                out,
                "stopped early at step {} of {steps}: {} without a lower loss (--patience {patience}); to continue anyway: \
                 {resume} --patience N",
                trainer.step(),
                counted(without as usize, "validation"),
            )?;
            report(&trainer, &folder, progress.stopwatch(), out)
        }
        Ok(Outcome::Finished) => report(&trainer, &folder, progress.stopwatch(), out),
    }
}

fn resume_command(root: &Path) -> String {
    format!("attn train --resume --out {}", quoted(root))
}

/// What is left of a run that has failed, and the command that continues it.
fn advice(remedy: Option<Remedy>, saved: u64, has_best: bool, root: &Path) -> String {
    let (kept, resume) = (format!("the checkpoint of step {saved} is kept"), resume_command(root));
    match remedy {
        None => format!("{kept}: {resume}"),
        Some(Remedy::LowerRate) => format!("{kept}: {resume} --lr RATE"),
        Some(Remedy::SkipOrLowerRate) => format!("{kept}: {resume} --skip-bad-steps N or --lr RATE"),
        Some(Remedy::StartAnew) if has_best => {
            format!("the best model is kept: attn train TEXT --init {} --lr RATE", quoted(root))
        }
        Some(Remedy::StartAnew) => "attn train TEXT --lr RATE".into(),
    }
}

/// Warns of ramps and a warm-up that the run is too short for.
fn note_short(options: &TrainOptions) {
    let steps = options.steps;
    let until = |ramp: Option<Ramp>| ramp.map_or(0, |ramp| ramp.steps);
    for (what, name, end) in [
        ("the learning rate", "warmup", options.warmup_steps),
        ("the batch", "batch-ramp", until(options.batch_ramp)),
        ("the context", "context-ramp", until(options.context_ramp)),
    ] {
        if end >= steps {
            note(&format!("{what} never reaches its full value: --{name} takes {end} steps, but --steps is {steps}"));
        }
    }
}

/// Lists the tensors that the gradient audit excuses, by reason.
fn note_excused(config: &ModelConfig) {
    let excused = config.zero_gradient_parameters();
    let mut reasons: Vec<&str> = excused.iter().map(|(_, reason)| *reason).collect();
    reasons.dedup();
    for reason in reasons {
        let names: Vec<&str> =
            excused.iter().filter(|(_, its)| *its == reason).map(|(name, _)| name.as_str()).collect();
        note(&format!("no gradient expected for {}: {reason}", names.join(", ")));
    }
}

/// Prints the loss curve, a sample, and where the run is.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_named_after_its_text() {
        let here = std::env::current_dir().unwrap();
        let here = here.file_name().unwrap().to_str().unwrap();
        for (text, expected) in [("novel.txt", "novel"), ("a/novels/", "novels"), (".", here), ("/", "text")] {
            assert_eq!(stem(Path::new(text)), expected);
        }
    }

    #[test]
    fn a_value_without_an_equals_sign_is_explained() {
        let options = Options { texts: vec!["text.txt".into(), "false".into()], ..Default::default() };
        let check = |line: &str| check_values(&options, line.split(' ').map(String::from));
        let error = check("attn train text.txt --tie false").unwrap_err().to_string();
        assert!(error.ends_with("write --tie=false"), "{error}");
        check("attn train text.txt false").unwrap();
    }
}
