//! Training options: schedules, averages, patience, statistics, label smoothing, overfitting one batch.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use candle_attention::generate::Pipeline;
use candle_attention::model::{CausalLm, ForwardContext, ModelConfig};
use candle_attention::nn::Parameters;
use candle_attention::ops::CrossEntropyOptions;
use candle_attention::optim::Schedule;
use candle_attention::train::{Outcome, TrainOptions, Trainer, overfit_one_batch};
use candle_core::{DType, Device, Tensor, Var};
use serde::Deserialize;

use crate::support::values;
use crate::training::{config, data, metrics, moments, new_run, options, resume, run_in, set, step, trainer, weights};

#[derive(Deserialize)]
struct Recipes {
    steps: u64,
    warmup_steps: u64,
    decay_steps: u64,
    learning_rate: f64,
    min_learning_rate: f64,
    schedules: BTreeMap<String, Vec<f64>>,
}

/// `tests/fixtures/recipes.py` asks torch.
fn recipes() -> Recipes {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/recipes.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn schedules_are_torchs() {
    let Recipes { steps, warmup_steps, decay_steps, learning_rate, min_learning_rate, schedules, .. } = recipes();
    assert_eq!(schedules.len(), 4);
    for (name, rates) in schedules {
        let schedule: Schedule = serde_json::from_value(name.clone().into()).unwrap();
        let fraction = |part: u64| part as f64 / steps as f64;
        let options = TrainOptions {
            schedule,
            steps,
            warmup: fraction(warmup_steps),
            decay: fraction(decay_steps),
            lr: learning_rate,
            min_lr: min_learning_rate / learning_rate,
            ..Default::default()
        };
        options.validate().unwrap();
        for (step, expected) in rates.iter().enumerate() {
            let got = options.lr * options.lr_schedule().factor(step as u64);
            // torch goes from step to step, and gathers a rounding at each.
            let allowed = f64::EPSILON * learning_rate * 2.0 * steps as f64;
            assert!((got - expected).abs() <= allowed, "{name}, step {step}: {got}, expected {expected}");
        }
    }
}

#[test]
fn a_step_is_made_at_the_rate_of_its_schedule() {
    let options = TrainOptions { schedule: Schedule::Linear, min_lr: 0.5, ..options(6) };
    let (_, mut trainer) = trainer(&options);
    let rates: Vec<f64> = (0..6)
        .map(|_| {
            let batch = trainer.next_batch().unwrap();
            trainer.step(&batch).unwrap().learning_rate
        })
        .collect();
    let expected = [0.25, 0.5, 0.75, 1.0, 1.0 - 0.5 / 3.0, 1.0 - 1.0 / 3.0];
    for (got, expected) in rates.iter().zip(expected) {
        assert!((got / 1e-3 - expected).abs() < 1e-12, "{rates:?}");
    }
}

#[test]
fn the_average_is_validated_saved_and_resumed() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let options = TrainOptions { average: 0.4, ..options(11) };
    let (mut run, mut averaged) = new_run(&root, &options);
    run_in(&mut run, &mut averaged, None);
    assert_eq!(averaged.best().unwrap().step, 11);
    let ids = Tensor::new(&[[1u32, 2, 3]], &Device::Cpu).unwrap();
    let published = Pipeline::open(&root, &Device::Cpu).unwrap().model.forward(&ids).unwrap();
    assert_eq!(values(&published), values(&averaged.model().forward(&ids).unwrap()));
    // The weights in training are those of a run without an average, and not the average.
    let (mut other_run, mut plain) = new_run(&space.path().join("other"), &TrainOptions { average: 0.0, ..options });
    let mut expected: Vec<Vec<f64>> = vec![];
    for step in 1..=11 {
        run_in(&mut other_run, &mut plain, Some(step));
        // 0.4 of 11 are 4 steps.
        let n = step.min(4) as f64;
        let moved = |(average, weight): (&f64, &f64)| average + (weight - average) / n;
        expected = match step {
            1 => weights(&plain),
            _ => expected.iter().zip(weights(&plain)).map(|(x, y)| x.iter().zip(&y).map(moved).collect()).collect(),
        };
    }
    assert_eq!(moments(&averaged), moments(&plain));
    for (got, expected) in weights(&averaged).concat().into_iter().zip(expected.concat()) {
        // Each of eleven updates rounds.
        let allowed = 11.0 * f64::from(f32::EPSILON) * expected.abs().max(1.0);
        assert!((got - expected).abs() <= allowed, "{got}, expected {expected}");
    }
    drop(run);
    let (_run, resumed) = resume(&root, "").unwrap();
    assert_eq!(weights(&resumed), weights(&averaged));
}

