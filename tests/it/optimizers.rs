//! Muon and the rates of groups in the trainer.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_attention::model::ModelConfig;
use candle_attention::train::{OptimizerKind, TensorStatistics, TrainOptions, Trainer, overfit_one_batch};
use candle_core::Device;

use crate::training::{config, data, finished_run, new_run, options, resume, run_in, set, trainer, weights};

fn muon(steps: u64) -> TrainOptions {
    TrainOptions { optimizer: OptimizerKind::Muon, statistics_every: 1, ..options(steps) }
}

/// The norms of a step, by tensor.
fn statistics(trainer: &mut Trainer) -> BTreeMap<String, TensorStatistics> {
    let batch = trainer.next_batch().unwrap();
    let statistics = trainer.step(&batch).unwrap().statistics;
    statistics.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect()
}

/// Sets the projections into the residual stream to zero.
fn silence_residuals(trainer: &Trainer) {
    for (name, weight) in trainer.weights() {
        if name.contains("o_proj") || name.contains("down_proj") {
            set(trainer, &name, &weight.zeros_like().unwrap());
        }
    }
}

#[test]
fn muon_learns_one_batch_by_heart() {
    let options = TrainOptions { lr: 1e-3, statistics_every: 0, ..muon(400) }.for_overfitting();
    let (_, mut trainer) = trainer(&options);
    let report = overfit_one_batch(&mut trainer, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.succeeded(), "{report:?}");
}

/// The size of Muon's update depends only on its rate and the matrix's shape: the singular values are near 1, so the
/// norm is near the square root of the shorter side.
#[test]
fn muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest() {
    let options = TrainOptions { warmup: 0.0, matrix_weight_decay: 0.0, weight_decay: 0.0, ..muon(9) };
    let with_adamw = TrainOptions { optimizer: OptimizerKind::AdamW, ..options.clone() };
    let [with_muon, with_adamw] = [&options, &with_adamw].map(|options| statistics(&mut trainer(options).1));
    for (name, weight) in trainer(&options).1.weights() {
        let [got, adamw] = [&with_muon, &with_adamw].map(|report| report[&name].update_norm);
        if !name.starts_with("blocks.") || weight.rank() < 2 {
            assert_eq!(got, adamw, "{name}");
            continue;
        }
        let (rows, cols) = weight.dims2().unwrap();
        let factor = (rows as f64 / cols as f64).max(1.0).sqrt() * options.lr * options.matrix_lr;
        let singular = got / factor / (rows.min(cols) as f64).sqrt();
        assert!((0.5..1.25).contains(&singular), "{name}: singular values of about {singular}");
    }
}

/// Before a projection of zeros the first gradients are zero, and the audit waits for later ones, also in a resumed
/// run.
#[test]
fn residual_projections_of_zeros_pass_the_audit() {
    let options = muon(14);
    let space = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| space.path().join(name));
    let (_run, mut trainer) = new_run(&whole, &options);
    silence_residuals(&trainer);
    let norms: Vec<_> = (0..3).map(|_| statistics(&mut trainer)).collect();
    let silent = ["q_proj", "k_proj", "v_proj", "up_proj", ".attention_norm", ".mlp_norm"];
    for (name, at_first) in &norms[0] {
        let is_silent = silent.iter().any(|part| name.contains(part));
        assert_eq!(at_first.gradient_norm == 0.0, is_silent, "{name}");
        assert!(norms[2][name].gradient_norm > 0.0, "{name}");
    }
    while trainer.steps_done() < 14 {
        statistics(&mut trainer);
    }

    let (mut run, mut first) = new_run(&parts, &options);
    silence_residuals(&first);
    run_in(&mut run, &mut first, Some(1));
    drop(run);
    let (mut run, mut second) = resume(&parts, "").unwrap();
    run_in(&mut run, &mut second, None);
    assert_eq!(second.steps_done(), 14);
    assert!(weights(&second) == weights(&trainer));
}

/// AdamW's first update has the size of its learning rate.
#[test]
fn embeddings_have_a_rate_of_their_own() {
    let (tokenizer, _) = data();
    let config = ModelConfig { tie_embeddings: false, ..config(&tokenizer) };
    let base = TrainOptions { statistics_every: 1, weight_decay: 0.0, ..options(9) };
    let own = TrainOptions { embedding_lr: 7.0, ..base.clone() };
    let [own, base] =
        [own, base].map(|options| statistics(&mut Trainer::new(&config, &options, data().1, &Device::Cpu).unwrap()));
    assert!(base.contains_key("head.weight"));
    for (name, expected) in &base {
        let ratio = own[name].update_norm / expected.update_norm;
        let factor = if name.contains("embedding") { 7.0 } else { 1.0 };
        assert!((ratio / factor - 1.0).abs() < 1e-4, "{name}: {ratio}");
    }
}

#[test]
fn a_resumed_run_keeps_its_optimizer_and_may_change_the_rates() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    drop(finished_run(&root, &TrainOptions { matrix_weight_decay: 0.0, ..muon(4) }));
    let error = resume(&root, "optimizer = \"adamw\"").err().unwrap().to_string();
    assert!(error.contains("optimizer: cannot be changed when resuming"), "{error}");
    // The size of Muon's update is proportional to its rate: a tenth of it gives a tenth of the update.
    let moved = |rate: &str| {
        let (_run, mut trainer) = resume(&root, &format!("steps = 8\nmatrix-lr = {rate}")).unwrap();
        statistics(&mut trainer)
    };
    let (fast, slow) = (moved("10.0"), moved("1.0"));
    for (name, fast) in fast {
        let expected = if name.starts_with("blocks.") && name.contains("proj.weight") { 0.1 } else { 1.0 };
        let ratio = slow[&name].update_norm / fast.update_norm;
        assert!((ratio / expected - 1.0).abs() < 1e-3, "{name}: {ratio}");
    }
}
