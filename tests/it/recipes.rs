//! Training options: accumulation, schedules, averages, patience, statistics, bad steps, overfitting one batch.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use candle_attention::model::{CausalLm, DropoutRates, ForwardContext, ModelConfig};
use candle_attention::ops::CrossEntropyOptions;
use candle_attention::run::Run;
use candle_attention::text::BatchSampler;
use candle_attention::train::{
    Event, Outcome, Remedy, RunFolder, Schedule, StepOutcome, TrainOptions, Trainer, overfit_one_batch, train,
};
use candle_core::{DType, Device, Tensor, Var};
use serde::Deserialize;

use crate::support::values;
use crate::training::{config, data, options, resume, run_in, trainer, weights};

#[derive(Deserialize)]
struct Recipes {
    steps: u64,
    warmup_steps: u64,
    decay_steps: u64,
    learning_rate: f64,
    min_learning_rate: f64,
    schedules: BTreeMap<Schedule, Vec<f64>>,
    moving_average: MovingAverage,
}

#[derive(Deserialize)]
struct MovingAverage {
    decay: f64,
    weights: Vec<Vec<f64>>,
    averages: Vec<Vec<f64>>,
}

fn recipes() -> Recipes {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/recipes.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn schedules_are_torchs() {
    let recipes = recipes();
    assert_eq!(recipes.schedules.len(), 4);
    for (schedule, rates) in recipes.schedules {
        let Recipes { steps, warmup_steps, decay_steps, learning_rate, min_learning_rate, .. } = recipes;
        let options = TrainOptions {
            schedule,
            steps,
            warmup_steps,
            decay_steps,
            learning_rate,
            min_learning_rate,
            ..Default::default()
        };
        options.validate().unwrap();
        for (step, expected) in rates.iter().enumerate() {
            let got = options.learning_rate_at(step as u64);
            // torch goes from step to step, and gathers a rounding at each.
            let allowed = f64::EPSILON * learning_rate * 2.0 * steps as f64;
            assert!((got - expected).abs() <= allowed, "{schedule:?}, step {step}: {got}, expected {expected}");
        }
    }
}

/// The losses of some steps of a batch of 6 in parts, and the trainer after them.
fn in_parts(shards: usize, accumulate: usize, dropout: f64) -> (Vec<f64>, Trainer) {
    let (tokenizer, corpus) = data();
    let options = TrainOptions { batch_size: 6, shards, accumulate, ..options(8) };
    let config = ModelConfig { dropout: DropoutRates::all(dropout), ..config(&tokenizer) };
    let mut trainer = Trainer::new(&config, &options, corpus, &Device::Cpu).unwrap();
    let losses = (0..8).map(|_| trainer.train_step().unwrap().loss).collect();
    (losses, trainer)
}

#[test]
fn a_batch_in_parts_is_the_batch() {
    for dropout in [0.0, 0.3] {
        // Cut at the same places: to the last bit.
        for (shards, accumulate, same_shards) in [(1, 6, 6), (2, 3, 6), (3, 2, 6), (1, 3, 3), (2, 2, 4), (4, 3, 6)] {
            let (losses, parts) = in_parts(shards, accumulate, dropout);
            let (expected_losses, whole) = in_parts(same_shards, 1, dropout);
            assert_eq!(losses, expected_losses, "{shards} shards, {accumulate} parts");
            assert_eq!(weights(&parts), weights(&whole), "{shards} shards, {accumulate} parts");
            let moments = |trainer: &Trainer| trainer.moments().iter().map(|(_, m)| values(m)).collect::<Vec<_>>();
            assert_eq!(moments(&parts), moments(&whole));
        }
        // Otherwise the same sums in another order.
        let ((losses, _), (expected, _)) = (in_parts(1, 4, dropout), in_parts(1, 1, dropout));
        for (loss, expected) in losses.iter().zip(&expected) {
            assert!((loss - expected).abs() < 1e-5, "{losses:?}, expected {expected}");
        }
    }
}

#[test]
fn a_moving_average_is_torchs() {
    let MovingAverage { decay, weights: steps, averages } = recipes().moving_average;
    // The weights are set just before the average looks: a rate this small moves nothing that f32 can hold.
    let options = TrainOptions { ema: decay, learning_rate: 1e-12, min_learning_rate: 0.0, ..options(6) };
    let (_, mut trainer) = trainer(&options);
    let mut averaged = vec![];
    for step in &steps {
        let ema_step = set_and_step(&mut trainer, step);
        averaged.push(ema_step);
    }
    for (got, expected) in averaged.iter().zip(&averages) {
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6 * expected.abs().max(1.0), "{averaged:?}, expected {averages:?}");
        }
    }
}

/// Puts three numbers at the front of the position embedding, makes a step that moves nothing, and gives their average.
fn set_and_step(trainer: &mut Trainer, numbers: &[f64]) -> Vec<f64> {
    let name = "position_embedding.weight";
    let var = variable(trainer, name);
    let mut all = values(&var);
    all[..3].copy_from_slice(numbers);
    var.set(
        &Tensor::new(all.iter().map(|x| *x as f32).collect::<Vec<_>>(), &Device::Cpu)
            .unwrap()
            .reshape(var.shape())
            .unwrap(),
    )
    .unwrap();
    trainer.train_step().unwrap();
    values(&trainer.weights()[name])[..3].to_vec()
}

