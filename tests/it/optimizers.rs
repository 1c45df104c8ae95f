//! Muon and parameter groups in the trainer.

use std::ops::ControlFlow;

use candle_attention::train::{OptimizerKind, StatisticsReport, TrainOptions, Trainer, overfit_one_batch};
use candle_core::Device;

use crate::training::{config, data, finished_run, options, resume, run_in, trainer};

fn muon(steps: u64) -> TrainOptions {
    TrainOptions { optimizer: OptimizerKind::Muon, statistics_every: 1, ..options(steps) }
}

fn statistics(trainer: &mut Trainer) -> StatisticsReport {
    trainer.train_step().unwrap();
    trainer.statistics().unwrap().clone()
}

/// Whether it is a projection into the residual stream.
fn is_residual(name: &str) -> bool {
    name.contains("o_proj") || name.contains("down_proj")
}

fn with_zero_residuals(options: &TrainOptions) -> Trainer {
    let (_, trainer) = trainer(options);
    for (_, var) in trainer.parameters().vars().iter().filter(|(name, _)| is_residual(name)) {
        var.set(&var.zeros_like().unwrap()).unwrap();
    }
    trainer
}

#[test]
fn muon_learns_one_batch_by_heart() {
    let options = TrainOptions { learning_rate: 1e-2, statistics_every: 0, ..muon(300) }.for_overfitting();
    let (_, mut trainer) = trainer(&options);
    let report = overfit_one_batch(&mut trainer, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.succeeded(), "{report:?}");
}

/// The size of Muon's update depends only on its rate and the matrix's shape: the singular values are near 1, so the
/// norm is near the square root of the shorter side.
#[test]
fn muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest() {
    let options = TrainOptions { warmup_steps: 0, matrix_weight_decay: 0.0, weight_decay: 0.0, ..muon(9) };
    let with_adamw = TrainOptions { optimizer: OptimizerKind::AdamW, ..options.clone() };
    let [with_muon, with_adamw] = [&options, &with_adamw].map(|options| statistics(&mut trainer(options).1));
    for (name, var) in trainer(&options).1.parameters().vars() {
        let [got, adamw] = [&with_muon, &with_adamw].map(|report| report.statistics[&name].update_norm);
        if !name.starts_with("blocks.") || var.rank() < 2 {
            assert_eq!(got, adamw, "{name}");
            continue;
        }
        let (rows, cols) = var.dims2().unwrap();
        let factor = (rows as f64 / cols as f64).max(1.0).sqrt() * 0.02;
        let singular = got / factor / (rows.min(cols) as f64).sqrt();
        assert!((0.5..1.25).contains(&singular), "{name}: singular values of about {singular}");
    }
}

/// Before a projection of zeros, the first gradients are zero, and the audit waits for later ones, also in a resumed
/// run.
#[test]
fn residual_projections_of_zeros_pass_the_audit() {
    let options = muon(14);
    let mut trainer = with_zero_residuals(&options);
    let norms: Vec<StatisticsReport> = (0..3).map(|_| statistics(&mut trainer)).collect();
    let silent = ["q_proj", "k_proj", "v_proj", "up_proj"];
    for (name, at_first) in &norms[0].statistics {
        let is_silent = silent.iter().any(|part| name.contains(part))
            || name.contains(".attention_norm")
            || name.contains(".mlp_norm");
        assert_eq!(at_first.gradient_norm == 0.0, is_silent, "{name}");
        assert!(norms[2].statistics[name].gradient_norm > 0.0, "{name}");
    }
    while trainer.step() < 14 {
        trainer.train_step().unwrap();
    }

    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let (tokenizer, _) = data();
    let mut first = with_zero_residuals(&options);
    let mut folder = candle_attention::train::RunFolder::create(&root, &tokenizer, &first, "").unwrap();
    run_in(&mut folder, &mut first, Some(1));
    drop(folder);
    let (mut folder, mut second) = resume(&root, &options).unwrap();
    run_in(&mut folder, &mut second, None);
    assert_eq!(second.step(), 14);
    assert!(crate::training::weights(&second) == crate::training::weights(&trainer));
}

