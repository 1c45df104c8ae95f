//! Training through the library, and what tests of runs build on.

use std::ops::ControlFlow;
use std::path::Path;

use candle_attention::generate::{Sampler, SamplingOptions, generate};
use candle_attention::model::ModelConfig;
use candle_attention::text::{Batch, Corpus, Document, IdsStore, TextOptions, Tokenizer, Validation, prepare};
use candle_attention::train::{self, Event, Outcome, RunDir, TrainOptions, Trainer, train};
use candle_attention::{Error, Result};
use candle_core::{Device, Tensor};

use crate::support::values;

pub const TEXT: &str = "one two three four five six seven eight nine ten. ";

pub fn data() -> (Tokenizer, Corpus) {
    data_in(IdsStore::Temporary)
}

pub fn data_in(store: IdsStore) -> (Tokenizer, Corpus) {
    let documents = [Document::new("numbers", TEXT.repeat(40))];
    prepare(
        &documents,
        &Validation::Fraction(0.1),
        &"char".parse().unwrap(),
        TextOptions::default(),
        store,
        &mut |_| {},
    )
    .unwrap()
}

pub fn config(tokenizer: &Tokenizer) -> ModelConfig {
    ModelConfig {
        context_len: 13,
        embed_dim: 12,
        num_heads: 3,
        num_layers: 2,
        hidden_dim: 20,
        ..ModelConfig::gpt2(tokenizer.vocab_size())
    }
}

/// Three steps of warm-up, and a validation every four steps.
pub fn options(steps: u64) -> TrainOptions {
    TrainOptions { steps, batch: 5, warmup: (3.0 / steps as f64).min(1.0), eval_every: Some(4), ..Default::default() }
}

pub fn trainer(options: &TrainOptions) -> (Tokenizer, Trainer) {
    let (tokenizer, corpus) = data();
    let trainer = Trainer::new(&config(&tokenizer), options, corpus, &Device::Cpu).unwrap();
    (tokenizer, trainer)
}

/// A new run in `root`.
pub fn new_run(root: &Path, options: &TrainOptions) -> (RunDir, Trainer) {
    let mut run = RunDir::create(root).unwrap();
    let (tokenizer, corpus) = data_in(IdsStore::File(&run.ids_path()));
    let trainer = Trainer::new(&config(&tokenizer), options, corpus, &Device::Cpu).unwrap();
    run.begin(&tokenizer, &trainer, &toml::Table::new()).unwrap();
    (run, trainer)
}

/// A run in `root` that is trained to the end.
pub fn finished_run(root: &Path, options: &TrainOptions) -> (RunDir, Trainer) {
    let (mut run, mut trainer) = new_run(root, options);
    run_in(&mut run, &mut trainer, None);
    (run, trainer)
}

/// Trains in the folder, stopping after step `stop` if there is one; gives the losses, bit by bit.
pub fn run_in(run: &mut RunDir, trainer: &mut Trainer, stop: Option<u64>) -> (Outcome, Vec<u64>) {
    let mut losses = vec![];
    let outcome = train(trainer, Some(run), &mut |event| match event {
        Event::Step(report) => {
            losses.push(report.loss.to_bits());
            if Some(report.step) == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
        _ => ControlFlow::Continue(()),
    });
    (outcome.unwrap(), losses)
}

/// Opens a run again with changes of its options, written as TOML; nothing in it may be damaged.
pub fn resume(root: &Path, changes: &str) -> Result<(RunDir, Trainer)> {
    let (run, trainer, damaged) = resume_damaged(root, changes)?;
    assert!(damaged.is_empty(), "{damaged:?}");
    Ok((run, trainer))
}

/// As [`resume`], with the errors of checkpoints that are damaged.
pub fn resume_damaged(root: &Path, changes: &str) -> Result<(RunDir, Trainer, Vec<Error>)> {
    let (trainer, run, damaged) = train::resume(root, &changes.parse().unwrap(), &Device::Cpu, &mut |_| {})?;
    Ok((run, trainer, damaged))
}

/// The steps that are made to the end.
pub fn steps(trainer: &mut Trainer, count: u64) -> Vec<f64> {
    (0..count).map(|_| step(trainer).unwrap()).collect()
}

/// One step; gives its loss.
pub fn step(trainer: &mut Trainer) -> Result<f64> {
    let batch = trainer.next_batch()?;
    Ok(trainer.step(&batch)?.loss)
}

/// The model's weights, tensor by tensor.
pub fn weights(trainer: &Trainer) -> Vec<Vec<f64>> {
    trainer.weights().values().map(values).collect()
}

/// The optimizer's state, tensor by tensor.
pub fn moments(trainer: &Trainer) -> Vec<Vec<f64>> {
    let tensors = trainer.tensors().unwrap();
    let kinds = ["first_moment.", "second_moment.", "momentum."];
    let is_state = |name: &String| kinds.iter().any(|kind| name.starts_with(kind));
    tensors.iter().filter(|(name, _)| is_state(name)).map(|(_, tensor)| values(tensor)).collect()
}

/// Overwrites a weight, which takes a trainer without a moving average.
pub fn set(trainer: &Trainer, name: &str, value: &Tensor) {
    trainer.weights()[name].slice_set(&value.contiguous().unwrap(), 0, 0).unwrap();
}

/// The lines of a run's metrics without their times.
pub fn metrics(root: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(root.join("training/metrics.jsonl")).unwrap();
    let without_seconds = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("seconds").unwrap();
        line
    };
    text.lines().map(without_seconds).collect()
}

