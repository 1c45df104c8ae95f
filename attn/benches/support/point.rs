//! One run of a search: what a recipe costs, and how well it does after so many steps on one thread.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use candle_attention::generate::Pipeline;
use candle_attention::model::{Architecture, DropoutRates, ModelConfig, ResidualInit};
use candle_attention::text::{
    Batch, Corpus, Document, Files, IdsStore, TextOptions, Tokenizer, Validation, encode, prepare,
};
use candle_attention::train::{RunDir, TrainOptions, Trainer, bits_per_byte, evaluate, train};
use candle_core::Device;
use serde::{Deserialize, Serialize};
use sysinfo::{ProcessesToUpdate, System};
use toml::{Table, Value};

use crate::held_out::held_out_fraction;

/// How well a recipe did.
#[derive(Clone, Serialize, Deserialize)]
pub struct Score {
    /// Bits per byte of the text that neither training nor choosing saw.
    pub test: f64,
    /// Bits per byte of the part held out from training, by which recipes are chosen.
    pub validation: f64,
    pub steps: u64,
    /// Seconds of the processor's time that it took, with the validation and without the test.
    pub seconds: f64,
    /// How often the text was read.
    pub passes: f64,
    pub parameters: usize,
}

/// The seconds of the processor's time that this process has used. Unlike the clock's they hardly depend on what else runs.
fn seconds() -> f64 {
    let used = || {
        let (mut system, id) = (System::new().ok()?, sysinfo::get_current_pid().ok()?);
        system.refresh_processes(ProcessesToUpdate::Some(&[id]), true);
        Some(system.process(id)?.accumulated_cpu_time())
    };
    used().unwrap_or_default() as f64 / 1e3
}

/// The fewest steps that a recipe gets, even if they take longer.
pub const MIN_STEPS: u64 = 20;

/// What a recipe costs, in seconds of the processor on one thread.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Costs {
    reading: f64,
    step: f64,
    validation: f64,
}

impl Costs {
    pub fn mean(self, other: Self) -> Self {
        let [reading, step, validation] =
            [(self.reading, other.reading), (self.step, other.step), (self.validation, other.validation)]
                .map(|(a, b)| f64::midpoint(a, b));
        Self { reading, step, validation }
    }

    /// The seconds of so many steps, with a validation at the end and the others, which take a tenth at most and mostly less.
    pub fn seconds(&self, steps: u64) -> f64 {
        self.reading + self.validation + 1.05 * self.step * steps as f64
    }

    /// The steps that take so many seconds.
    pub fn steps(&self, seconds: f64) -> u64 {
        ((seconds - self.reading - self.validation) / (1.05 * self.step)).max(MIN_STEPS as f64) as u64
    }
}

/// All that a recipe is trained with.
struct Prepared {
    tokenizer: Tokenizer,
    corpus: Corpus,
    config: ModelConfig,
    options: TrainOptions,
}

/// Reads a text for a recipe of so many steps.
fn prepared(text: &Path, recipe: &Table, steps: u64) -> Result<Prepared> {
    let mut files = Files::default();
    files.add(text)?;
    let bytes: u64 = files.documents.iter().map(|document| document.len()).sum();
    let validation = Validation::Fraction(held_out_fraction(bytes));
    let choice = recipe.get("tokenizer").and_then(Value::as_str).context("tokenizer")?.parse()?;
    let (defaults, store) = (TextOptions::default(), IdsStore::Temporary);
    let (tokenizer, corpus) = prepare(&files.documents, &validation, &choice, defaults, store, &mut |_| ())?;
    let config = config(recipe, &tokenizer)?;
    let options = TrainOptions { shards: 1, steps, minutes: 0.0, ..recipe.clone().try_into()? };
    Ok(Prepared { tokenizer, corpus, config, options })
}

/// Trains a model on `text` by a recipe, and evaluates the best one on `test`.
pub fn run(text: &Path, test: &Path, steps: u64, recipe: &Table) -> Result<Score> {
    let mut held_out = Files::default();
    held_out.add(test)?;
    let Prepared { tokenizer, corpus, config, options } = prepared(text, recipe, steps)?;
    let space = tempfile::tempdir()?;
    let root = space.path().join("run");
    let mut run = RunDir::create(&root)?;
    let mut trainer = Trainer::new(&config, &options, corpus, &Device::Cpu)?;
    run.begin(&tokenizer, &trainer, &Table::new())?;
    train(&mut trainer, Some(&mut run), &mut |_| ControlFlow::Continue(()))?;
    let seconds = seconds();
    let best = trainer.best().context("expected a validation")?;
    let tokens = (steps * (options.batch * config.context_len) as u64) as f64;
    Ok(Score {
        test: on(&Pipeline::open(&root, &Device::Cpu)?, &held_out)?,
        validation: trainer.validation_bits_per_byte(best.loss),
        steps,
        seconds,
        passes: tokens / trainer.corpus().train.len() as f64,
        parameters: config.parameter_count(),
    })
}

