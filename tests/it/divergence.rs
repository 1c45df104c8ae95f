//! Runs that cannot go on: a loss, a gradient or a weight that is not finite, and tensors that no gradient reaches.

use std::ops::ControlFlow;
use std::path::Path;

use candle_attention::train::{Event, Outcome, RunDir, TrainOptions, Trainer, train};
use candle_attention::{Error, Result};
use candle_core::{Device, Tensor};

use crate::training::{metrics, moments, new_run, options, resume, run_in, set, step, steps, trainer, weights};

/// What has diverged: step, what, and whether the value is finite.
fn diverged(error: Error) -> (u64, String) {
    match error {
        Error::Diverged { step, what, value } if !value.is_finite() => (step, what),
        other => panic!("{other}"),
    }
}

fn scale(trainer: &Trainer, name: &str, factor: f64) {
    set(trainer, name, &(&trainer.weights()[name] * factor).unwrap());
}

/// Weights whose logits are not finite.
fn overflow(trainer: &Trainer) {
    set(trainer, "norm.weight", &Tensor::full(f32::MAX, 12, &Device::Cpu).unwrap());
}

#[test]
fn a_loss_that_is_not_finite_names_the_step_and_updates_nothing() {
    let (_, mut trainer) = trainer(&options(9));
    steps(&mut trainer, 2);
    overflow(&trainer);
    let before = (weights(&trainer), moments(&trainer));
    let error = step(&mut trainer).unwrap_err();
    assert!(error.to_string().starts_with("step 3: the loss is "), "{error}");
    assert_eq!(diverged(error), (3, "the loss".into()));
    assert_eq!((trainer.steps_done(), (weights(&trainer), moments(&trainer))), (2, before));
}

/// The value vectors are as they were, but between them and the norm's weight stand factors whose product is beyond f32.
#[test]
fn a_gradient_that_is_not_finite_names_the_tensor_and_updates_nothing() {
    let (_, mut trainer) = trainer(&options(9));
    steps(&mut trainer, 2);
    for (name, factor) in [("attention_norm", 1e-44), ("attention.v_proj", 1e22), ("attention.o_proj", 1e22)] {
        scale(&trainer, &format!("blocks.0.{name}.weight"), factor);
    }
    let before = (weights(&trainer), moments(&trainer));
    let error = step(&mut trainer).unwrap_err();
    assert_eq!(diverged(error), (3, "the gradient of blocks.0.attention_norm.weight".into()));
    assert_eq!((trainer.steps_done(), (weights(&trainer), moments(&trainer))), (2, before));
}

/// Trains until the run fails; `on_step` can change weights after a step, or break off. Gives the error and the steps
/// that were saved.
fn fail(run: &mut RunDir, trainer: &mut Trainer, on_step: &mut dyn FnMut(u64) -> ControlFlow<()>) -> (Error, Vec<u64>) {
    let mut saved = vec![];
    let outcome = train(trainer, Some(run), &mut |event| match event {
        Event::Step(report) => on_step(report.step),
        Event::Saved(step) => {
            saved.push(step);
            ControlFlow::Continue(())
        }
        _ => ControlFlow::Continue(()),
    });
    (outcome.unwrap_err(), saved)
}

/// The last checkpoint stands: the run goes on from `step`, without the lines of later steps, to its end.
fn goes_on(root: &Path, step: u64, changes: &str) {
    let (mut run, mut trainer) = resume(root, changes).unwrap();
    assert_eq!(trainer.steps_done(), step);
    assert!(metrics(root).iter().all(|line| line["step"].as_u64().unwrap() <= step));
    assert_eq!(run_in(&mut run, &mut trainer, None).0, Outcome::Finished);
}

#[test]
fn a_run_that_diverges_saves_nothing_and_goes_on_from_its_last_checkpoint() {
    let space = tempfile::tempdir().unwrap();
    for (value, at, step, what) in [
        (f32::NAN, 5, 6, "the loss"),
        (f32::MAX, 6, 7, "the loss"),
        // A validation is due.
        (f32::MAX, 8, 8, "the validation loss"),
    ] {
        let root = space.path().join(format!("{value} at {at}"));
        let (mut run, mut trainer) = new_run(&root, &options(12));
        let norm = trainer.weights()["norm.weight"].clone();
        let (error, saved) = fail(&mut run, &mut trainer, &mut |step| {
            if step == at {
                norm.slice_set(&Tensor::full(value, 12, &Device::Cpu).unwrap(), 0, 0).unwrap();
            }
            ControlFlow::Continue(())
        });
        assert_eq!((diverged(error), saved), ((step, what.to_string()), vec![4]));
        drop(run);
        goes_on(&root, 4, "");
    }
}