#[test]
fn one_batch_overfits_to_near_zero() {
    let (tokenizer, corpus) = data();
    // One window is all there is to draw.
    let mut only_window = corpus;
    only_window.train = only_window.train.to_vec().unwrap()[..14].to_vec().into();
    let config = ModelConfig { embed_dim: 24, hidden_dim: 96, ..config(&tokenizer) };
    let options = TrainOptions { lr: 1e-2, min_lr: 1.0, weight_decay: 0.0, ..options(200) };
    let mut trainer = Trainer::new(&config, &options, only_window, &Device::Cpu).unwrap();
    let losses = steps(&mut trainer, 200);
    assert!((losses[0] - (config.vocab_size as f64).ln()).abs() < 0.2, "first loss {}", losses[0]);
    assert!(losses[199] < 0.01, "last loss {}", losses[199]);
}

#[test]
fn two_runs_of_one_seed_are_the_same_to_the_last_bit_and_of_two_seeds_are_not() {
    let losses = |seed| steps(&mut trainer(&TrainOptions { seed, ..options(12) }).1, 12);
    assert_eq!(losses(1), losses(1));
    assert_ne!(losses(1), losses(2));
}

#[test]
fn a_batch_that_does_not_fit_updates_nothing() {
    let (_, mut trainer) = trainer(&options(3));
    let before = weights(&trainer);
    let batch = trainer.next_batch().unwrap();
    let longer = Tensor::zeros((5, 14), candle_core::DType::U32, &Device::Cpu).unwrap();
    let none = batch.inputs.narrow(0, 0, 0).unwrap();
    for wrong in [
        Batch { targets: batch.targets.narrow(0, 0, 4).unwrap(), ..batch.clone() },
        Batch::from_tensors(longer.clone(), longer),
        Batch::from_tensors(none.clone(), none),
        Batch { inputs: (&batch.inputs + 999.0).unwrap(), ..batch.clone() },
    ] {
        assert!(trainer.step(&wrong).is_err(), "{wrong:?}");
    }
    assert!(trainer.steps_done() == 0 && weights(&trainer) == before);
    trainer.step(&batch).unwrap();
}

/// The losses, weights and moments after some steps of a batch of 6 in parts.
fn in_parts(shards: usize, accumulate: usize, threads: usize) -> (Vec<f64>, Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let options = TrainOptions { batch: 6, shards, accumulate, ..options(20) };
        let (tokenizer, corpus) = data();
        // With dropout, whose masks must belong to sequences and not to parts.
        let dropout = candle_attention::model::DropoutRates::all(0.3);
        let config = ModelConfig { dropout, ..config(&tokenizer) };
        let mut trainer = Trainer::new(&config, &options, corpus, &Device::Cpu).unwrap();
        (steps(&mut trainer, 20), weights(&trainer), moments(&trainer))
    })
}