fn variable(trainer: &Trainer, name: &str) -> Var {
    trainer.parameters().vars().into_iter().find(|(its, _)| its == name).unwrap().1
}

#[test]
fn the_average_is_validated_saved_and_resumed() {
    let space = tempfile::tempdir().unwrap();
    let options = TrainOptions { ema: 0.8, ..options(11) };
    let (tokenizer, mut whole) = trainer(&options);
    let root = space.path().join("whole");
    let mut folder = RunFolder::create(&root, &tokenizer, &whole, "").unwrap();
    let (_, losses) = run_in(&mut folder, &mut whole, None);
    assert_eq!(whole.best().unwrap().step, 11);
    let ids = Tensor::new(&[[1u32, 2, 3]], &Device::Cpu).unwrap();
    let published = Run::open(&root, &Device::Cpu).unwrap().model.forward(&ids).unwrap();
    assert_eq!(values(&published), values(&whole.model().forward(&ids).unwrap()));
    let raw: BTreeMap<_, _> = whole.parameters().vars().into_iter().collect();
    assert!(whole.weights().iter().all(|(name, average)| values(average) != values(&raw[name])));

    let (_, mut part) = trainer(&options);
    let root = space.path().join("part");
    let mut folder = RunFolder::create(&root, &tokenizer, &part, "").unwrap();
    let (_, mut pieces) = run_in(&mut folder, &mut part, Some(6));
    drop(folder);
    let (mut folder, mut part) = resume(&root, &options).unwrap();
    pieces.extend(run_in(&mut folder, &mut part, None).1);
    assert_eq!(losses, pieces);
    assert_eq!(weights(&whole), weights(&part));
    let averages = |trainer: &Trainer| trainer.weights().values().map(values).collect::<Vec<_>>();
    assert_eq!(averages(&whole), averages(&part));
    assert_eq!(whole.best(), part.best());
}

#[test]
fn training_stops_early_once_patience_is_over_and_a_resumed_run_at_the_same_step() {
    let space = tempfile::tempdir().unwrap();
    // A rate this high ends worse than it was.
    let options = TrainOptions {
        learning_rate: 0.5,
        warmup_steps: 60,
        clip_norm: 0.0,
        eval_every: 2,
        patience: 3,
        ..options(60)
    };
    let (tokenizer, mut whole) = trainer(&options);
    let mut folder = RunFolder::create(&space.path().join("whole"), &tokenizer, &whole, "").unwrap();
    let (outcome, losses) = run_in(&mut folder, &mut whole, None);
    assert_eq!(outcome, Outcome::StoppedEarly);
    let best = whole.best().unwrap();
    assert_eq!(whole.step(), best.step + 3 * 2);
    assert!(whole.step() < 60);
    // Nothing goes on without more patience.
    assert_eq!(run_in(&mut folder, &mut whole, None), (Outcome::StoppedEarly, vec![]));

    let root = space.path().join("part");
    let (_, mut part) = trainer(&options);
    let mut folder = RunFolder::create(&root, &tokenizer, &part, "").unwrap();
    let (_, mut pieces) = run_in(&mut folder, &mut part, Some(best.step + 3));
    drop(folder);
    let (mut folder, mut part) = resume(&root, &options).unwrap();
    let (outcome, rest) = run_in(&mut folder, &mut part, None);
    pieces.extend(rest);
    assert_eq!((outcome, pieces), (Outcome::StoppedEarly, losses));
    drop(folder);
    let (mut folder, mut part) = resume(&root, &TrainOptions { patience: 4, ..options }).unwrap();
    let (_, more) = run_in(&mut folder, &mut part, None);
    assert!(!more.is_empty());
}

#[test]
fn statistics_are_the_norms_of_every_tensor() {
    let space = tempfile::tempdir().unwrap();
    let options = TrainOptions { statistics_every: 3, clip_norm: 1e-3, ..options(7) };
    let (tokenizer, mut watched) = trainer(&options);
    let (_, mut other) = trainer(&TrainOptions { statistics_every: 0, ..options.clone() });
    for step in 1..=7u64 {
        let before = weights(&other);
        let report = watched.train_step().unwrap();
        assert_eq!(other.train_step().unwrap(), report);
        assert!(other.statistics().is_none());
        let Some(statistics) = watched.statistics() else { continue };
        assert!(step.is_multiple_of(3) && statistics.step == step);
        let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
        let mut squares = 0.0;
        let after = weights(&other);
        for (i, (name, _)) in other.parameters().vars().iter().enumerate() {
            let got = statistics.statistics[name];
            let update: Vec<f64> = after[i].iter().zip(&before[i]).map(|(a, b)| a - b).collect();
            assert!((got.weight_norm / norm(&before[i]) - 1.0).abs() < 1e-6, "{name}: {got:?}");
            assert!((got.update_norm / norm(&update) - 1.0).abs() < 1e-4, "{name}: {got:?}, {}", norm(&update));
            assert_eq!(got.update_ratio, Some(got.update_norm / got.weight_norm));
            squares += got.gradient_norm * got.gradient_norm;
        }
        assert!((squares.sqrt() / report.gradient_norm - 1.0).abs() < 1e-12);
    }
    let (_, mut again) = trainer(&options);
    let root = space.path().join("run");
    let mut folder = RunFolder::create(&root, &tokenizer, &again, "").unwrap();
    run_in(&mut folder, &mut again, None);
    let metrics = std::fs::read_to_string(root.join("training/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().filter(|line| line.contains("\"statistics\":{\"blocks.0.")).count(), 2);
}