/// The model of a recipe.
fn config(recipe: &Table, tokenizer: &Tokenizer) -> Result<ModelConfig> {
    let count = |name: &str| {
        let value = recipe.get(name).and_then(Value::as_integer).with_context(|| name.to_string())?;
        anyhow::Ok(value as usize)
    };
    let switch = |name: &str| recipe.get(name).and_then(Value::as_bool).unwrap_or_default();
    let (default, dim) =
        (ModelConfig::of(Architecture::Qwen3, tokenizer.vocab_size()), count("heads")? * count("head-dim")?);
    Ok(ModelConfig {
        context_len: count("context")?,
        embed_dim: dim,
        num_layers: count("layers")?,
        num_heads: count("heads")?,
        num_kv_heads: None,
        head_dim: None,
        hidden_dim: Architecture::Qwen3.usual_hidden_dim(dim),
        tie_embeddings: false,
        begin_of_text_id: tokenizer.end_of_text_id(),
        end_of_text_id: tokenizer.end_of_text_id(),
        dropout: DropoutRates::all(recipe.get("dropout").and_then(Value::as_float).unwrap_or_default()),
        residual_init: if switch("zero-residual") { ResidualInit::Zero } else { ResidualInit::Scaled },
        ..default
    })
}

/// What each recipe costs on `text`. They take turns, as the speed of a machine may drift.
pub fn costs(text: &Path, recipes: &[Table]) -> Result<Vec<Costs>> {
    const TURNS: usize = 15;
    let mut all = recipes.iter().map(|recipe| Measurement::new(text, recipe)).collect::<Result<Vec<_>>>()?;
    for turn in 0..TURNS {
        for measurement in &mut all {
            measurement.take_steps()?;
            // It matters less than the steps.
            if turn % 5 == 0 {
                measurement.validate()?;
            }
        }
    }
    Ok(all.iter().map(Measurement::costs).collect())
}

/// The costs of a recipe so far, with the seconds of some steps and of a share of a validation.
struct Measurement {
    trainer: Trainer,
    batch: Batch,
    reading: f64,
    steps: (f64, f64),
    validation: (f64, f64),
}

impl Measurement {
    const TURN: Duration = Duration::from_millis(100);

    fn new(text: &Path, recipe: &Table) -> Result<Self> {
        let begun = seconds();
        let Prepared { corpus, config, options, .. } = prepared(text, recipe, 1)?;
        let reading = seconds() - begun;
        let mut trainer = Trainer::new(&config, &options, corpus, &Device::Cpu)?;
        let batch = trainer.next_batch()?;
        trainer.step(&batch)?;
        Ok(Self { trainer, batch, reading, steps: (0.0, 0.0), validation: (0.0, 0.0) })
    }

    fn take_steps(&mut self) -> Result<()> {
        let (begun, before, mut steps) = (Instant::now(), seconds(), 0.0);
        while steps == 0.0 || begun.elapsed() < Self::TURN {
            self.trainer.step(&self.batch)?;
            steps += 1.0;
        }
        self.steps = (self.steps.0 + seconds() - before, self.steps.1 + steps);
        Ok(())
    }

    fn validate(&mut self) -> Result<()> {
        let (begun, before, mut share) = (Instant::now(), seconds(), 0.0);
        self.trainer.validate(&mut |done, total| {
            // Batches are announced before they run.
            if begun.elapsed() > Self::TURN {
                return ControlFlow::Break(());
            }
            share = done as f64 / total as f64;
            ControlFlow::Continue(())
        })?;
        self.validation = (self.validation.0 + seconds() - before, self.validation.1 + share);
        Ok(())
    }

    fn costs(&self) -> Costs {
        let [step, validation] = [self.steps, self.validation].map(|(seconds, count)| seconds / count);
        Costs { reading: self.reading, step, validation }
    }
}

/// Bits per byte over all documents. A character for which the tokenizer has no token costs its bits in UTF-8.
fn on(Pipeline { model, tokenizer, .. }: &Pipeline, files: &Files) -> Result<f64> {
    let (mut bits, mut bytes) = (0.0, 0);
    for document in &files.documents {
        let text = document.text()?;
        let characters: HashSet<char> = text.chars().collect();
        let is_known = |c: &char| tokenizer.encode_plain(&c.to_string()).is_ok();
        let unknown: HashSet<char> = characters.into_iter().filter(|c| !is_known(c)).collect();
        let known: String = text.chars().filter(|c| !unknown.contains(c)).collect();
        bits += 8.0 * (text.len() - known.len()) as f64;
        let (one, all) = ([Document::new(document.name(), known)], Validation::Fraction(0.0));
        let corpus = encode(tokenizer, &one, &all, TextOptions::default(), IdsStore::Temporary, &mut |_| ())?;
        if corpus.train.len() > 1 {
            let evaluation = evaluate(model, &corpus.train, false, None, &mut |_, _| ControlFlow::Continue(()))?;
            let loss = evaluation.context("broken off")?.loss;
            bits += bits_per_byte(loss, corpus.train.learned(), corpus.train_bytes) * corpus.train_bytes as f64;
        }
        bytes += document.len();
    }
    Ok(bits / bytes as f64)
}