#[test]
fn threads_leave_every_bit_as_it_is() {
    for (shards, accumulate) in [(1, 1), (2, 1), (5, 1), (2, 3)] {
        let one = in_parts(shards, accumulate, 1);
        for threads in [2, 5] {
            assert!(
                in_parts(shards, accumulate, threads) == one,
                "{shards} shards, {accumulate} parts, {threads} threads"
            );
        }
    }
}

#[test]
fn a_batch_in_parts_is_the_batch() {
    // Cut at the same places: to the last bit.
    for (shards, accumulate, same_shards) in [(1, 6, 6), (2, 3, 6), (3, 2, 6), (1, 3, 3), (2, 2, 4), (4, 3, 6)] {
        let parts = in_parts(shards, accumulate, 2);
        assert!(parts == in_parts(same_shards, 1, 2), "{shards} shards, {accumulate} parts");
    }
    // Otherwise the same sums in another order.
    let (one, ..) = in_parts(1, 1, 1);
    for (shards, accumulate) in [(2, 1), (5, 1), (1, 4)] {
        let (losses, ..) = in_parts(shards, accumulate, 1);
        for (step, (loss, expected)) in losses.iter().zip(&one).enumerate() {
            let label = format!("{shards} shards, {accumulate} parts, step {step}");
            assert!((loss - expected).abs() < 1e-4, "{label}: {loss}, expected {expected}");
        }
    }
}

#[test]
fn validation_builds_no_graph() {
    let (_, trainer) = trainer(&options(1));
    let ids = Tensor::new(&[[1u32, 2, 3]], &Device::Cpu).unwrap();
    assert!(!trainer.model().forward(&ids).unwrap().track_op());
}

#[test]
fn a_validation_can_be_broken_off_and_then_counts_for_nothing() {
    let (_, mut trainer) = trainer(&options(4));
    let mut told = vec![];
    let report = trainer.validate(&mut |done, total| {
        told.push((done, total));
        ControlFlow::Break(())
    });
    // 200 characters are held out: 15 windows of 13 and a target more, in one batch.
    assert_eq!((report.unwrap(), told, trainer.best()), (None, vec![(195, 195)], None));
    assert!(trainer.validate(&mut |_, _| ControlFlow::Continue(())).unwrap().unwrap().is_best);
}

#[test]
fn without_a_validation_text_a_run_saves_where_it_would_validate() {
    let (_, corpus) = data();
    let mut only_training = corpus;
    only_training.validation = vec![].into();
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let (tokenizer, _) = data();
    let mut run = RunDir::create(&root).unwrap();
    let mut trainer = Trainer::new(&config(&tokenizer), &options(6), only_training, &Device::Cpu).unwrap();
    run.begin(&tokenizer, &trainer, &toml::Table::new()).unwrap();
    let mut saved = vec![];
    let outcome = train(&mut trainer, Some(&mut run), &mut |event| {
        if let Event::Saved(step) = event {
            saved.push(step);
        }
        ControlFlow::Continue(())
    });
    assert_eq!((outcome.unwrap(), saved), (Outcome::Finished, vec![4, 6]));
    assert!(trainer.is_finished() && trainer.best().is_none() && metrics(&root).len() == 6);
}

#[test]
fn a_trained_model_generates_the_same_again_with_its_seed() {
    let (tokenizer, mut trainer) = trainer(&TrainOptions { lr: 1e-2, ..options(60) });
    steps(&mut trainer, 60);
    let prompt = tokenizer.encode("one").unwrap();
    let text = |seed| {
        let mut sampler = Sampler::new(SamplingOptions::default(), seed, 0).unwrap();
        let go_on = &mut |_| ControlFlow::Continue(());
        // Longer than the context.
        let ids = generate(trainer.model(), &prompt, 40, &mut sampler, go_on).unwrap();
        assert_eq!(ids.len(), 40);
        tokenizer.decode(&ids).unwrap()
    };
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
    let mut sampler = Sampler::new(SamplingOptions::default(), 1, 0).unwrap();
    let mut told = 0;
    let stop = &mut |_| {
        told += 1;
        if told == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    assert_eq!(generate(trainer.model(), &prompt, 40, &mut sampler, stop).unwrap().len(), 3);
    let go_on = &mut |_| ControlFlow::Continue(());
    assert!(generate(trainer.model(), &[], 4, &mut sampler, go_on).is_err());
    assert!(generate(trainer.model(), &[9999], 4, &mut sampler, go_on).is_err());
}