/// Finite weights with logits that are not.
fn overflow(trainer: &Trainer) {
    let var = variable(trainer, "norm.weight");
    let mut all: Vec<f32> = values(&var).iter().map(|x| *x as f32).collect();
    all[0] = f32::MAX;
    var.set(&Tensor::from_vec(all, var.shape(), &Device::Cpu).unwrap()).unwrap();
}

#[test]
fn a_bad_step_names_step_tensor_and_sequences_and_updates_nothing() {
    let (_, mut trainer) = trainer(&options(9));
    for _ in 0..2 {
        trainer.train_step().unwrap();
    }
    overflow(&trainer);
    let before = (weights(&trainer), trainer.moments().iter().map(|(_, m)| values(m)).collect::<Vec<_>>());
    let StepOutcome::Failed(bad) = trainer.next_step().unwrap() else { panic!("the step is not bad") };
    assert_eq!((bad.step, trainer.step(), bad.sequences.len()), (3, 2, 5));
    assert!(!bad.bad_sequences.is_empty() && bad.bad_sequences.iter().all(|start| bad.sequences.contains(start)));
    let message = trainer.train_step().unwrap_err().to_string();
    for expected in ["step 3: the norm of the gradient of ", "the loss is", "start at tokens", "lower learning rate"] {
        assert!(message.contains(expected), "{message}");
    }
    assert_eq!(before.0, weights(&trainer));
    assert_eq!(before.1, trainer.moments().iter().map(|(_, m)| values(m)).collect::<Vec<_>>());
}

/// What a failing run has reported.
#[derive(Debug, Default)]
struct Failed {
    message: String,
    remedy: Option<Remedy>,
    saved: Vec<u64>,
}