/// AdamW's first update has the size of its learning rate.
#[test]
fn embeddings_and_head_have_rates_of_their_own() {
    let (tokenizer, _) = data();
    let config = candle_attention::model::ModelConfig { tie_embeddings: false, ..config(&tokenizer) };
    let base = TrainOptions { statistics_every: 1, weight_decay: 0.0, ..options(9) };
    let own = TrainOptions { embedding_learning_rate: Some(7e-3), head_learning_rate: Some(3e-4), ..base.clone() };
    let [own, base] = [own, base]
        .map(|options| statistics(&mut Trainer::new(&config, &options, data().1, &Device::Cpu).unwrap()).statistics);
    for (name, expected) in &base {
        let ratio = own[name].update_norm / expected.update_norm;
        let factor = match name.as_str() {
            "token_embedding.weight" | "position_embedding.weight" => 7.0,
            "head.weight" => 0.3,
            _ => 1.0,
        };
        assert!((ratio / factor - 1.0).abs() < 1e-4, "{name}: {ratio}");
    }
}

#[test]
fn a_rate_for_a_head_that_is_tied_is_refused() {
    let (tokenizer, corpus) = data();
    let options = TrainOptions { head_learning_rate: Some(1e-3), ..options(3) };
    let error = Trainer::new(&config(&tokenizer), &options, corpus, &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("head_learning_rate expects an untied head"), "{error}");
}

#[test]
fn a_run_keeps_its_optimizer_and_may_change_the_rates() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    drop(finished_run(&root, &muon(4)));
    let other = TrainOptions { optimizer: OptimizerKind::AdamW, ..muon(8) };
    let error = resume(&root, &other).err().unwrap().to_string();
    assert!(error.contains("resume: expected optimizer \"muon\", as the run has, got \"adamw\""), "{error}");
    // The size of Muon's update is proportional to its rate: a tenth of it gives a tenth of the update.
    let moved = |rate: f64| {
        let options = TrainOptions { matrix_learning_rate: rate, matrix_weight_decay: 0.0, ..muon(8) };
        let (folder, mut trainer) = resume(&root, &options).unwrap();
        let report = statistics(&mut trainer).statistics;
        drop(folder);
        report.into_iter().map(|(name, statistics)| (name, statistics.update_norm)).collect::<Vec<_>>()
    };
    for ((name, fast), (_, slow)) in moved(0.01).into_iter().zip(moved(0.001)) {
        let expected = if name.starts_with("blocks.") && name.contains("proj.weight") { 0.1 } else { 1.0 };
        assert!((slow / fast / expected - 1.0).abs() < 1e-3, "{name}: {slow} and {fast}");
    }
}

/// Batches grow as the ramps say.
#[test]
fn ramps_give_smaller_batches_at_first() {
    let ramp = |text: &str| Some(text.parse().unwrap());
    let options = TrainOptions { batch_ramp: ramp("2:4"), context_ramp: ramp("5:6"), ..options(8) };
    let (_, mut whole) = trainer(&options);
    let tokens: Vec<usize> = (0..8).map(|_| whole.train_step().unwrap().tokens).collect();
    assert_eq!(tokens, [2 * 5, 2 * 5, 4 * 5, 4 * 10, 5 * 10, 5 * 10, 5 * 13, 5 * 13]);

    for (batch_ramp, context_ramp, expected) in [
        (ramp("6:4"), None, "expected batch_ramp to start from 1 to 5, got 6"),
        (None, ramp("1:4"), "expected context_ramp to start from 2 to 13, got 1"),
    ] {
        let options = TrainOptions { batch_ramp, context_ramp, ..options.clone() };
        let (tokenizer, corpus) = data();
        let error = Trainer::new(&config(&tokenizer), &options, corpus, &Device::Cpu).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Cautious updates change the weights, and z-loss adds to the loss what its formula says.
#[test]
fn cautious_updates_and_z_loss_reach_the_step() {
    let first = |options: &TrainOptions| {
        let (_, mut trainer) = trainer(options);
        let losses = [
            trainer.train_step().unwrap().loss,
            trainer.train_step().unwrap().loss,
            trainer.train_step().unwrap().loss,
        ];
        (losses, crate::training::weights(&trainer))
    };
    for base in [options(9), muon(9)] {
        let (plain, weights) = first(&base);
        for cautious in [
            TrainOptions { cautious_updates: true, ..base.clone() },
            TrainOptions { cautious_decay: true, ..base.clone() },
        ] {
            let (losses, its_weights) = first(&cautious);
            assert!(losses[0] == plain[0] && its_weights != weights, "{:?}", base.optimizer);
        }
        // All logits are small at first, so that their log-sum-exp is near the logarithm of the vocabulary.
        let (losses, _) = first(&TrainOptions { z_loss: 0.1, ..base });
        let vocabulary = data().0.vocab_size() as f64;
        let expected = 0.1 * vocabulary.ln().powi(2);
        assert!(((losses[0] - plain[0]) / expected - 1.0).abs() < 0.05, "{losses:?} {plain:?}");
    }
}