#[test]
fn training_stops_early_once_patience_is_over_and_a_resumed_run_at_the_same_step() {
    let space = tempfile::tempdir().unwrap();
    // A rate this high ends worse than it was.
    let options = TrainOptions { lr: 0.5, warmup: 1.0, clip: 0.0, eval_every: Some(2), patience: 3, ..options(60) };
    let (mut run, mut whole) = new_run(&space.path().join("whole"), &options);
    let (outcome, losses) = run_in(&mut run, &mut whole, None);
    assert_eq!(outcome, Outcome::StoppedEarly);
    let best = whole.best().unwrap();
    assert_eq!((whole.steps_done(), whole.validations_without_improvement()), (best.step + 3 * 2, 3));
    assert!(whole.steps_done() < 60);
    // Nothing goes on without more patience.
    assert_eq!(run_in(&mut run, &mut whole, None), (Outcome::StoppedEarly, vec![]));

    let root = space.path().join("part");
    let (mut run, mut part) = new_run(&root, &options);
    let (_, mut pieces) = run_in(&mut run, &mut part, Some(best.step + 3));
    drop(run);
    let (mut run, mut part) = resume(&root, "").unwrap();
    let (outcome, rest) = run_in(&mut run, &mut part, None);
    pieces.extend(rest);
    assert_eq!((outcome, pieces), (Outcome::StoppedEarly, losses));
    drop(run);
    let (mut run, mut part) = resume(&root, "patience = 4").unwrap();
    let (_, more) = run_in(&mut run, &mut part, None);
    assert!(!more.is_empty());
}

#[test]
fn statistics_are_the_norms_of_every_tensor() {
    let options = TrainOptions { statistics_every: 3, clip: 1e-3, ..options(7) };
    let (_, mut watched) = trainer(&options);
    let (_, mut other) = trainer(&TrainOptions { statistics_every: 0, ..options.clone() });
    for step in 1..=7u64 {
        let before = weights(&other);
        let batch = watched.next_batch().unwrap();
        let report = watched.step(&batch).unwrap();
        let plain = other.step(&batch).unwrap();
        assert_eq!((report.loss, report.gradient_norm), (plain.loss, plain.gradient_norm));
        assert!(plain.statistics.is_empty() && report.statistics.is_empty() != step.is_multiple_of(3));
        let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
        let (after, mut squares) = (weights(&other), 0.0);
        for (i, got) in report.statistics.iter().enumerate() {
            let name = other.weights().into_keys().nth(i).unwrap();
            let update: Vec<f64> = after[i].iter().zip(&before[i]).map(|(a, b)| a - b).collect();
            assert_eq!(got.name, name);
            assert!((got.weight_norm / norm(&before[i]) - 1.0).abs() < 1e-6, "{got:?}");
            // The update is rounded to f32, relative to weights that are much larger.
            assert!((got.update_norm / norm(&update) - 1.0).abs() < 1e-4, "{got:?}, {}", norm(&update));
            squares += got.gradient_norm * got.gradient_norm;
        }
        if step.is_multiple_of(3) {
            assert!((squares.sqrt() / report.gradient_norm - 1.0).abs() < 1e-12);
        }
    }
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let (mut run, mut again) = new_run(&root, &options);
    run_in(&mut run, &mut again, None);
    let with_statistics = |line: &serde_json::Value| line.get("update_ratio/blocks.0.mlp.up_proj.weight").is_some();
    let of: Vec<_> = metrics(&root).into_iter().filter(with_statistics).map(|line| line["step"].clone()).collect();
    assert_eq!(of, [3, 6]);
}

/// The loss of a trainer's first batch by candle's own graph, and the variables.
fn loss_of_first_batch(trainer: &Trainer, options: &CrossEntropyOptions) -> (Tensor, Vec<(String, Var)>) {
    let parameters = Parameters::restored(trainer.weights()).unwrap();
    let model = CausalLm::new(trainer.config(), parameters.var_builder(DType::F32, &Device::Cpu)).unwrap();
    let batch = trainer.next_batch().unwrap();
    let loss = model.loss_with(&batch.inputs, &batch.targets, options, &ForwardContext::default()).unwrap();
    (loss, parameters.vars())
}