/// Trains until it fails; `on_step` can change things after each step, or break off.
fn fail(trainer: &mut Trainer, folder: &mut RunFolder, on_step: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Failed {
    let mut failed = Failed::default();
    let outcome = train(trainer, Some(folder), &mut |event| {
        match event {
            Event::Step(report) => return on_step(report.step),
            Event::Saved(step) => failed.saved.push(step),
            Event::Failed(remedy) => failed.remedy = Some(remedy),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    failed.message = outcome.unwrap_err().to_string();
    failed
}

fn metrics(root: &Path) -> Vec<serde_json::Value> {
    let metrics = std::fs::read_to_string(root.join("training/metrics.jsonl")).unwrap();
    metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Resuming from a later state would fail again, whatever the rate.
#[test]
fn a_run_that_diverges_keeps_the_last_checkpoint() {
    let space = tempfile::tempdir().unwrap();
    for (value, saves_often) in [(f32::NAN, false), (f32::NAN, true), (f32::MAX, false), (f32::MAX, true)] {
        let label = format!("{value}, {saves_often}");
        let root = space.path().join(&label);
        let options = TrainOptions { eval_every: 50, ..options(9) };
        let (tokenizer, mut trainer) = trainer(&options);
        let mut folder = RunFolder::create(&root, &tokenizer, &trainer, "").unwrap();
        if saves_often {
            folder.set_save_interval(Duration::ZERO);
        }
        let norm = variable(&trainer, "norm.weight");
        let failed = fail(&mut trainer, &mut folder, &mut |step| {
            if step == 5 {
                norm.set(&Tensor::full(value, norm.shape(), &Device::Cpu).unwrap()).unwrap();
            }
            ControlFlow::Continue(())
        });
        let message = failed.message;
        assert!(message.contains("step 6: ") && message.contains("all are bad"), "{label}: {message}");
        assert!(message.ends_with("training has diverged, and a lower learning rate may help"), "{label}: {message}");
        assert_eq!(message.contains("as norm.weight became non-finite"), value.is_nan(), "{label}: {message}");
        assert_eq!(failed.remedy, Some(Remedy::LowerRate), "{label}");
        assert_eq!(failed.saved, if saves_often { vec![1, 2, 3, 4] } else { vec![] }, "{label}");
        let last = metrics(&root).pop().unwrap();
        assert!(last["step"] == 6 && last["failed"].as_str().unwrap().contains("start at tokens"), "{last}");
        drop(folder);
        let (mut folder, mut trainer) = resume(&root, &options).unwrap();
        assert_eq!(trainer.step(), if saves_often { 4 } else { 0 }, "{label}");
        assert_eq!(run_in(&mut folder, &mut trainer, None).0, Outcome::Finished);
        assert!(metrics(&root).iter().all(|line| line.get("failed").is_none()));
    }
}

/// As one that goes on: what an interrupt would save could not be resumed.
#[test]
fn an_interrupted_run_that_has_diverged_keeps_the_last_checkpoint() {
    let space = tempfile::tempdir().unwrap();
    for (value, cause) in [(f32::MAX, "all are bad"), (0.0, "all gradients are zero")] {
        let root = space.path().join(cause);
        let options = TrainOptions { eval_every: 50, ..options(9) };
        let (tokenizer, mut trainer) = trainer(&options);
        let mut folder = RunFolder::create(&root, &tokenizer, &trainer, "").unwrap();
        let vars = trainer.parameters().vars();
        let failed = fail(&mut trainer, &mut folder, &mut |step| {
            if step < 5 {
                return ControlFlow::Continue(());
            }
            // A norm that overflows, or weights that let no gradient through.
            for (_, var) in vars.iter().filter(|(name, _)| value == 0.0 || name == "norm.weight") {
                var.set(&Tensor::full(value, var.shape(), &Device::Cpu).unwrap()).unwrap();
            }
            ControlFlow::Break(())
        });
        assert!(failed.message.contains("step 6: ") && failed.message.contains(cause), "{}", failed.message);
        assert_eq!((failed.remedy, failed.saved), (Some(Remedy::LowerRate), vec![]));
        drop(folder);
        let (mut folder, mut trainer) = resume(&root, &options).unwrap();
        assert_eq!(trainer.step(), 0);
        assert_eq!(run_in(&mut folder, &mut trainer, None).0, Outcome::Finished);
    }
}

#[test]
fn weights_that_are_not_finite_are_never_saved() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let options = TrainOptions { eval_every: 50, ..options(9) };
    let (tokenizer, mut trainer) = trainer(&options);
    let mut folder = RunFolder::create(&root, &tokenizer, &trainer, "").unwrap();
    let norm = variable(&trainer, "norm.weight");
    let failed = fail(&mut trainer, &mut folder, &mut |step| {
        if step < 5 {
            return ControlFlow::Continue(());
        }
        norm.set(&Tensor::full(f32::NAN, norm.shape(), &Device::Cpu).unwrap()).unwrap();
        ControlFlow::Break(())
    });
    assert!(failed.message.contains("step 5: norm.weight is no longer finite"), "{}", failed.message);
    assert_eq!((failed.remedy, failed.saved), (Some(Remedy::LowerRate), vec![]));
    assert!(metrics(&root).pop().unwrap()["failed"].as_str().unwrap().contains("norm.weight is no longer finite"));
    drop(folder);
    assert_eq!(resume(&root, &options).unwrap().1.step(), 0);
}

/// Breaks all texts with this letter in an embedding; gives the embedding before.
fn spoil(embedding: &Var, letter: &str) -> Tensor {
    let good = embedding.as_tensor().copy().unwrap();
    let id = data().0.encode(letter).unwrap()[0];
    let huge = Tensor::full(3e38f32, (1, good.dim(1).unwrap()), &Device::Cpu).unwrap();
    embedding.slice_set(&huge, 0, id as usize).unwrap();
    good
}

/// How many sequences of the batch after step `step` contain the letter.
fn sequences_with(trainer: &Trainer, step: u64, letter: &str) -> usize {
    let options = trainer.options();
    let sampler = BatchSampler { seed: options.seed, batch_size: options.batch_size, context_len: 13 };
    let (batch, id) = (sampler.batch(&trainer.corpus().train, step).unwrap(), data().0.encode(letter).unwrap()[0]);
    batch.inputs.chunks(13).filter(|sequence| sequence.contains(&id)).count()
}

const LETTERS: [&str; 7] = ["x", "v", "g", "w", "u", "h", "."];

/// With some good sequences the data is at fault, and nothing that was learned is lost: whether the run comes to the
/// batch or is interrupted before it.
#[test]
fn the_state_before_a_batch_with_some_bad_sequences_is_saved() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let interrupted = space.path().join("interrupted");
    let options = TrainOptions { eval_every: 50, ..options(9) };
    let mut trainer = untied(&options);
    let letter = LETTERS.into_iter().find(|letter| (1..3).contains(&sequences_with(&trainer, 5, letter))).unwrap();
    let mut other = untied(&options);
    let mut folder = RunFolder::create(&interrupted, &data().0, &other, "").unwrap();
    let embedding = variable(&other, "token_embedding.weight");
    let outcome = train(&mut other, Some(&mut folder), &mut |event| match event {
        Event::Step(report) if report.step == 5 => {
            spoil(&embedding, letter);
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    assert_eq!(outcome.unwrap(), Outcome::Interrupted);
    drop(folder);
    assert_eq!(resume(&interrupted, &options).unwrap().1.step(), 5);

    let mut folder = RunFolder::create(&root, &data().0, &trainer, "").unwrap();
    let embedding = variable(&trainer, "token_embedding.weight");
    let failed = fail(&mut trainer, &mut folder, &mut |step| {
        if step == 5 {
            spoil(&embedding, letter);
        }
        ControlFlow::Continue(())
    });
    let message = failed.message;
    assert!(message.contains("step 6: ") && message.contains("those that start at tokens"), "{message}");
    assert!(message.ends_with("skip_bad_steps leaves such batches out, and a lower learning rate may avoid them"));
    assert_eq!((failed.remedy, failed.saved), (Some(Remedy::SkipOrLowerRate), vec![5]));
    drop(folder);
    let (_folder, mut trainer) = resume(&root, &TrainOptions { skip_bad_steps: 1, ..options }).unwrap();
    assert_eq!(trainer.step(), 5);
    assert_eq!(metrics(&root).pop().unwrap()["step"], 6);
    assert!(matches!(trainer.next_step().unwrap(), StepOutcome::Skipped(_)));
}

/// Whether or not the next batch would be bad.
#[test]
fn after_a_validation_that_is_not_finite_nothing_is_saved() {
    let space = tempfile::tempdir().unwrap();
    let options = options(12);
    let probe = untied(&options);
    let letter = |is_in_batch| {
        LETTERS.into_iter().find(|letter| (sequences_with(&probe, 8, letter) > 0) == is_in_batch).unwrap()
    };
    for (n, (letter, saves_often)) in
        [(letter(false), false), (letter(true), false), (letter(false), true)].into_iter().enumerate()
    {
        let root = space.path().join(format!("run-{n}"));
        let mut trainer = untied(&options);
        let mut folder = RunFolder::create(&root, &data().0, &trainer, "").unwrap();
        if saves_often {
            folder.set_save_interval(Duration::ZERO);
        }
        let (embedding, mut good) = (variable(&trainer, "token_embedding.weight"), None);
        let failed = fail(&mut trainer, &mut folder, &mut |step| {
            if step == 8 {
                good = Some(spoil(&embedding, letter));
            }
            ControlFlow::Continue(())
        });
        let (message, cause) = (failed.message, "first in the window that starts at its token");
        assert!(message.contains("step 8: the validation loss is NaN") && message.contains(cause), "{message}");
        let remedy = if saves_often { Remedy::StartAnew } else { Remedy::LowerRate };
        assert_eq!((failed.remedy, message.contains(&remedy.to_string())), (Some(remedy), true), "{message}");
        let last = metrics(&root).pop().unwrap();
        assert!(last["step"] == 8 && last["failed"].as_str().unwrap().contains(cause), "{last}");
        drop(folder);
        let (mut folder, mut trainer) = resume(&root, &options).unwrap();
        // Saved before the validation, or after the one before.
        assert_eq!((trainer.step(), trainer.validation_is_pending()), if saves_often { (8, true) } else { (4, false) });
        folder.begin(&mut trainer).unwrap();
        assert!(metrics(&root).iter().all(|line| line.get("failed").is_none()));
        if saves_often {
            variable(&trainer, "token_embedding.weight").set(&good.unwrap()).unwrap();
        }
        assert_eq!(run_in(&mut folder, &mut trainer, None).0, Outcome::Finished);
    }
}

/// Where the last checkpoint is old, a long validation is preceded by another.
#[test]
fn a_state_is_saved_before_a_validation_that_may_take_long() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let (tokenizer, mut trainer) = trainer(&options(4));
    let mut folder = RunFolder::create(&root, &tokenizer, &trainer, "").unwrap();
    folder.set_save_interval(Duration::ZERO);
    let mut seen = vec![];
    let outcome = train(&mut trainer, Some(&mut folder), &mut |event| {
        let current = std::fs::read_to_string(root.join("training/current")).unwrap();
        match event {
            Event::Step(report) if report.step == 4 => seen.push(("step", current)),
            Event::Validating { done: 0, .. } => seen.push(("validating", current)),
            Event::Saved(4) => seen.push(("saved", current)),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    let [before, unvalidated, validated] =
        ["step-00000003\n", "step-00000004-unvalidated\n", "step-00000004\n"].map(String::from);
    let expected =
        [("step", before), ("saved", unvalidated.clone()), ("validating", unvalidated), ("saved", validated)];
    assert_eq!(seen, expected);
    assert!(!root.join("training/step-00000004-unvalidated").exists());
}

/// A run whose steps 3 and 4 are bad: the weights are broken and repaired from outside.
fn run_with_bad_steps(
    root: &Path,
    options: &TrainOptions,
    stop: Option<u64>,
) -> candle_core::Result<(Outcome, Vec<u64>)> {
    let is_new = !RunFolder::exists(root);
    let (mut folder, mut trainer) = match is_new {
        true => {
            let (tokenizer, trainer) = trainer(options);
            (RunFolder::create(root, &tokenizer, &trainer, "").unwrap(), trainer)
        }
        false => resume(root, options).unwrap(),
    };
    let parameters = trainer.parameters().clone();
    let norm = move || parameters.vars().into_iter().find(|(name, _)| name == "norm.weight").unwrap().1;
    let (mut good, mut skipped) = (None, vec![]);
    let outcome = train(&mut trainer, Some(&mut folder), &mut |event| {
        let step = match event {
            Event::Step(report) => report.step,
            Event::Skipped(bad) => {
                skipped.push(bad.step);
                bad.step
            }
            _ => return ControlFlow::Continue(()),
        };
        if step == 2 {
            good = Some(norm().as_tensor().copy().unwrap());
            norm().set(&norm().ones_like().unwrap().affine(f64::from(f32::MAX), 0.0).unwrap()).unwrap();
        }
        if step == 4 {
            norm().set(good.as_ref().unwrap()).unwrap();
        }
        if Some(step) == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok((outcome, skipped))
}

#[test]
fn bad_steps_are_skipped_counted_and_logged() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let options = TrainOptions { skip_bad_steps: 2, eval_every: 50, ..options(8) };
    assert_eq!(run_with_bad_steps(&root, &options, Some(6)).unwrap(), (Outcome::Interrupted, vec![3, 4]));
    let (folder, trainer) = resume(&root, &options).unwrap();
    assert_eq!((trainer.step(), trainer.counters().skipped, trainer.counters().skipped_in_a_row), (6, 2, 0));
    drop(folder);
    let metrics = std::fs::read_to_string(root.join("training/metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let skipped: Vec<_> = lines.iter().filter(|line| line.get("skipped").is_some()).collect();
    assert_eq!(skipped.len(), 2);
    assert_eq!((&skipped[1]["step"], &skipped[1]["skipped_steps"]), (&4.into(), &2.into()));
    assert_eq!(lines.len(), 6);

    // One more in a row than allowed.
    let root = space.path().join("less");
    let error = run_with_bad_steps(&root, &TrainOptions { skip_bad_steps: 1, ..options.clone() }, None).unwrap_err();
    assert!(error.to_string().contains("step 4: "), "{error}");
    // No sequence of that step was good: nothing is saved since the start.
    let less = TrainOptions { skip_bad_steps: 1, ..options };
    let (_folder, trainer) = resume(&root, &less).unwrap();
    assert_eq!((trainer.step(), trainer.counters().skipped, trainer.counters().skipped_in_a_row), (0, 0, 0));
}

/// A skipped step has no influence on the bias correction of the moments.
#[test]
fn a_skipped_step_leaves_the_moments_as_if_it_had_not_been() {
    let options = TrainOptions { skip_bad_steps: 1, warmup_steps: 0, schedule: Schedule::Constant, ..options(9) };
    let (_, mut skipping) = trainer(&options);
    let norm = variable(&skipping, "norm.weight");
    let good = norm.as_tensor().copy().unwrap();
    norm.set(&good.affine(f64::from(f32::MAX), 0.0).unwrap()).unwrap();
    assert!(matches!(skipping.next_step().unwrap(), StepOutcome::Skipped(_)));
    norm.set(&good).unwrap();
    let report = skipping.train_step().unwrap();
    assert_eq!(report.step, 2);

    // The same batch as a first step.
    let (_, mut first) = trainer(&options);
    let sampler = BatchSampler { seed: options.seed, batch_size: options.batch_size, context_len: 13 };
    let batch = sampler.batch(&first.corpus().train, 1).unwrap();
    first.train_step_on(&batch).unwrap();
    assert_eq!(weights(&first), weights(&skipping));
}

#[test]
fn a_rate_so_high_that_it_diverges_is_named_and_a_lower_one_goes_on_to_the_end() {
    let space = tempfile::tempdir().unwrap();
    for (learning_rate, save_every) in [(1e30, 600), (1e5, 600), (1e5, 0), (100.0, 0)] {
        let root = space.path().join(format!("{learning_rate}-{save_every}"));
        let wild = TrainOptions { learning_rate, clip_norm: 0.0, warmup_steps: 0, ..options(40) };
        let (tokenizer, mut trainer) = trainer(&wild);
        let mut folder = RunFolder::create(&root, &tokenizer, &trainer, "").unwrap();
        folder.set_save_interval(Duration::from_secs(save_every));
        let error = train(&mut trainer, Some(&mut folder), &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(error.contains("step ") && error.contains("a lower learning rate may help"), "{error}");
        drop(folder);
        let tame = TrainOptions { learning_rate: 1e-3, min_learning_rate: 1e-4, clip_norm: 1.0, ..wild };
        let (mut folder, mut trainer) = resume(&root, &tame).unwrap();
        assert_eq!(trainer.options(), &tame);
        assert_eq!(run_in(&mut folder, &mut trainer, None).0, Outcome::Finished, "{learning_rate}, {save_every}");
    }
}

/// A model whose head is not its token embedding.
fn untied(options: &TrainOptions) -> Trainer {
    let (tokenizer, corpus) = data();
    let config = ModelConfig { tie_embeddings: false, ..config(&tokenizer) };
    Trainer::new(&config, options, corpus, &Device::Cpu).unwrap()
}

#[test]
fn a_gradient_whose_square_is_beyond_f32_is_bad_unless_it_is_clipped() {
    // Clipped to 1e20, its square is still too large.
    for (clip_norm, is_bad) in [(0.0, true), (1e20, true), (1e19, false), (1.0, false)] {
        let mut trainer = untied(&TrainOptions { clip_norm, ..options(9) });
        // Scaled down and up again, the logits stay as they are, and the gradient of the norm does not.
        for (name, factor) in [("norm.weight", 1e-25), ("head.weight", 1e25)] {
            let var = variable(&trainer, name);
            var.set(&var.affine(factor, 0.0).unwrap()).unwrap();
        }
        match trainer.next_step().unwrap() {
            StepOutcome::Failed(bad) => {
                assert!(is_bad && bad.reason.contains("norm.weight") && bad.reason.contains("square"), "{bad:?}");
                assert_eq!(bad.bad_sequences, bad.sequences);
            }
            outcome => assert!(!is_bad, "{outcome:?}"),
        }
        let moments = trainer.moments();
        assert!(moments.iter().all(|(_, moment)| values(moment).iter().all(|x| x.is_finite())), "{clip_norm}");
    }
}

#[test]
fn the_sequences_that_are_bad_are_named() {
    let options = options(9);
    let mut trainer = untied(&options);
    let (tokenizer, corpus) = data();
    let id = tokenizer.encode("x").unwrap()[0];
    let sampler = BatchSampler { seed: options.seed, batch_size: options.batch_size, context_len: 13 };
    let batch = sampler.batch(&corpus.train, 0).unwrap();
    let has_it = |row: &usize| batch.inputs[row * 13..(row + 1) * 13].contains(&id);
    let expected: Vec<usize> = (0..5).filter(has_it).map(|row| batch.starts[row]).collect();
    assert!(!expected.is_empty() && expected.len() < 5, "the test needs a batch with the letter in some sequences");

    spoil(&variable(&trainer, "token_embedding.weight"), "x");
    let StepOutcome::Failed(bad) = trainer.next_step().unwrap() else { panic!("the step is not bad") };
    assert_eq!((&bad.bad_sequences, &bad.sequences), (&expected, &batch.starts));
    let listed: Vec<String> = expected.iter().map(usize::to_string).collect();
    let expected = format!("of the batch's 5 sequences those that start at tokens {} are bad", listed.join(", "));
    assert!(bad.to_string().contains(&expected), "{bad}");
}

#[test]
fn one_batch_is_learned_by_heart_or_not() {
    let (tokenizer, corpus) = data();
    let config = ModelConfig { embed_dim: 24, hidden_dim: 96, ..config(&tokenizer) };
    let options =
        TrainOptions { steps: 400, learning_rate: 1e-2, warmup_steps: 10, label_smoothing: 0.1, ..options(400) };
    let run = |options: &TrainOptions| {
        let mut trainer = Trainer::new(&config, options, corpus.clone(), &Device::Cpu).unwrap();
        overfit_one_batch(&mut trainer, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    let report = run(&options.for_overfitting());
    assert!(report.succeeded() && report.steps < 400, "{report:?}");
    assert!(report.last_loss < report.lowest_possible + 0.05 && report.first_loss > 2.0, "{report:?}");
    // A rate that teaches nothing.
    let report = run(&TrainOptions { learning_rate: 1e-9, steps: 20, ..options }.for_overfitting());
    assert!(!report.succeeded() && report.steps == 20, "{report:?}");
}

/// Of two projections of zeros, one after the other, neither has a gradient.
fn silence(trainer: &Trainer) {
    set_to_zero(&silent(trainer));
}

fn silent(trainer: &Trainer) -> [Var; 2] {
    ["blocks.1.mlp.down_proj.weight", "blocks.1.mlp.up_proj.weight"].map(|name| variable(trainer, name))
}

fn set_to_zero(vars: &[Var]) {
    vars.iter().for_each(|var| var.set(&var.zeros_like().unwrap()).unwrap());
}

/// Trains with these projections set to zero before each step, as earlier moments would move them.
fn run_silenced(folder: &mut RunFolder, trainer: &mut Trainer, stop: Option<u64>) -> candle_core::Result<Outcome> {
    let vars = silent(trainer);
    set_to_zero(&vars);
    train(trainer, Some(folder), &mut |event| match event {
        Event::Step(report) => {
            set_to_zero(&vars);
            if Some(report.step) == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
        _ => ControlFlow::Continue(()),
    })
}

#[test]
fn a_short_run_with_a_skipped_step_is_audited_all_the_same() {
    let options = TrainOptions { skip_bad_steps: 1, ..options(4) };
    for (is_silent, expected) in [(true, "after 3 steps the gradient is still zero at blocks.1.mlp"), (false, "")] {
        let (_, mut trainer) = trainer(&options);
        if is_silent {
            silence(&trainer);
        }
        let norm = variable(&trainer, "norm.weight");
        let good = norm.as_tensor().copy().unwrap();
        overflow(&trainer);
        let outcome = train(&mut trainer, None, &mut |event| {
            if let Event::Skipped(_) = event {
                norm.set(&good).unwrap();
            }
            ControlFlow::Continue(())
        });
        assert_eq!((trainer.step(), trainer.counters().skipped), (4, 1));
        let message = outcome.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(message.contains(expected) && message.is_empty() != is_silent, "{message}");
    }
}

#[test]
fn before_the_gradient_audit_ends_a_run_what_is_good_is_saved() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let options = TrainOptions { eval_every: 50, ..options(20) };
    let (tokenizer, mut trainer) = trainer(&options);
    silence(&trainer);
    let mut folder = RunFolder::create(&root, &tokenizer, &trainer, "").unwrap();
    let error = train(&mut trainer, Some(&mut folder), &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("gradient audit: after 10 steps"), "{error}");
    drop(folder);
    assert_eq!(resume(&root, &options).unwrap().1.step(), 9);
}

/// However many sessions there were before.
#[test]
fn every_session_is_audited() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let options = options(30);
    let (tokenizer, mut first) = trainer(&options);
    let mut folder = RunFolder::create(&root, &tokenizer, &first, "").unwrap();
    run_in(&mut folder, &mut first, Some(12));
    // A session that is too short for a verdict, and one that is not.
    drop(folder);
    let (mut folder, mut second) = resume(&root, &options).unwrap();
    assert_eq!(run_silenced(&mut folder, &mut second, Some(15)).unwrap(), Outcome::Interrupted);
    drop(folder);
    let (mut folder, mut third) = resume(&root, &options).unwrap();
    let error = run_silenced(&mut folder, &mut third, None).unwrap_err().to_string();
    assert!(error.contains("gradient audit: after 10 steps the gradient is still zero at"), "{error}");
    assert_eq!(third.step(), 24);
    // The last session is shorter than the audit.
    drop(folder);
    let (mut folder, mut last) = resume(&root, &TrainOptions { steps: 27, ..options }).unwrap();
    let error = run_silenced(&mut folder, &mut last, None).unwrap_err().to_string();
    assert!(error.contains("gradient audit: after 3 steps the gradient is still zero at"), "{error}");
    let last = metrics(&root).pop().unwrap();
    assert!(last["failed"].as_str().unwrap().starts_with("gradient audit: after 3 steps"), "{last}");
}

#[test]
fn a_run_that_stops_early_is_audited() {
    // At this rate nothing changes, and the second validation is no better than the first.
    let options =
        TrainOptions { learning_rate: 1e-30, min_learning_rate: 0.0, eval_every: 1, patience: 1, ..options(30) };
    for is_silent in [false, true] {
        let (_, mut trainer) = trainer(&options);
        if is_silent {
            silence(&trainer);
        }
        let outcome = train(&mut trainer, None, &mut |_| ControlFlow::Continue(()));
        assert_eq!(trainer.step(), 2);
        match outcome {
            Ok(outcome) => assert!(!is_silent && outcome == Outcome::StoppedEarly),
            Err(error) => assert!(is_silent && error.to_string().contains("gradient audit: after 2 steps"), "{error}"),
        }
    }
}

/// Model and first batch of a trainer, for its loss and gradients by candle.
fn loss_of_first_batch(trainer: &Trainer, options: &CrossEntropyOptions) -> Tensor {
    let model = CausalLm::new(trainer.config(), trainer.parameters().var_builder(DType::F32, &Device::Cpu)).unwrap();
    let batch = trainer.options().sampler_at(0, 13).batch(&trainer.corpus().train, 0).unwrap();
    let ids = batch.inputs_tensor(&Device::Cpu).unwrap();
    let targets = batch.targets_tensor(&Device::Cpu).unwrap();
    model.loss_with(&ids, &targets, options, &ForwardContext::default()).unwrap()
}

#[test]
fn statistics_have_the_norm_of_each_gradient_under_its_name() {
    let (_, mut trainer) = trainer(&TrainOptions { statistics_every: 1, ..options(3) });
    let gradients = loss_of_first_batch(&trainer, &Default::default()).backward().unwrap();
    let vars = trainer.parameters().vars();
    let norm = |var: &Var| values(gradients.get(var).unwrap()).iter().map(|x| x * x).sum::<f64>().sqrt();
    let expected: BTreeMap<String, f64> = vars.iter().map(|(name, var)| (name.clone(), norm(var))).collect();
    trainer.train_step().unwrap();
    let statistics = &trainer.statistics().unwrap().statistics;
    assert_eq!(statistics.len(), expected.len());
    for (name, expected) in &expected {
        let got = statistics[name].gradient_norm;
        assert!((got / expected - 1.0).abs() < 1e-4, "{name}: {got}, expected {expected}");
    }
    // No two are alike, so none can stand for another.
    let mut sorted: Vec<f64> = expected.into_values().collect();
    sorted.sort_by(f64::total_cmp);
    assert!(sorted.windows(2).all(|pair| pair[1] / pair[0] > 1.001), "{sorted:?}");
}

#[test]
fn label_smoothing_and_z_loss_are_part_of_training_and_not_of_validation() {
    let plain = {
        let (_, mut trainer) = trainer(&options(3));
        (trainer.validate().unwrap().validation_loss, trainer.train_step().unwrap().loss)
    };
    for (label_smoothing, z_loss) in [(0.3, 0.0), (0.0, 0.1)] {
        let (_, mut trainer) = trainer(&TrainOptions { label_smoothing, z_loss, ..options(3) });
        assert_eq!(trainer.validate().unwrap().validation_loss, plain.0);
        let options = CrossEntropyOptions { label_smoothing, z_loss, ..Default::default() };
        let expected = f64::from(loss_of_first_batch(&trainer, &options).to_scalar::<f32>().unwrap());
        let loss = trainer.train_step().unwrap().loss;
        assert!((loss - expected).abs() < 1e-5, "{loss}, expected {expected}");
        assert!((loss - plain.1).abs() > 1e-3, "{loss}, without {}", plain.1);
    }
}

#[test]
fn options_of_an_older_checkpoint_are_read_with_the_defaults_of_today() {
    let old = r#"{"steps":7,"batch_size":5,"shards":2,"learning_rate":0.001,"min_learning_rate":0.0001,"warmup_steps":3,
        "beta1":0.9,"beta2":0.99,"eps":1e-8,"weight_decay":0.1,"clip_norm":1.0,"eval_every":4,"seed":1}"#;
    let read: TrainOptions = serde_json::from_str(old).unwrap();
    assert_eq!(
        read,
        TrainOptions { steps: 7, batch_size: 5, shards: 2, warmup_steps: 3, eval_every: 4, ..read.clone() }
    );
    assert_eq!((read.accumulate, read.schedule, read.ema, read.skip_bad_steps), (1, Schedule::Cosine, 0.0, 0));
}
