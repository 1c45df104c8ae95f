//! A run that is stopped and resumed ends like an uninterrupted one, to the last bit, whatever the options and threads.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use candle_attention::generate::{Sampler, SamplingOptions, generate};
use candle_attention::model::{Architecture, DropoutRates, ModelConfig, ResidualInit};
use candle_attention::run::Run;
use candle_attention::text::{Corpus, CorpusOptions, Document, Tokenizer, TokenizerChoice, Validation, prepare};
use candle_attention::train::{
    BadStep, Event, OptimizerKind, Ramp, RunFolder, Schedule, StepReport, TrainOptions, Trainer, train,
};
use candle_core::{DType, Device, Tensor};

use crate::support::values;
use crate::training::{config, data, options};

const STEPS: u64 = 12;

/// What a run is trained on.
#[derive(Clone, Copy, PartialEq)]
enum Text {
    One,
    /// Several documents, kept apart.
    Documents,
    /// One that makes some batches bad, by a letter with a huge embedding.
    WithBadLetter,
}

impl Text {
    fn data(self) -> (Tokenizer, Corpus) {
        const NUMBERS: &str = "one two three four five six seven eight nine ten. ";
        let prepared = |documents: Vec<String>, validation: &Validation| {
            let documents: Vec<Document> = documents.into_iter().map(|text| Document::new("numbers", text)).collect();
            let options = CorpusOptions::in_memory(13);
            prepare(&documents, validation, &TokenizerChoice::Characters, &options, &mut |_| {}).unwrap()
        };
        match self {
            Self::One => data(),
            Self::Documents => {
                let documents = (0..40).map(|i| "one two three. ".repeat(1 + i % 3)).collect();
                prepared(documents, &Validation::Fraction(0.3))
            }
            Self::WithBadLetter => {
                let text = format!("{}Z{}", NUMBERS.repeat(3), NUMBERS.repeat(4)).repeat(6);
                let validation = Document::new("validation", NUMBERS.repeat(4));
                prepared(vec![text], &Validation::Documents(vec![validation]))
            }
        }
    }
}

/// A model, and what it is trained on.
#[derive(Clone, Copy)]
struct Model {
    architecture: Architecture,
    dropout: f64,
    text: Text,
}

impl Model {
    fn config(self, tokenizer: &Tokenizer) -> ModelConfig {
        let sizes = config(tokenizer);
        let ModelConfig { context_len, embed_dim, num_layers, num_heads, hidden_dim, .. } = sizes;
        let is_qwen = self.architecture == Architecture::Qwen3;
        let base = ModelConfig::of(self.architecture, tokenizer.vocab_size());
        ModelConfig {
            context_len,
            embed_dim,
            num_layers,
            num_heads,
            num_kv_heads: self.architecture.is_rotary().then_some(1),
            hidden_dim,
            dropout: DropoutRates::all(self.dropout),
            residual_init: if is_qwen { ResidualInit::Zero } else { sizes.residual_init },
            tie_embeddings: base.tie_embeddings && self.text != Text::WithBadLetter,
            end_of_text_id: tokenizer.end_of_text_id(),
            ..base
        }
    }

    fn trainer(self, options: &TrainOptions) -> (Tokenizer, Trainer) {
        let (tokenizer, corpus) = self.text.data();
        let trainer = Trainer::new(&self.config(&tokenizer), options, corpus, &Device::Cpu).unwrap();
        if self.text == Text::WithBadLetter {
            let vars = trainer.parameters().vars();
            let embedding = &vars.iter().find(|(name, _)| name == "token_embedding.weight").unwrap().1;
            let huge = Tensor::full(3e38f32, (1, embedding.dim(1).unwrap()), &Device::Cpu).unwrap();
            embedding.slice_set(&huge, 0, tokenizer.encode("Z").unwrap()[0] as usize).unwrap();
        }
        (tokenizer, trainer)
    }

    fn resume(self, root: &Path, options: &TrainOptions) -> (RunFolder, Trainer) {
        let (folder, config, checkpoint) = RunFolder::resume(root, &Device::Cpu).unwrap();
        (folder, Trainer::resume(checkpoint, &config, options, self.text.data().1, &Device::Cpu).unwrap())
    }
}

