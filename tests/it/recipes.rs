//! What a training run can be told: accumulation, schedules, averages, patience, statistics, bad steps, one batch.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use candle_attention::model::{DropoutRates, ModelConfig};
use candle_attention::run::Run;
use candle_attention::text::BatchSampler;
use candle_attention::train::{
    Event, Outcome, RunFolder, Schedule, StepOutcome, TrainOptions, Trainer, overfit_one_batch, train,
};
use candle_core::{Device, Tensor, Var};
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

/// Moments and weights after some steps of a batch of 6, in parts.
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

/// All weights are finite, and what they give is not.
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

/// From such a state who resumes would come to the same bad step again, whatever the rate.
#[test]
fn no_state_is_saved_whose_next_step_is_bad() {
    let space = tempfile::tempdir().unwrap();
    for (value, saves_often, breaks_off) in [
        (f32::NAN, false, false),
        (f32::MAX, false, false),
        (f32::MAX, true, false),
        (f32::MAX, false, true),
        (f32::NAN, true, true),
    ] {
        let label = format!("{value}, {saves_often}, {breaks_off}");
        let root = space.path().join(&label);
        let options = TrainOptions { eval_every: 50, ..options(9) };
        let (tokenizer, mut trainer) = trainer(&options);
        let mut folder = RunFolder::create(&root, &tokenizer, &trainer, "").unwrap();
        if saves_often {
            folder.set_save_interval(Duration::ZERO);
        }
        let norm = variable(&trainer, "norm.weight");
        let error = train(&mut trainer, Some(&mut folder), &mut |event| match event {
            Event::Step(report) if report.step == 5 => {
                norm.set(&Tensor::full(value, norm.shape(), &Device::Cpu).unwrap()).unwrap();
                if breaks_off { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
            _ => ControlFlow::Continue(()),
        });
        let message = error.unwrap_err().to_string();
        assert!(message.contains("step 6: ") && message.contains("lower learning rate"), "{label}: {message}");
        assert_eq!(message.contains("as norm.weight is no longer finite"), value.is_nan(), "{label}: {message}");
        let metrics = std::fs::read_to_string(root.join("training/metrics.jsonl")).unwrap();
        let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
        assert!(last["step"] == 6 && last["failed"].as_str().unwrap().contains("start at tokens"), "{last}");
        drop(folder);
        let (mut folder, mut trainer) = resume(&root, &options).unwrap();
        assert_eq!(trainer.step(), if saves_often { 4 } else { 0 }, "{label}");
        assert_eq!(run_in(&mut folder, &mut trainer, None).0, Outcome::Finished);
        let metrics = std::fs::read_to_string(root.join("training/metrics.jsonl")).unwrap();
        assert!(!metrics.contains("failed"), "{metrics}");
    }
}

/// Breaks all texts with this letter in an embedding; gives what was there.
fn spoil(embedding: &Var, letter: &str) -> Tensor {
    let good = embedding.as_tensor().copy().unwrap();
    let id = data().0.encode(letter).unwrap()[0];
    let huge = Tensor::full(3e38f32, (1, good.dim(1).unwrap()), &Device::Cpu).unwrap();
    embedding.slice_set(&huge, 0, id as usize).unwrap();
    good
}

/// Whether the batch of the step behind `step` has the letter in it.
fn has_letter(trainer: &Trainer, step: u64, letter: &str) -> bool {
    let options = trainer.options();
    let sampler = BatchSampler { seed: options.seed, batch_size: options.batch_size, context_len: 13 };
    sampler.batch(&trainer.corpus().train, step).unwrap().inputs.contains(&data().0.encode(letter).unwrap()[0])
}

/// Where the weights are at fault for some sequences alone, a step without these is good.
#[test]
fn before_a_validation_that_is_not_finite_ends_the_run_what_is_good_is_saved() {
    let space = tempfile::tempdir().unwrap();
    let options = options(12);
    let letters = ["x", "v", "g", "w", "u", "h", "."];
    let probe = untied(&options);
    let letter = |is_in_batch| letters.into_iter().find(|letter| has_letter(&probe, 8, letter) == is_in_batch).unwrap();
    for (letter, saved) in [(letter(false), 8), (letter(true), 4)] {
        let root = space.path().join(format!("run-{saved}"));
        let mut trainer = untied(&options);
        let mut folder = RunFolder::create(&root, &data().0, &trainer, "").unwrap();
        let (embedding, mut good) = (variable(&trainer, "token_embedding.weight"), None);
        let error = train(&mut trainer, Some(&mut folder), &mut |event| {
            if let Event::Step(report) = event
                && report.step == 8
            {
                good = Some(spoil(&embedding, letter));
            }
            ControlFlow::Continue(())
        });
        let message = error.unwrap_err().to_string();
        let cause = "first in the window that starts at its token";
        assert!(message.contains("step 8: the validation loss is NaN") && message.contains(cause), "{message}");
        let metrics = std::fs::read_to_string(root.join("training/metrics.jsonl")).unwrap();
        let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
        assert!(last["step"] == 8 && last["failed"].as_str().unwrap().contains(cause), "{last}");
        drop(folder);
        let (mut folder, mut trainer) = resume(&root, &options).unwrap();
        assert_eq!((trainer.step(), trainer.validation_is_pending()), (saved, false));
        // The failure stays on record with what was saved before it, and goes with the steps that are made again.
        folder.begin(&mut trainer).unwrap();
        let metrics = std::fs::read_to_string(root.join("training/metrics.jsonl")).unwrap();
        assert_eq!(metrics.contains("\"failed\""), saved == 8, "{metrics}");
        if saved == 8 {
            variable(&trainer, "token_embedding.weight").set(&good.unwrap()).unwrap();
        }
        assert_eq!(run_in(&mut folder, &mut trainer, None).0, Outcome::Finished);
    }
}

/// A run whose steps 3 and 4 are bad, and then good again: the weights are broken and mended from outside.
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
    // Nothing was good since the start.
    let less = TrainOptions { skip_bad_steps: 1, ..options };
    let (_folder, trainer) = resume(&root, &less).unwrap();
    assert_eq!((trainer.step(), trainer.counters().skipped, trainer.counters().skipped_in_a_row), (0, 0, 0));
}

/// A skipped step leaves no trace in the bias of the moments: the first update is the one it would have been.
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
    for (clip_norm, is_bad) in [(0.0, true), (1.0, false)] {
        let mut trainer = untied(&TrainOptions { clip_norm, ..options(9) });
        // Scaled down and up again, the logits stay as they are, and the gradient of the norm does not.
        for (name, factor) in [("norm.weight", 1e-25), ("head.weight", 1e25)] {
            let var = variable(&trainer, name);
            var.set(&var.affine(factor, 0.0).unwrap()).unwrap();
        }
        match trainer.next_step().unwrap() {
            StepOutcome::Failed(bad) => {
                assert!(is_bad && bad.reason.contains("norm.weight") && bad.reason.contains("square"), "{bad:?}");
                assert_eq!(bad.bad_sequences, [0usize; 0]);
            }
            outcome => assert!(!is_bad, "{outcome:?}"),
        }
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

/// Of two projections of zeros one after the other neither has a gradient.
fn silence(trainer: &Trainer) {
    for name in ["blocks.1.mlp.down_proj.weight", "blocks.1.mlp.up_proj.weight"] {
        let var = variable(trainer, name);
        var.set(&var.zeros_like().unwrap()).unwrap();
    }
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

/// The audit's count goes on: a run stopped every three steps is audited after ten as if it had never been.
#[test]
fn the_gradient_audit_survives_being_stopped() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let options = options(20);
    let (tokenizer, mut first) = trainer(&options);
    let mut folder = RunFolder::create(&root, &tokenizer, &first, "").unwrap();
    silence(&first);
    run_in(&mut folder, &mut first, Some(3));
    for stop in [6, 9] {
        drop(folder);
        let (next_folder, mut next) = resume(&root, &options).unwrap();
        folder = next_folder;
        silence(&next);
        run_in(&mut folder, &mut next, Some(stop));
    }
    drop(folder);
    let (mut folder, mut last) = resume(&root, &options).unwrap();
    silence(&last);
    let error = train(&mut last, Some(&mut folder), &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("gradient audit: after 10 steps the gradient is still zero at"), "{error}");
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
