//! A run that is stopped and resumed ends like an uninterrupted one, to the last bit, whatever the options and threads.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use candle_attention::generate::{Pipeline, Sampler, SamplingOptions, generate};
use candle_attention::model::{Architecture, DropoutRates, ModelConfig, ResidualInit};
use candle_attention::ops::bf16_products;
use candle_attention::optim::Schedule;
use candle_attention::text::{Corpus, Document, IdsStore, TextOptions, Tokenizer, Validation, prepare};
use candle_attention::train::{OptimizerKind, Precision, RunDir, TrainOptions, Trainer};
use candle_core::Device;

use crate::training::{TEXT, config, metrics, moments, options, resume, run_in, weights};

const STEPS: u64 = 12;

/// A model, and what it is trained on.
#[derive(Clone, Copy)]
struct Model {
    architecture: Architecture,
    dropout: f64,
    /// Several documents instead of one.
    has_documents: bool,
}

impl Model {
    fn data(self, store: IdsStore) -> (Tokenizer, Corpus) {
        let texts = match self.has_documents {
            true => (0..40).map(|i| "one two three. ".repeat(1 + i % 3)).collect(),
            false => vec![TEXT.repeat(40)],
        };
        let documents: Vec<Document> = texts.into_iter().map(|text| Document::new("numbers", text)).collect();
        prepare(
            &documents,
            &Validation::Fraction(0.3),
            &"char".parse().unwrap(),
            TextOptions::default(),
            store,
            &mut |_| {},
        )
        .unwrap()
    }

    fn config(self, tokenizer: &Tokenizer) -> ModelConfig {
        let sizes = config(tokenizer);
        let ModelConfig { context_len, embed_dim, num_layers, num_heads, hidden_dim, .. } = sizes;
        let is_qwen = self.architecture == Architecture::Qwen3;
        ModelConfig {
            context_len,
            embed_dim,
            num_layers,
            num_heads,
            num_kv_heads: self.architecture.is_rotary().then_some(1),
            hidden_dim,
            dropout: DropoutRates::all(self.dropout),
            residual_init: if is_qwen { ResidualInit::Zero } else { sizes.residual_init },
            end_of_text_id: tokenizer.end_of_text_id(),
            ..ModelConfig::of(self.architecture, tokenizer.vocab_size())
        }
    }
}

/// Options whose runs must be exact, each with a model.
fn all_options() -> Vec<(&'static str, Model, TrainOptions)> {
    let base = TrainOptions { shards: 3, ..options(STEPS) };
    let everything = TrainOptions {
        accumulate: 2,
        average: 0.7,
        label_smoothing: 0.1,
        schedule: Schedule::WarmupStableDecay,
        decay: 0.4,
        statistics_every: 3,
        patience: 9,
        ..base.clone()
    };
    let muon = TrainOptions { optimizer: OptimizerKind::Muon, embedding_lr: 3.0, ..base.clone() };
    let isolated = TrainOptions { isolate_documents: true, ..base.clone() };
    let in_bf16 = TrainOptions { precision: Precision::Bf16, ..base.clone() };
    let bare = TrainOptions { shards: 1, clip: 0.0, ..base.clone() };
    let high = TrainOptions { lr: 2.0, warmup: 1.0, ..base.clone() };
    let model = |architecture, dropout| Model { architecture, dropout, has_documents: false };
    let of_documents = Model { has_documents: true, ..model(Architecture::Gpt2, 0.0) };
    let mut all = vec![
        ("documents kept apart", of_documents, isolated),
        ("muon", model(Architecture::Qwen3, 0.0), muon.clone()),
        ("muon with an average", model(Architecture::Llama, 0.0), TrainOptions { average: 0.5, ..muon }),
        ("gpt2", model(Architecture::Gpt2, 0.0), base.clone()),
        ("one shard, no clipping", model(Architecture::Gpt2, 0.0), bare),
        ("dropout", model(Architecture::Qwen3, 0.2), base),
        ("dropout, accumulation, average and more", model(Architecture::Gpt2, 0.1), everything),
        ("a best that is not the last", model(Architecture::Gpt2, 0.0), high),
    ];
    if bf16_products(|| ()).is_ok() {
        all.push(("products in bf16", model(Architecture::Gpt2, 0.1), in_bf16));
    }
    all
}

/// The results of a run.
#[derive(PartialEq)]
struct End {
    losses: Vec<u64>,
    weights: Vec<Vec<f64>>,
    moments: Vec<Vec<f64>>,
    metrics: Vec<serde_json::Value>,
    best: String,
    /// The weights at the root.
    published: Vec<u8>,
    sample: String,
}

fn assert_same(got: &End, expected: &End, label: &str) {
    assert_eq!(got.metrics, expected.metrics, "{label}");
    assert_eq!((&got.best, &got.sample), (&expected.best, &expected.sample), "{label}");
    assert!(got == expected, "{label}");
}