/// Options whose runs must be exact, each with an architecture and a rate of dropout.
fn all_options() -> Vec<(&'static str, Model, TrainOptions)> {
    let base = TrainOptions { eval_every: 4, shards: 3, ..options(STEPS) };
    let everything = TrainOptions {
        accumulate: 2,
        ema: 0.9,
        label_smoothing: 0.1,
        schedule: Schedule::WarmupStableDecay,
        decay_steps: 5,
        statistics_every: 3,
        patience: 9,
        ..base.clone()
    };
    let muon = TrainOptions {
        optimizer: OptimizerKind::Muon,
        momentum_warmup_steps: 9,
        embedding_learning_rate: Some(3e-3),
        ..base.clone()
    };
    let ramps = TrainOptions {
        batch_ramp: Some(Ramp { from: 2, steps: 8 }),
        context_ramp: Some(Ramp { from: 4, steps: 7 }),
        cautious_updates: true,
        cautious_decay: true,
        z_loss: 1e-3,
        ..muon.clone()
    };
    let isolated = TrainOptions { isolate_documents: true, ..base.clone() };
    let skipping = TrainOptions { skip_bad_steps: 9, ..base.clone() };
    let model = |architecture, dropout| Model { architecture, dropout, text: Text::One };
    let of_documents = Model { text: Text::Documents, ..model(Architecture::Gpt2, 0.0) };
    let with_bad_letter = Model { text: Text::WithBadLetter, ..model(Architecture::Gpt2, 0.0) };
    vec![
        ("documents kept apart", of_documents, isolated),
        ("skipped steps", with_bad_letter, skipping),
        ("muon", model(Architecture::Qwen3, 0.0), muon),
        ("muon, ramps, cautious, z-loss", model(Architecture::Llama, 0.0), ramps),
        ("gpt2", model(Architecture::Gpt2, 0.0), base.clone()),
        (
            "one shard, no clipping",
            model(Architecture::Gpt2, 0.0),
            TrainOptions { shards: 1, clip_norm: 0.0, ..base.clone() },
        ),
        ("dropout", model(Architecture::Qwen3, 0.2), base.clone()),
        ("dropout, accumulation, average and more", model(Architecture::Gpt2, 0.1), everything),
        (
            "a best not last",
            model(Architecture::Gpt2, 0.0),
            TrainOptions { learning_rate: 0.7, warmup_steps: STEPS, ..base },
        ),
    ]
}

/// The results of a run.
#[derive(PartialEq)]
struct End {
    weights: Vec<Vec<f64>>,
    moments: Vec<Vec<f64>>,
    metrics: Vec<serde_json::Value>,
    best: String,
    sample: String,
}

fn end(root: &Path, model: Model, trainer: &Trainer) -> End {
    let metrics = std::fs::read_to_string(root.join("training/metrics.jsonl")).unwrap();
    let without_seconds = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("seconds").unwrap();
        line
    };
    let run = Run::open(root, &Device::Cpu).unwrap();
    let mut sampler = Sampler::new(SamplingOptions::default(), 7, 0).unwrap();
    let prompt = run.tokenizer.encode("one").unwrap();
    // After the bad letter nothing can be sampled.
    let tokens = if model.text == Text::WithBadLetter { 1 } else { 50 };
    let ids = generate(&run.model, &prompt, tokens, &mut sampler, &mut |_| ControlFlow::Continue(())).unwrap();
    End {
        weights: trainer.parameters().vars().iter().map(|(_, var)| values(var)).collect(),
        moments: trainer.moments().iter().map(|(_, moment)| values(moment)).collect(),
        metrics: metrics.lines().map(without_seconds).collect(),
        best: format!("{:?}", trainer.best()),
        sample: run.tokenizer.decode(&ids).unwrap(),
    }
}

/// Runs in `root` on this many threads, stopping after each of the steps `stops`.
fn run(root: &Path, model: Model, options: &TrainOptions, threads: usize, stops: &[u64]) -> End {
    run_saving(root, model, options, threads, stops, None)
}

/// The same with checkpoints between validations.
fn run_saving(
    root: &Path,
    model: Model,
    options: &TrainOptions,
    threads: usize,
    stops: &[u64],
    save_every: Option<Duration>,
) -> End {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let (tokenizer, mut trainer) = model.trainer(options);
        let mut folder = RunFolder::create(root, &tokenizer, &trainer, "").unwrap();
        for stop in stops.iter().map(|&stop| Some(stop)).chain([None]) {
            save_every.into_iter().for_each(|time| folder.set_save_interval(time));
            let on_event = &mut |event: Event| match event {
                Event::Step(StepReport { step, .. }) | Event::Skipped(BadStep { step, .. }) if Some(*step) == stop => {
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            };
            train(&mut trainer, Some(&mut folder), on_event).unwrap();
            drop(folder);
            (folder, trainer) = model.resume(root, options);
        }
        assert_eq!(trainer.step(), STEPS);
        end(root, model, &trainer)
    })
}

