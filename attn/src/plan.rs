//! What a run will be and need, said before it starts: `attn train --dry-run` and the first lines of every run.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::Result;
use candle_attention::Memory;
use candle_attention::model::ModelConfig;
use candle_attention::nn::LoraConfig;
use candle_attention::optim::{LrSchedule, Schedule};
use candle_attention::text::{Corpus, Tokenizer};
use candle_attention::train::{OptimizerKind, TrainOptions, Trainer, watch_bytes};
use indicatif::{DecimalBytes, HumanCount};

use super::automatic::TextSize;
use super::option_layers::MIN_LEFT;
use super::progress::rounded;
use super::settings::Settings;
use super::terminal::{counted, note};

/// Model and data, on a line each.
pub fn description(trainer: &Trainer, tokenizer: &Tokenizer) -> String {
    let (config, corpus) = (trainer.config(), trainer.corpus());
    let window = match trainer.options().window_len(config) {
        window if window == config.context_len => String::new(),
        window => format!(", trained on sequences of {window}"),
    };
    let kv_heads = match config.kv_heads() {
        n if n == config.num_heads => String::new(),
        n => format!(" ({n} for keys and values)"),
    };
    let count = |n: usize| HumanCount(n as u64);
    let learned = match corpus.train.learned() {
        n if n == corpus.train.len() => String::new(),
        n => format!(" ({} in the assistant's turns)", count(n)),
    };
    let adapters = trainer.lora().map_or(String::new(), |lora| {
        let (trained, LoraConfig { rank, alpha, .. }) = (count(config.lora_parameter_count(lora)), lora);
        format!("\nadapters: rank {rank}, alpha {alpha}: {trained} parameters, which alone are trained")
    });
    format!(
        "model: {}, {} parameters: {}, {}{kv_heads}, {}, context {}{window}{adapters}\n\
         data: {} tokens for training{learned}, {} for validation; vocabulary of {} ({})",
        config.architecture.model_type(),
        count(config.parameter_count()),
        counted(config.num_layers, "layer"),
        counted(config.num_heads, "head"),
        counted(config.embed_dim, "channel"),
        config.context_len,
        count(corpus.train.len()),
        count(corpus.validation.len()),
        count(config.vocab_size),
        tokenizer.kind_name(),
    )
}

/// How the model will be trained, on one line.
pub fn recipe(config: &ModelConfig, corpus: &Corpus, options: &TrainOptions) -> String {
    let tokens = options.steps.saturating_mul((options.batch * options.window_len(config)) as u64);
    let dropout = Some(config.dropout.residual).filter(|rate| *rate > 0.0);
    let about = if options.is_timed() { "about " } else { "" };
    format!(
        "recipe: {about}{} of {} in {}: {} tokens, {:.2} passes over the text; {}; {}{}",
        counted(options.steps as usize, "step"),
        counted(options.batch, "sequence"),
        counted(options.shards.min(options.batch.div_ceil(options.accumulate)), "shard"),
        HumanCount(tokens),
        tokens as f64 / corpus.train.len() as f64,
        optimizer(options),
        schedule(options),
        dropout.map_or(String::new(), |rate| format!("; dropout {rate}")),
    )
}

fn optimizer(options: &TrainOptions) -> String {
    let lr = options.lr;
    let optimizer = match options.optimizer {
        OptimizerKind::Muon => format!("Muon at {}, AdamW at {lr}", product(lr, options.matrix_lr)),
        OptimizerKind::AdamW => format!("AdamW at {lr}"),
        other => format!("{other:?} at {lr}"),
    };
    if options.embedding_lr == 1.0 {
        optimizer
    } else {
        format!("{optimizer}, embeddings at {}", product(lr, options.embedding_lr))
    }
}

/// `lr` times `factor`, rounded so that it prints without noise.
fn product(lr: f64, factor: f64) -> f32 {
    (lr * factor) as f32
}

fn schedule(options: &TrainOptions) -> String {
    let LrSchedule { warmup_steps, decay_steps, .. } = options.lr_schedule();
    let (warmup, end) =
        (format!("warm-up over {}", counted(warmup_steps as usize, "step")), product(options.lr, options.min_lr));
    match options.schedule {
        Schedule::Cosine => format!("{warmup}, cosine decay to {end}"),
        Schedule::Linear => format!("{warmup}, linear decay to {end}"),
        Schedule::WarmupStableDecay if decay_steps == 0 => format!("{warmup}, then constant"),
        Schedule::WarmupStableDecay => format!("{warmup}, decay to {end} over the last {}", HumanCount(decay_steps)),
        other => format!("{warmup}, then {}", format!("{other:?}").to_lowercase()),
    }
}

/// The memory that the run is expected to take, on one line.
pub fn memory(trainer: &Trainer) -> String {
    let (needed, available) = (trainer.memory_needed(), Memory::now().available);
    let megabytes = |bytes: usize| DecimalBytes(bytes as u64);
    match needed > available {
        true => format!("memory: {} needed, but only {} free now", megabytes(needed), megabytes(available)),
        false => format!("memory: {} needed", megabytes(needed)),
    }
}

