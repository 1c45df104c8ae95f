//! Trainings on several processes, for which threads stand: the bits of one process.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::host::Result;
use crate::model::{DropoutRates, ModelConfig};
use crate::optim::Schedule;
use crate::processes::{Processes, threads::on_threads};
use crate::text::{Corpus, Document, IdsStore, TextOptions, Tokenizer, Validation, prepare};
use crate::train::{
    Event, OptimizerKind, Outcome, RunDir, TrainOptions, Trainer, join, lead, resume, resume_on, train,
};

/// A text whose validation part is several batches.
fn corpus(store: IdsStore) -> (Tokenizer, Corpus) {
    let documents = ["to be or not to be, that is the question; ", "whether it is nobler in the mind to suffer "]
        .map(|text| Document::new("text", text.repeat(600)));
    let (validation, choice) = (Validation::Fraction(0.2), "byte".parse().unwrap());
    prepare(&documents, &validation, &choice, TextOptions::default(), store, &mut |_| ()).unwrap()
}

/// A model whose tensors are of several blocks, of one and of parts of one.
fn config(vocab_size: usize) -> ModelConfig {
    ModelConfig {
        context_len: 8,
        embed_dim: 48,
        num_heads: 3,
        num_layers: 2,
        hidden_dim: 100,
        tie_embeddings: false,
        dropout: DropoutRates::all(0.1),
        ..ModelConfig::qwen3(vocab_size)
    }
}

/// Trainings that differ in what is divided.
fn recipes() -> Vec<TrainOptions> {
    let adamw = TrainOptions {
        steps: 5,
        batch: 7,
        shards: 3,
        accumulate: 2,
        warmup: 0.0,
        clip: 0.5,
        average: 0.6,
        statistics_every: 2,
        eval_every: Some(2),
        ..Default::default()
    };
    let muon = TrainOptions {
        optimizer: OptimizerKind::Muon,
        isolate_documents: true,
        label_smoothing: 0.1,
        accumulate: 1,
        shards: 4,
        average: 0.0,
        clip: 0.0,
        ..adamw.clone()
    };
    vec![adamw, muon]
}

fn trainer(options: &TrainOptions) -> Trainer {
    let (tokenizer, corpus) = corpus(IdsStore::Temporary);
    Trainer::new(&config(tokenizer.vocab_size()), options, corpus, &Device::Cpu).unwrap()
}

type Bits = BTreeMap<String, Vec<u32>>;

fn bits(tensors: BTreeMap<String, Tensor>) -> Bits {
    let of = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    tensors.into_iter().map(|(name, tensor)| (name, of(tensor).into_iter().map(f32::to_bits).collect())).collect()
}

/// All that a training reports, and all tensors at its end, as the first process has them.
fn reports(mut trainer: Trainer) -> (Vec<String>, Bits) {
    let mut reports = vec![];
    let outcome = train(&mut trainer, None, &mut |event| {
        reports.push(format!("{event:?}"));
        ControlFlow::Continue(())
    });
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    // Each is told of the batches that it validates.
    reports.retain(|report| !report.starts_with("Validating"));
    (reports, bits(trainer.tensors().unwrap()))
}

#[test]
fn any_number_of_processes_has_the_bits_of_one() {
    for options in recipes() {
        let (expected, tensors) = reports(trainer(&options));
        assert!(expected.len() == 8 && tensors.keys().any(|name| name.starts_with("second_moment.")));
        for count in 1..=options.shards_of(options.batch).len() {
            let all = on_threads(count, |processes| {
                let mut trainer = trainer(&options);
                trainer.divide(processes).unwrap();
                reports(trainer)
            });
            for (rank, (got, got_tensors)) in all.into_iter().enumerate() {
                assert_eq!(got, expected, "process {rank} of {count}");
                // The others have no moments.
                assert!(got_tensors.iter().all(|(name, bits)| tensors[name] == *bits), "process {rank} of {count}");
                assert!(rank > 0 || got_tensors.len() == tensors.len());
            }
        }
    }
}

/// What each process keeps of the optimizer's state.
#[test]
fn the_state_of_the_optimizer_is_divided() {
    for options in recipes() {
        // Of the storage, of which a tensor may be only a view.
        let elements = |trainer: &Trainer| -> usize {
            let of = |tensor: &Tensor| match &*tensor.storage_and_layout().0 {
                candle_core::Storage::Cpu(storage) => storage.as_slice::<f32>().unwrap().len(),
                _ => 0,
            };
            trainer.optimizer.state().iter().map(|(_, tensor)| of(tensor)).sum()
        };
        let whole = elements(&trainer(&options));
        let parts = on_threads(3, |processes| {
            let mut trainer = trainer(&options);
            trainer.divide(processes).unwrap();
            elements(&trainer)
        });
        assert_eq!(parts.iter().sum::<usize>(), whole);
        // Blocks and matrices are not divided further.
        assert!(parts.iter().all(|&part| 4 * part > whole && 2 * part < whole), "{parts:?} of {whole}");
    }
}