#[test]
fn statistics_have_the_norm_of_each_gradient_under_its_name() {
    let (_, mut trainer) = trainer(&TrainOptions { statistics_every: 1, ..options(3) });
    let (loss, vars) = loss_of_first_batch(&trainer, &Default::default());
    let gradients = loss.backward().unwrap();
    let norm = |var: &Var| values(gradients.get(var).unwrap()).iter().map(|x| x * x).sum::<f64>().sqrt();
    let expected: BTreeMap<String, f64> = vars.iter().map(|(name, var)| (name.clone(), norm(var))).collect();
    let batch = trainer.next_batch().unwrap();
    let statistics = trainer.step(&batch).unwrap().statistics;
    assert_eq!(statistics.len(), expected.len());
    for tensor in statistics {
        let (got, expected) = (tensor.gradient_norm, expected[&tensor.name]);
        assert!((got / expected - 1.0).abs() < 1e-4, "{}: {got}, expected {expected}", tensor.name);
    }
    // No two are alike, so none can stand for another.
    let mut sorted: Vec<f64> = expected.into_values().collect();
    sorted.sort_by(f64::total_cmp);
    assert!(sorted.windows(2).all(|pair| pair[1] / pair[0] > 1.001), "{sorted:?}");
}

#[test]
fn label_smoothing_is_part_of_training_and_not_of_validation() {
    let validation_loss =
        |trainer: &mut Trainer| trainer.validate(&mut |_, _| ControlFlow::Continue(())).unwrap().unwrap().loss;
    let (_, mut plain) = trainer(&options(3));
    let (_, mut smoothed) = trainer(&TrainOptions { label_smoothing: 0.3, ..options(3) });
    assert_eq!(validation_loss(&mut smoothed), validation_loss(&mut plain));
    let options = CrossEntropyOptions { label_smoothing: 0.3, ..Default::default() };
    let expected = f64::from(loss_of_first_batch(&smoothed, &options).0.to_scalar::<f32>().unwrap());
    let (loss, plain) = (step(&mut smoothed).unwrap(), step(&mut plain).unwrap());
    assert!((loss - expected).abs() < 1e-5, "{loss}, expected {expected}");
    assert!((loss - plain).abs() > 1e-3, "{loss}, without {plain}");
}

#[test]
fn one_batch_is_learned_by_heart_or_not() {
    let (tokenizer, corpus) = data();
    let config = ModelConfig { embed_dim: 24, hidden_dim: 96, ..config(&tokenizer) };
    let options = TrainOptions { lr: 1e-2, label_smoothing: 0.1, ..options(400) };
    let run = |options: &TrainOptions| {
        let mut trainer = Trainer::new(&config, options, corpus.clone(), &Device::Cpu).unwrap();
        overfit_one_batch(&mut trainer, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    let report = run(&options.for_overfitting());
    assert!(report.succeeded() && report.steps < 400 && report.first_loss > 2.0, "{report:?}");
    // A rate that teaches nothing.
    let report = run(&TrainOptions { lr: 1e-9, steps: 20, ..options.clone() }.for_overfitting());
    assert!(!report.succeeded() && report.steps == 20, "{report:?}");

    let mut trainer = Trainer::new(&config, &options, corpus.clone(), &Device::Cpu).unwrap();
    let report = overfit_one_batch(&mut trainer, &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!((report.steps, report.first_loss), (1, report.last_loss));
    let one = TrainOptions { steps: 1, ..options };
    let mut trainer = Trainer::new(&config, &one, corpus, &Device::Cpu).unwrap();
    let error = overfit_one_batch(&mut trainer, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("steps: expected at least 2, to overfit one batch, got 1"), "{error}");
}

#[test]
fn a_clipped_gradient_moves_the_moments_by_its_share() {
    // At a first step the first moment is a tenth of the gradient that reaches it.
    let first = |clip: f64| {
        let (_, mut trainer) = trainer(&TrainOptions { clip, ..options(3) });
        let batch = trainer.next_batch().unwrap();
        let norm = trainer.step(&batch).unwrap().gradient_norm;
        (norm, moments(&trainer).concat())
    };
    let ((norm, whole), (same_norm, clipped)) = (first(0.0), first(1e-2));
    assert_eq!(norm, same_norm);
    let factor = 1e-2 / (norm + 1e-6);
    let firsts = |moments: &[f64]| moments.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    let got = firsts(&clipped) / firsts(&whole);
    assert!((got / factor - 1.0).abs() < 1e-5, "{got}, expected {factor}");
    // Below its bound it is left as it is.
    assert_eq!(first(1e3).1, whole);
}

#[test]
fn a_weight_that_is_set_is_the_one_in_training() {
    let (_, mut trainer) = trainer(&options(3));
    let first = step(&mut trainer).unwrap();
    set(&trainer, "norm.weight", &Tensor::zeros(12, DType::F32, &Device::Cpu).unwrap());
    let loss = step(&mut trainer).unwrap();
    // All logits are 0.
    let uniform = (data().0.vocab_size() as f64).ln();
    assert!((loss - uniform).abs() < 1e-5 && loss != first, "{loss}, expected {uniform}");
}