/// Runs in `root` on this many threads, stopping after each of the steps `stops`. After each stop the metrics have lines
/// that no checkpoint knows, as a crash may leave them.
fn run(root: &Path, model: Model, options: &TrainOptions, threads: usize, stops: &[u64]) -> End {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut run = RunDir::create(root).unwrap();
        let (tokenizer, corpus) = model.data(IdsStore::File(&run.ids_path()));
        let mut trainer = Trainer::new(&model.config(&tokenizer), options, corpus, &Device::Cpu).unwrap();
        run.begin(&tokenizer, &trainer, &toml::Table::new()).unwrap();
        let mut losses = vec![];
        for stop in stops {
            losses.extend(run_in(&mut run, &mut trainer, Some(*stop)).1);
            assert_eq!(trainer.steps_done(), *stop);
            drop(run);
            let mut file = std::fs::File::options().append(true).open(root.join("training/metrics.jsonl")).unwrap();
            write!(file, "{{\"step\":{},\"loss\":9.5,\"seconds\":1}}\n{{\"step\":", stop + 1).unwrap();
            (run, trainer) = resume(root, "").unwrap();
        }
        losses.extend(run_in(&mut run, &mut trainer, None).1);
        // As it is on disk.
        drop(run);
        let (_run, trainer) = resume(root, "").unwrap();
        assert_eq!((trainer.steps_done(), trainer.is_finished()), (STEPS, true));
        end(root, &trainer, losses)
    })
}

fn end(root: &Path, trainer: &Trainer, losses: Vec<u64>) -> End {
    let Pipeline { model, tokenizer, .. } = Pipeline::open(root, &Device::Cpu).unwrap();
    let mut sampler = Sampler::new(SamplingOptions::default(), 7, 0).unwrap();
    let prompt = tokenizer.encode("one").unwrap();
    let ids = generate(&model, &prompt, 50, &mut sampler, &mut |_| ControlFlow::Continue(())).unwrap();
    End {
        losses,
        weights: weights(trainer),
        moments: moments(trainer),
        metrics: metrics(root),
        best: format!("{:?}", trainer.best()),
        published: std::fs::read(root.join("model.safetensors")).unwrap(),
        sample: tokenizer.decode(&ids).unwrap(),
    }
}

#[test]
fn two_halves_are_the_whole_to_the_last_bit() {
    for (label, model, options) in all_options() {
        let space = tempfile::tempdir().unwrap();
        let whole = run(&space.path().join("whole"), model, &options, 1, &[]);
        assert_eq!((whole.losses.len(), whole.metrics.len()), (STEPS as usize, STEPS as usize + 3), "{label}");
        assert_eq!(
            whole.best.contains("step: 12"),
            !label.starts_with("a best that is not"),
            "{label}: {}",
            whole.best
        );
        // Between two checkpoints, and at one that comes with a validation.
        for (threads, stops) in [(1, &[6][..]), (2, &[6]), (5, &[4, 7])] {
            let label = format!("{label}, {threads} threads, stopped after {stops:?}");
            assert_same(&run(&space.path().join(&label), model, &options, threads, stops), &whole, &label);
        }
    }
}

#[test]
fn a_stop_or_a_checkpoint_after_every_step_changes_nothing() {
    let every: Vec<u64> = (1..STEPS).collect();
    // Those that have every kind of state between them.
    let labels = ["muon with an average", "dropout, accumulation, average and more", "a best that is not the last"];
    for (label, model, options) in all_options().into_iter().filter(|(label, ..)| labels.contains(label)) {
        let space = tempfile::tempdir().unwrap();
        let seldom = run(&space.path().join("seldom"), model, &options, 1, &[]);
        for (stops, save_every) in [(&[3, 8][..], 0.0), (&every, options.save_every)] {
            let label = format!("{label}, stopped after {stops:?}");
            let often = TrainOptions { save_every, ..options.clone() };
            assert_same(&run(&space.path().join(&label), model, &often, 2, stops), &seldom, &label);
        }
    }
}

/// The model's configuration and the options say what a checkpoint has to hold.
#[test]
fn a_checkpoint_that_does_not_belong_to_the_settings_is_refused() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let model = Model { architecture: Architecture::Gpt2, dropout: 0.0, has_documents: false };
    run(&root, model, &options(STEPS), 2, &[]);
    let average = "average.blocks.0.attention.k_proj.weight is not as expected";
    let momentum = "momentum.blocks.0.attention.k_proj.weight is not as expected";
    for (file, from, to, expected) in [
        ("training/settings.toml", "average = 0.0", "average = 0.9", average),
        ("training/settings.toml", "optimizer = \"adamw\"", "optimizer = \"muon\"", momentum),
        ("config.json", "\"n_inner\": 20", "\"n_inner\": 21", "of shape [21, 12], got [20, 12]"),
    ] {
        let path = root.join(file);
        let good = std::fs::read_to_string(&path).unwrap();
        assert!(good.contains(from), "{good}");
        std::fs::write(&path, good.replace(from, to)).unwrap();
        let error = resume(&root, "").err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
        std::fs::write(&path, good).unwrap();
    }
    resume(&root, "").unwrap();
}