#[test]
fn a_rate_so_high_that_it_diverges_goes_on_to_the_end_with_a_lower_one() {
    let space = tempfile::tempdir().unwrap();
    for lr in [1e30, 1e5] {
        let root = space.path().join(format!("{lr}"));
        let wild = TrainOptions { lr, clip: 0.0, warmup: 0.0, ..options(40) };
        let (mut run, mut trainer) = new_run(&root, &wild);
        let (error, saved) = fail(&mut run, &mut trainer, &mut |_| ControlFlow::Continue(()));
        let (step, _) = diverged(error);
        assert!(step > 1, "{step}");
        drop(run);
        // With the rate as it was, it fails again at the same step.
        let last = saved.last().copied().unwrap_or(0);
        let (mut run, mut trainer) = resume(&root, "").unwrap();
        assert_eq!(diverged(fail(&mut run, &mut trainer, &mut |_| ControlFlow::Continue(())).0).0, step);
        drop(run);
        goes_on(&root, last, "lr = 1e-3\nclip = 1.0");
        // The new rate is part of the run from here on.
        assert_eq!(resume(&root, "").unwrap().1.options(), &TrainOptions { lr: 1e-3, clip: 1.0, ..wild });
    }
}

/// Of the model as of its average.
#[test]
fn weights_that_are_not_finite_are_never_saved() {
    let space = tempfile::tempdir().unwrap();
    for average in [0.0, 0.9] {
        let root = space.path().join(format!("{average}"));
        let (mut run, mut trainer) = new_run(&root, &TrainOptions { average, eval_every: Some(50), ..options(9) });
        let norm = trainer.weights()["norm.weight"].clone();
        let good = norm.copy().unwrap();
        let (error, saved) = fail(&mut run, &mut trainer, &mut |step| {
            if step < 5 {
                return ControlFlow::Continue(());
            }
            norm.slice_set(&Tensor::full(f32::NAN, 12, &Device::Cpu).unwrap(), 0, 0).unwrap();
            ControlFlow::Break(())
        });
        let weight = (5, "the weight norm.weight".to_string());
        assert_eq!((diverged(error), saved), (weight.clone(), vec![]));
        assert_eq!(diverged(run.save(&trainer).unwrap_err()), weight);
        // Once they are finite, they are.
        norm.slice_set(&good, 0, 0).unwrap();
        run.save(&trainer).unwrap();
        drop(run);
        goes_on(&root, 5, "");
    }
}

/// Of two projections of zeros, one after the other, neither has a gradient.
const SILENT: [&str; 2] = ["blocks.1.mlp.down_proj.weight", "blocks.1.mlp.up_proj.weight"];

/// Trains with these projections set to zero before each step, as earlier moments would move them.
fn train_silenced(run: Option<&mut RunDir>, trainer: &mut Trainer, stop: Option<u64>) -> Result<Outcome> {
    let silent = SILENT.map(|name| trainer.weights()[name].clone());
    let silence = || silent.each_ref().map(|weight| weight.slice_set(&weight.zeros_like().unwrap(), 0, 0).unwrap());
    silence();
    train(trainer, run, &mut |event| match event {
        Event::Step(report) => {
            silence();
            if Some(report.step) == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
        _ => ControlFlow::Continue(()),
    })
}

fn no_gradient(outcome: Result<Outcome>) -> String {
    match outcome {
        Err(Error::NoGradient(what)) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn tensors_whose_gradients_stay_zero_end_the_run() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let (mut run, mut trainer) = new_run(&root, &options(20));
    let what = no_gradient(train_silenced(Some(&mut run), &mut trainer, None));
    assert_eq!(
        what,
        format!("after 10 steps the gradient is still zero at {}, blocks.1.mlp_norm.weight", SILENT.join(", "))
    );
    assert_eq!(trainer.steps_done(), 9);
    drop(run);
    assert_eq!(resume(&root, "").unwrap().1.steps_done(), 8);
}

/// However many sessions there were before, and however short they are.
#[test]
fn every_start_is_audited() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let (mut run, mut first) = new_run(&root, &options(30));
    run_in(&mut run, &mut first, Some(12));
    drop(run);
    // Too short for a verdict; the next session goes on with what was seen.
    let (mut run, mut second) = resume(&root, "").unwrap();
    assert_eq!(train_silenced(Some(&mut run), &mut second, Some(15)).unwrap(), Outcome::Interrupted);
    drop(run);
    let (mut run, mut third) = resume(&root, "").unwrap();
    let what = no_gradient(train_silenced(Some(&mut run), &mut third, None));
    assert!(what.starts_with("after 10 steps the gradient is still zero at"), "{what}");
    assert_eq!(third.steps_done(), 21);
    drop(run);
    // The run ends before the audit does.
    let (mut run, mut last) = resume(&root, "steps = 21").unwrap();
    let what = no_gradient(train_silenced(Some(&mut run), &mut last, None));
    assert!(what.starts_with("after 9 steps the gradient is still zero at"), "{what}");
    assert_eq!(last.steps_done(), 21);
}

#[test]
fn a_run_that_ends_early_is_audited() {
    // At this rate nothing changes, and the second validation is no better than the first.
    let early = TrainOptions { lr: 1e-30, eval_every: Some(1), patience: 1, ..options(30) };
    for (options, end, made) in [(early, Outcome::StoppedEarly, 2), (options(4), Outcome::Finished, 4)] {
        let (_, mut good) = trainer(&options);
        assert_eq!(train(&mut good, None, &mut |_| ControlFlow::Continue(())).unwrap(), end);
        let (_, mut silent) = trainer(&options);
        let what = no_gradient(train_silenced(None, &mut silent, None));
        assert!(what.starts_with(&format!("after {made} steps the gradient is still zero at")), "{what}");
        assert_eq!((good.steps_done(), silent.steps_done()), (made, made));
    }
}
