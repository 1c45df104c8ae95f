//! `attn train`: its command line, and a run from its creation to its report.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use candle_attention::Error;
use candle_attention::generate::{Continuation, Pipeline, SamplingOptions};
use candle_attention::model::ModelConfig;
use candle_attention::processes::Processes;
use candle_attention::text::{IdsStore, Tokenizer};
use candle_attention::train::{
    CHANGE_THE_RESULT, Event, KEEP_THE_RESULT, Outcome, RunDir, TrainOptions, Trainer, join, lead, resume_on, train,
};
use candle_core::Device;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use toml::Table;

use super::option_layers::{OptionLayers, Prepared, Source};
use super::progress::{Progress, Times, rounded, text_progress};
use super::sample::{self, TEMPERATURE};
use super::settings::{PRESETS, preset};
use super::signals::{self, Stage};
use super::terminal::{note, one_line, quoted};
use super::{RunFailed, chart, options, overfit, plan, processes, texts};

/// The command line of `attn train`.
pub fn command() -> Command {
    let path = |name: &'static str| Arg::new(name).long(name).value_parser(value_parser!(PathBuf));
    let switch = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    let names: Vec<String> = CHANGE_THE_RESULT.iter().chain(&KEEP_THE_RESULT).map(|name| format!("--{name}")).collect();
    let resumable = names.join(", ");
    Command::new("train")
        .about("Train a model on text files, or without any on the built-in corpus of Portuguese sentences")
        .allow_negative_numbers(true)
        .args(options::args())
        .args([
            Arg::new("preset").long("preset").value_name("NAME").value_parser(PRESETS.map(|(name, _)| name)).conflicts_with("resume").help(
                "Built-in recipe for the options you don't set; without one, it is chosen for the text, the time and the \
                 speed of this machine. --dry-run prints it",
            ),
            path("config").value_name("FILE").conflicts_with("resume").help(
                "TOML file of these options, such as a run's training/settings.toml, which repeats that run; the command line \
                 takes precedence",
            ),
            path("out").value_name("DIR").help("Folder of the run, new or empty [default: the first unused runs/TEXT-N]"),
            switch("resume").requires("out").help(format!(
                "Continue the run in --out with its saved options, of which only these can be changed: {resumable}. Fractions of \
                 --steps follow it, and multiples of --lr that"
            )),
            switch("dry-run").conflicts_with("resume").help(
                "Print the model, recipe, memory and measured time, then exit; the output is a file for --config",
            ),
            switch("no-samples").help("Do not show after each validation what the model would say"),
            switch("overfit-one-batch").conflicts_with_all(["resume", "out", "dry-run", "minutes"]).help(
                "Sanity check for a new model: train on one batch until it is memorised, and report whether that worked",
            ),
        ])
}

/// Trains a model, or resumes a run, together with the other processes that `mpirun` has started. The process started at
/// `started`.
pub fn run(matches: &ArgMatches, started: Instant, out: &mut dyn Write) -> Result<ExitCode> {
    let processes = processes::start()?;
    let checked = processes::check(&*processes, matches).and_then(|()| signals::listen());
    let result = checked.and_then(|()| match processes.rank() {
        0 => lead_run(matches, &processes, started, out),
        _ => join_run(&processes),
    });
    processes::conclude(processes, result)
}

/// What all processes but the first do.
fn join_run(processes: &Arc<dyn Processes>) -> Result<ExitCode> {
    let mut trainer = join(processes.clone())?;
    if trainer.is_finished() {
        return Ok(ExitCode::SUCCESS);
    }
    Stage::Training.enter();
    let outcome = train(&mut trainer, None, &mut |_| asked_to_stop()).map_err(|error| RunFailed(error.to_string()))?;
    Stage::Saved.enter();
    Ok(match outcome {
        Outcome::Interrupted => stopped(),
        _ => ExitCode::SUCCESS,
    })
}

/// The exit code of a run that was stopped: also for those whose neighbour got the signal.
fn stopped() -> ExitCode {
    ExitCode::from(signals::exit_code().unwrap_or(1))
}