/// A run in `root` on so many processes, new or resumed, which the process `stops.0` stops at step `stops.1`.
fn session(root: &Path, options: &TrainOptions, count: usize, stops: (usize, u64)) -> Vec<Outcome> {
    on_threads(count, |processes| {
        let rank = processes.rank();
        let (mut trainer, mut run) = match rank {
            0 => first(root, options, processes).map(|(trainer, run)| (trainer, Some(run))),
            _ => join(processes).map(|trainer| (trainer, None)),
        }
        .unwrap();
        let outcome = train(&mut trainer, run.as_mut(), &mut |event| match event {
            Event::Step(report) if (rank, report.step) == stops => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        outcome.unwrap()
    })
}

fn first(root: &Path, options: &TrainOptions, processes: Arc<dyn Processes>) -> Result<(Trainer, RunDir)> {
    if root.exists() {
        let (trainer, run, _) = resume_on(processes, root, &toml::Table::new(), &Device::Cpu, &mut |_| ())?;
        return Ok((trainer, run));
    }
    let (mut trainer, mut run) = new_run(root, options)?;
    lead(&mut run, &mut trainer, processes)?;
    Ok((trainer, run))
}

fn new_run(root: &Path, options: &TrainOptions) -> Result<(Trainer, RunDir)> {
    let mut run = RunDir::create(root)?;
    let (tokenizer, corpus) = corpus(IdsStore::File(&run.ids_path()));
    let trainer = Trainer::new(&config(tokenizer.vocab_size()), options, corpus, &Device::Cpu)?;
    run.begin(&tokenizer, &trainer, &toml::Table::new())?;
    Ok((trainer, run))
}

#[test]
fn only_an_untrained_run_that_cannot_be_shared_is_removed() {
    let options = TrainOptions { shards: 1, accumulate: 1, ..recipes().remove(0) };
    let space = tempfile::tempdir().unwrap();
    for steps in [0, 2] {
        let root = space.path().join(format!("trained-{steps}"));
        let refusals = on_threads(2, |processes| {
            if processes.rank() == 1 {
                return join(processes).map(|_| ()).unwrap_err().to_string();
            }
            let (mut trainer, mut run) = new_run(&root, &options).unwrap();
            if steps > 0 {
                let outcome = train(&mut trainer, Some(&mut run), &mut |event| match event {
                    Event::Step(report) if report.step + 1 == steps => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                });
                assert_eq!(outcome.unwrap(), Outcome::Interrupted);
            }
            lead(&mut run, &mut trainer, processes).unwrap_err().to_string()
        });
        assert!(refusals.iter().all(|refusal| refusal.contains("for each of 2 processes, got 1;")), "{refusals:?}");
        assert_eq!(root.exists(), steps > 0);
    }
}

#[test]
fn a_run_goes_on_with_the_same_bits_on_another_number_of_processes() {
    let space = tempfile::tempdir().unwrap();
    let of = |root: &Path| {
        let (trainer, ..) = resume(root, &toml::Table::new(), &Device::Cpu, &mut |_| ()).unwrap();
        let metrics = std::fs::read_to_string(root.join("training/metrics.jsonl")).unwrap();
        let line = |line: &str| {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["seconds"].take();
            line.to_string()
        };
        (bits(trainer.tensors().unwrap()), metrics.lines().map(line).collect::<Vec<_>>())
    };
    for (i, options) in recipes().iter().enumerate() {
        let [alone, divided] = ["alone", "divided"].map(|name| space.path().join(format!("{name}-{i}")));
        assert_eq!(session(&alone, options, 1, (0, 0)), [Outcome::Finished]);
        // Stopped by the last process, by the first, and not.
        assert_eq!(session(&divided, options, 3, (2, 1)), [Outcome::Interrupted; 3]);
        assert_eq!(session(&divided, options, 2, (0, 3)), [Outcome::Interrupted; 2]);
        assert_eq!(session(&divided, options, 4, (0, 0)), [Outcome::Finished; 4]);
        assert_eq!(of(&divided), of(&alone));
    }
}

/// The time of a run is that of the first process, which alone knows when it began.
#[test]
fn the_first_process_decides_when_a_timed_run_decays() {
    let options = TrainOptions {
        minutes: 0.1,
        schedule: Schedule::WarmupStableDecay,
        steps: 10,
        eval_every: None,
        ..recipes().remove(0)
    };
    let space = tempfile::tempdir().unwrap();
    assert_eq!(session(&space.path().join("run"), &options, 2, (0, 0)), [Outcome::Finished; 2]);
}

#[test]
fn processes_that_do_not_fit_are_refused_by_name() {
    let errors = |count: usize, other: TrainOptions| {
        on_threads(count, |processes| {
            let options = if processes.rank() == 1 { &other } else { &recipes()[1] };
            trainer(options).divide(processes).unwrap_err().to_string()
        })
    };
    let other = TrainOptions { lr: 0.5, ..recipes().remove(1) };
    assert_eq!(errors(2, other), ["lr: expected the same on all processes, got 0.001 on 0 and 0.5 on 1"; 2]);
    let other = TrainOptions { seed: 2, ..recipes().remove(1) };
    assert_eq!(errors(2, other)[0], "seed: expected the same on all processes, got 1 on 0 and 2 on 1");
    let too_many = "expected at least a shard of a batch for each of 5 processes, got 4; see --shards and --batch";
    assert_eq!(errors(5, recipes().remove(1)), [too_many; 5]);
}