/// Prints the plan as comments, then all settings, but of a timed run not the steps: together a file for `--config`. Makes
/// some steps in memory to measure them, and leaves nothing on disk.
pub fn dry_run(
    trainer: Trainer,
    tokenizer: &Tokenizer,
    settings: &Settings,
    started: Instant,
    out: &mut dyn Write,
) -> Result<()> {
    let (config, corpus, options) = (trainer.config().clone(), trainer.corpus().clone(), trainer.options().clone());
    let [model, recipe, memory] =
        [description(&trainer, tokenizer), recipe(&config, &corpus, &options), memory(&trainer)];
    let watch = watch(&trainer, tokenizer)?.map_or(String::new(), |line| format!("{line}\n"));
    let mut lines = format!("{model}\n{recipe}\n{memory}\n{watch}");
    let start_up = started.elapsed().as_secs_f64();
    let every = options.eval_interval(corpus.validation.len(), options.window_len(&config));
    lines += &match measure(trainer) {
        Ok(measured) => time(&options, every, start_up, measured),
        Err(error) => format!("time: unknown: a step to measure it failed: {error}"),
    };
    remarks(&config, &corpus, &options).iter().for_each(|remark| lines += &format!("\n{remark}"));
    lines.lines().try_for_each(|line| writeln!(out, "# {line}"))?;
    // Of a timed run the steps are an estimate, which a reader might take for an option that counts.
    let mut settings = settings.absolute()?;
    if options.is_timed() {
        settings.remove("steps");
    }
    write!(out, "\n{settings}")?;
    Ok(())
}

/// How long the run will take, on one line: `start_up` seconds until the first step, and the seconds of a step and of a validation,
/// one every `every` steps.
fn time(options: &TrainOptions, every: u64, start_up: f64, (step, validation): (f64, f64)) -> String {
    let took = |steps: u64| {
        let validations = steps.div_ceil(every);
        let each = format!("({:.1} ms per step, {validations} x {validation:.2} s for validation)", 1e3 * step);
        (start_up + step * steps as f64 + validation * validations as f64, each)
    };
    if !options.is_timed() {
        let (seconds, each) = took(options.steps);
        return format!("time: about {} {each}", rounded(seconds));
    }
    // What is chosen rests on the speed of one product, and this on a step. The time decides after the warm-up, and leaves
    // the decay a part of it.
    let all = 60.0 * options.minutes;
    let fitting = |seconds: f64| ((seconds - validation) / (step + validation / every as f64)) as u64;
    let LrSchedule { warmup_steps, decay_steps, .. } = options.lr_schedule();
    let steps = fitting(all - start_up).max(warmup_steps + decay_steps.min(fitting(MIN_LEFT * all))).max(1);
    let (seconds, each) = took(steps);
    format!("time: about {}, {} {each}", rounded(seconds.max(all)), counted(steps as usize, "step"))
}

/// The seconds of a step and of a validation, from a second of each.
fn measure(mut trainer: Trainer) -> Result<(f64, f64)> {
    const SECONDS: f64 = 1.0;
    let seconds_since = |instant: Instant| instant.elapsed().as_secs_f64();
    let (started, mut steps) = (Instant::now(), 0);
    while steps < 3 || seconds_since(started) < SECONDS {
        trainer.step(&trainer.next_batch()?)?;
        steps += 1;
    }
    let step = seconds_since(started) / f64::from(steps);
    if trainer.corpus().validation.is_empty() {
        return Ok((step, 0.0));
    }
    let (started, mut share) = (Instant::now(), 1.0);
    trainer.validate(&mut |done, total| {
        // Batches are announced before they run.
        if seconds_since(started) > SECONDS {
            return ControlFlow::Break(());
        }
        share = done as f64 / total as f64;
        ControlFlow::Continue(())
    })?;
    Ok((step, seconds_since(started) / share))
}

/// What the maps of `--watch` will take on disk, on one line.
fn watch(trainer: &Trainer, tokenizer: &Tokenizer) -> Result<Option<String>> {
    let bytes = watch_bytes(trainer.options(), tokenizer, trainer.config())?;
    Ok(bytes.map(|bytes| format!("watch: attention maps of {} in training/watch", DecimalBytes(bytes as u64))))
}

/// Prints the first lines of a run, if there is nothing to refuse.
pub fn announce(trainer: &Trainer, tokenizer: &Tokenizer) -> Result<()> {
    let watch = watch(trainer, tokenizer)?;
    let (config, corpus, options) = (trainer.config(), trainer.corpus(), trainer.options());
    note(&description(trainer, tokenizer));
    note(&recipe(config, corpus, options));
    note(&memory(trainer));
    watch.iter().for_each(|line| note(line));
    remarks(config, corpus, options).iter().for_each(|remark| note(remark));
    Ok(())
}

/// What a text cannot do.
fn remarks(config: &ModelConfig, corpus: &Corpus, options: &TrainOptions) -> Vec<&'static str> {
    let mut remarks = vec![];
    let (train, validation) = (corpus.train.len(), corpus.validation.len());
    if train < 10_000 {
        remarks.push("a text this short teaches a model little but itself");
    } else if validation > 0 && TextSize::new(corpus, config.vocab_size).limits(options.window_len(config)) {
        remarks.push("the context is no longer than half of the validation text, which is short (--validation)");
    }
    if validation == 0 {
        remarks.push(
            "nothing is held out: there is no validation loss to tell what the model has learned from what it has memorised",
        );
    }
    let validation_steps = options.validation_steps(validation, options.window_len(config));
    if options.is_timed() && validation_steps > options.steps as f64 {
        remarks
            .push("validating once takes about as long as all steps, or longer: a shorter text will do (--validation)");
    }
    remarks
}