#[test]
fn two_halves_are_the_whole_to_the_last_bit() {
    for (label, model, options) in all_options() {
        let space = tempfile::tempdir().unwrap();
        let whole = run(&space.path().join("whole"), model, &options, 1, &[]);
        let count = |name| whole.metrics.iter().filter(|line| line.get(name).is_some()).count() as u64;
        assert_eq!(count("loss") + count("skipped"), STEPS, "{label}");
        let skips = if model.text == Text::WithBadLetter { 2..STEPS - 2 } else { 0..1 };
        assert!(skips.contains(&count("skipped")), "{label}: {} steps are skipped", count("skipped"));
        // Between two checkpoints, at one that comes with a validation, and after every step.
        let every: Vec<u64> = (1..STEPS).collect();
        for (threads, stops) in [(1, &[6][..]), (2, &[6]), (5, &[4, 7]), (2, &every)] {
            let label = format!("{label}, {threads} threads, stopped after {stops:?}");
            let parts = run(&space.path().join(&label), model, &options, threads, stops);
            assert_eq!(parts.metrics, whole.metrics, "{label}");
            assert_eq!(parts.best, whole.best, "{label}");
            assert_eq!(parts.sample, whole.sample, "{label}");
            assert!(parts.weights == whole.weights && parts.moments == whole.moments, "{label}");
        }
    }
}

#[test]
fn a_checkpoint_after_every_step_changes_nothing() {
    for (label, model, options) in all_options() {
        let space = tempfile::tempdir().unwrap();
        let (seldom, often) = (space.path().join("seldom"), space.path().join("often"));
        let whole = run(&seldom, model, &options, 1, &[]);
        for stops in [&[][..], &[3, 8]] {
            let saved = run_saving(&often, model, &options, 2, stops, Some(Duration::ZERO));
            assert!(saved == whole, "{label}, stopped after {stops:?}");
            assert_eq!(files(&often), files(&seldom), "{label}");
            std::fs::remove_dir_all(&often).unwrap();
        }
    }
}

/// The names of all files of a run except the event files, whose names depend on the date, and the content of those at
/// the root.
fn files(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![];
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let path = entry.unwrap().into_path();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        if path.is_file() && !name.contains("tensorboard") {
            let bytes = if name.contains("training") { vec![] } else { std::fs::read(&path).unwrap() };
            files.push((name, bytes));
        }
    }
    files
}

#[test]
fn all_that_does_not_fit_is_listed() {
    let space = tempfile::tempdir().unwrap();
    let options = TrainOptions { ema: 0.9, ..options(2) };
    let root = space.path().join("run");
    let (tokenizer, corpus) = data();
    let trainer = Trainer::new(&config(&tokenizer), &options, corpus, &Device::Cpu).unwrap();
    drop(RunFolder::create(&root, &tokenizer, &trainer, "").unwrap());
    // Of the model, of its moments, and of the weights in training beside their average.
    for (prefix, label) in [
        ("", "weights"),
        ("first_moment.", "optimizer state"),
        ("weight.", "weights in training, beside their average"),
    ] {
        let (_folder, config, mut checkpoint) = RunFolder::resume(&root, &Device::Cpu).unwrap();
        let tensors = if prefix.is_empty() { &mut checkpoint.weights } else { &mut checkpoint.moments };
        let named = |name: &str| format!("{prefix}{name}");
        for name in ["norm.weight", "blocks.0.mlp_norm.weight"] {
            tensors.remove(&named(name)).unwrap();
        }
        for name in ["token_embedding.weight", "blocks.1.attention_norm.weight", "stranger"] {
            tensors.insert(named(name), Tensor::zeros((1, 1), DType::F32, &Device::Cpu).unwrap());
        }
        let corpus = data().1;
        let options = if prefix.is_empty() { &TrainOptions { ema: 0.0, ..options.clone() } } else { &options };
        if prefix.is_empty() {
            checkpoint.state.options = options.clone();
        }
        let error = Trainer::resume(checkpoint, &config, options, corpus, &Device::Cpu).err().unwrap().to_string();
        let shown = |name: &str| if prefix == "weight." { name.to_string() } else { named(name) };
        assert!(error.starts_with(&format!("{label}: ")), "{error}");
        for name in ["norm.weight", "blocks.0.mlp_norm.weight"] {
            assert!(error.contains(&format!("{} is missing", shown(name))), "{error}");
        }
        for name in ["token_embedding.weight", "blocks.1.attention_norm.weight"] {
            assert!(error.contains(&format!("{}: expected", shown(name))), "{error}");
        }
        assert!(error.contains(&format!("{} has no place", shown("stranger"))), "{error}");
    }
}