/// Whether a signal asks to stop.
fn asked_to_stop() -> ControlFlow<()> {
    if signals::exit_code().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// What the first process does, or the only one.
fn lead_run(
    matches: &ArgMatches,
    processes: &Arc<dyn Processes>,
    started: Instant,
    out: &mut dyn Write,
) -> Result<ExitCode> {
    let (given, root) = (options::given(matches), matches.get_one::<PathBuf>("out"));
    options::check_length(&given)?;
    if let Some(root) = root.filter(|_| matches.get_flag("resume")) {
        if given.contains_key("texts") {
            bail!("TEXT cannot be given with --resume: the run goes on with the texts that it has");
        }
        return go_on(root, &given, matches.get_flag("no-samples"), processes, out);
    }
    let config = matches.get_one::<PathBuf>("config").map(|path| options::read(path)).transpose()?.unwrap_or_default();
    let preset = matches.get_one::<String>("preset").map(|name| preset(name)).transpose()?;
    let layers = OptionLayers::new(given, config, preset);
    if matches.get_flag("overfit-one-batch") {
        return overfit::run(layers, out);
    }
    // What can be refused is refused before a folder appears.
    let source = layers.source()?;
    if matches.get_flag("dry-run") {
        let Prepared { trainer, tokenizer, settings } = layers.prepare(source, IdsStore::Temporary)?;
        plan::dry_run(trainer, &tokenizer, &settings, started, out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut run = create(root.map(PathBuf::as_path), source.settings.texts()[0].first().map(PathBuf::as_path))?;
    match begin(&layers, source, &mut run, processes) {
        Ok((trainer, tokenizer)) => {
            Stage::Saved.enter();
            let samples = (!matches.get_flag("no-samples")).then(|| Pipeline::new(trainer.model().clone(), tokenizer));
            follow(trainer, run, samples, started, out)
        }
        Err(error) => {
            // Before the folder is removed here: a signal does not remove what then has its name.
            Stage::Nothing.enter();
            Err(error)
        }
    }
}

/// Reads the texts into the folder of a new run, writes its first checkpoint, and shares it with the other processes.
fn begin(
    layers: &OptionLayers,
    source: Source,
    run: &mut RunDir,
    processes: &Arc<dyn Processes>,
) -> Result<(Trainer, Tokenizer)> {
    let Prepared { mut trainer, tokenizer, settings } = layers.prepare(source, IdsStore::File(&run.ids_path()))?;
    trainer.check_processes(processes.count())?;
    plan::announce(&trainer, &tokenizer)?;
    settings.init().iter().for_each(|base| run.start_from(base));
    run.begin(&tokenizer, &trainer, &settings.absolute()?)?;
    lead(run, &mut trainer, processes.clone())?;
    note_processes(&**processes);
    Ok((trainer, tokenizer))
}

/// Creates the given folder, or the first `runs/TEXT-N` that does not exist yet.
fn create(root: Option<&Path>, text: Option<&Path>) -> Result<RunDir> {
    let new = |root: &Path| signals::create(root, || RunDir::create(root));
    if let Some(root) = root {
        return match new(root) {
            Err(error @ Error::Exists(_)) => bail!("{error}; give another --out, or --resume to continue a run"),
            run => Ok(run?),
        };
    }
    let stem = texts::stem(text);
    for n in 1.. {
        match new(&PathBuf::from(format!("runs/{stem}-{n}"))) {
            Err(Error::Exists(_) | Error::Locked(_) | Error::Unfinished(_)) => {}
            run => return Ok(run?),
        }
    }
    bail!("no name is free for a run of {stem}")
}

/// `attn train --resume`.
fn go_on(
    root: &Path,
    given: &Table,
    no_samples: bool,
    processes: &Arc<dyn Processes>,
    out: &mut dyn Write,
) -> Result<ExitCode> {
    Stage::Saved.enter();
    let mut changed = given.clone();
    // Before the run takes the changes; a file that cannot be read is refused there.
    if let Ok(mut settings) = options::read(&root.join("training/settings.toml")) {
        changed.retain(|name, value| settings.get(name) != Some(value));
        settings.extend(given.clone());
        options::check_effect(given, &settings)?;
    }
    let (trainer, run, damaged) = resume_on(processes.clone(), root, given, &Device::Cpu, &mut text_progress())?;
    damaged.iter().for_each(|error| note(&format!("{error}: continuing from step {}", trainer.steps_done())));
    let names: Vec<&str> = changed.keys().map(String::as_str).filter(|name| CHANGE_THE_RESULT.contains(name)).collect();
    if !names.is_empty() && !trainer.is_finished() {
        note(&format!("changed: {}; the result will differ from the unchanged run's", names.join(", ")));
    }
    if changed.contains_key("watch") {
        note("changed: watch; maps of another text are gone, and those of this one begin here");
    }
    if trainer.is_finished() {
        let (step, steps) = (trainer.steps_done(), trainer.options().steps);
        writeln!(
            out,
            "{} is already finished at step {step} of {steps}; a larger --steps or --minutes trains on",
            root.display()
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    note_processes(&**processes);
    let model = || Ok::<_, Error>(Pipeline::new(trainer.model().clone(), Tokenizer::open(root)?));
    let samples = (!no_samples).then(model).transpose()?;
    follow(trainer, run, samples, Instant::now(), out)
}

/// Says how many processes train together, if they are several.
fn note_processes(processes: &dyn Processes) {
    if processes.count() > 1 {
        note(&format!("{} processes", processes.count()));
    }
}

/// Trains to the end or a request to stop, with a sample of `model`, the one in training, after each validation, and reports.
fn follow(
    mut trainer: Trainer,
    mut run: RunDir,
    model: Option<Pipeline>,
    started: Instant,
    out: &mut dyn Write,
) -> Result<ExitCode> {
    let root = run.root().to_path_buf();
    if trainer.lora().is_none() {
        note_excused(trainer.config());
    }
    let time = match trainer.options().minutes {
        0.0 => String::new(),
        minutes => format!(" for {}", rounded((60.0 * minutes - run.seconds()).max(0.0))),
    };
    let (name, of) = (one_line(&root.display().to_string()), of_steps(trainer.options()));
    note(&format!("{name} from step {}{of}{time}", trainer.steps_done()));
    let mut progress = Progress::new(&trainer);
    Stage::Training.enter();
    let outcome = train(&mut trainer, Some(&mut run), &mut |event| {
        progress.show(&event);
        if let (Event::Validation(_), Some(model)) = (&event, &model) {
            // A sample is no reason to end a run.
            sample::short(model).iter().for_each(|text| progress.line(text));
        }
        asked_to_stop()
    });
    Stage::Saved.enter();
    let Progress { times, .. } = progress;
    let of = of_steps(trainer.options());
    let step = trainer.steps_done();
    let resume = format!("attn train --resume --out {}", quoted(&root));
    match outcome {
        Err(error) => {
            let rate = if matches!(error, Error::Diverged { .. }) { " --lr RATE" } else { "" };
            Err(RunFailed(format!("{error}; the last checkpoint is kept: {resume}{rate}")).into())
        }
        Ok(Outcome::Interrupted) => {
            // The terminal may be gone, which changes nothing.
            let _ = writeln!(out, "stopped and saved at step {step}{of}; to continue: {resume}").and(out.flush());
            Ok(stopped())
        }
        Ok(outcome) => {
            Stage::Complete.enter();
            if outcome == Outcome::StoppedEarly {
                let (count, patience) = (trainer.validations_without_improvement(), trainer.options().patience);
                writeln!(
                    out,
                    "stopped early at step {step}{of}: {count} validations without a lower loss (--patience \
                     {patience}); to continue anyway: {resume} --patience N"
                )?;
            }
            report(&trainer, &run, &times, started, out)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The number of steps of a run, which is not known while the time is to decide on it.
fn of_steps(options: &TrainOptions) -> String {
    if options.is_timed() { String::new() } else { format!(" of {}", options.steps) }
}

/// Lists the tensors that the gradient audit excuses, by reason.
fn note_excused(config: &ModelConfig) {
    let excused = config.zero_gradient_parameters();
    let mut reasons: Vec<&str> = excused.iter().map(|(_, reason)| *reason).collect();
    reasons.dedup();
    for reason in reasons {
        let of_reason = excused.iter().filter(|(_, other)| *other == reason);
        let names: Vec<&str> = of_reason.map(|(name, _)| name.as_str()).collect();
        note(&format!("no gradient expected for {}: {reason}", names.join(", ")));
    }
}

/// Prints the loss curve, a sample, and where the run is.
fn report(trainer: &Trainer, run: &RunDir, times: &Times, started: Instant, out: &mut dyn Write) -> Result<()> {
    /// The length of the sample.
    const TOKENS: usize = 300;
    let root = run.root();
    if let Some(curve) = chart::loss_curve(&run.metrics_path())? {
        writeln!(out, "{curve}")?;
    }
    let pipeline = Pipeline::open(root, &Device::Cpu)?;
    let sampling = SamplingOptions { temperature: TEMPERATURE, ..Default::default() };
    writeln!(out, "a sample, at temperature {TEMPERATURE}:")?;
    let seed = trainer.options().seed;
    let continuation = Continuation { max_tokens: TOKENS, sampling, seed, ..Default::default() };
    sample::write(&pipeline, &[], &continuation, out)?;
    writeln!(out)?;
    if let Some(best) = trainer.best() {
        let bits = trainer.validation_bits_per_byte(best.loss);
        writeln!(out, "lowest validation loss {:.4} ({bits:.4} bits/byte) at step {}", best.loss, best.step)?;
    }
    writeln!(out, "{} steps in {:.0} s: {}", trainer.steps_done(), run.seconds(), root.display())?;
    writeln!(out, "{:.2} s since the start: {times}", started.elapsed().as_secs_f64())?;
    if run.plot_path().exists() {
        writeln!(out, "loss plot: {}", run.plot_path().display())?;
    }
    writeln!(out, "more text: attn generate {}", quoted(root))?;
    Ok(())
}
