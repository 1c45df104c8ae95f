//! Training, resuming and generating through the library.

use std::ops::ControlFlow;
use std::path::Path;

use candle_attention::evaluate::evaluate;
use candle_attention::generate::{Sampler, SamplingOptions, generate};
use candle_attention::model::ModelConfig;
use candle_attention::run::Run;
use candle_attention::text::{
    Batch, Corpus, CorpusOptions, Document, Rest, Tokenizer, TokenizerChoice, Validation, prepare, windows,
};
use candle_attention::train::{Event, Outcome, RunFolder, TrainOptions, Trainer, train};
use candle_core::Device;
use sha2::{Digest, Sha256};

use crate::support::values;

const TEXT: &str = "one two three four five six seven eight nine ten. ";

pub fn data() -> (Tokenizer, Corpus) {
    let documents = [Document::new("numbers", TEXT.repeat(40))];
    let options = CorpusOptions::in_memory(13);
    prepare(&documents, &Validation::Fraction(0.1), &TokenizerChoice::Characters, &options, &mut |_| {}).unwrap()
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

pub fn options(steps: u64) -> TrainOptions {
    TrainOptions { steps, batch_size: 5, warmup_steps: 3, eval_every: 4, ..Default::default() }
}

pub fn trainer(options: &TrainOptions) -> (Tokenizer, Trainer) {
    let (tokenizer, corpus) = data();
    let trainer = Trainer::new(&config(&tokenizer), options, corpus, &Device::Cpu).unwrap();
    (tokenizer, trainer)
}

/// Trains in the folder, stopping after step `stop` if there is one; gives the losses, bit by bit.
pub fn run_in(folder: &mut RunFolder, trainer: &mut Trainer, stop: Option<u64>) -> (Outcome, Vec<u64>) {
    let mut losses = vec![];
    let outcome = train(trainer, Some(folder), &mut |event| match event {
        Event::Step(report) => {
            losses.push(report.loss.to_bits());
            if Some(report.step) == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
        _ => ControlFlow::Continue(()),
    });
    (outcome.unwrap(), losses)
}

pub fn weights(trainer: &Trainer) -> Vec<Vec<f64>> {
    trainer.parameters().vars().iter().map(|(_, var)| values(var)).collect()
}

pub fn resume(root: &Path, options: &TrainOptions) -> candle_core::Result<(RunFolder, Trainer)> {
    let (folder, config, checkpoint) = RunFolder::resume(root, &Device::Cpu)?;
    let trainer = Trainer::resume(checkpoint, &config, options, data().1, &Device::Cpu)?;
    Ok((folder, trainer))
}

/// Creates a run in `root` and trains it to the end.
pub fn finished_run(root: &Path, options: &TrainOptions) -> (RunFolder, Trainer) {
    let (tokenizer, mut trainer) = trainer(options);
    let mut folder = RunFolder::create(root, &tokenizer, &trainer, "").unwrap();
    run_in(&mut folder, &mut trainer, None);
    (folder, trainer)
}

#[test]
fn a_batch_of_ones_own_that_is_not_what_it_says_is_refused() {
    let (_, mut trainer) = trainer(&options(3));
    let batch = options(3).sampler_at(0, 13).batch(&trainer.corpus().train, 0).unwrap();
    for wrong in [Batch { inputs: vec![], ..batch.clone() }, Batch { starts: vec![], ..batch.clone() }] {
        let error = trainer.train_step_on(&wrong).unwrap_err().to_string();
        assert!(error.starts_with("batch: expected") && trainer.step() == 0, "{error}");
    }
    trainer.train_step_on(&batch).unwrap();
}

#[test]
fn one_batch_overfits_to_near_zero() {
    let options = TrainOptions { learning_rate: 1e-2, min_learning_rate: 1e-2, weight_decay: 0.0, ..options(1) };
    let (_, corpus) = data();
    // One window is all there is to draw.
    let corpus = Corpus { train: corpus.train.to_vec().unwrap()[..14].to_vec().into(), ..corpus };
    let (tokenizer, _) = data();
    let config = ModelConfig { embed_dim: 24, hidden_dim: 96, ..config(&tokenizer) };
    let options = TrainOptions { steps: 200, ..options };
    let mut trainer = Trainer::new(&config, &options, corpus, &Device::Cpu).unwrap();
    let first = trainer.train_step().unwrap().loss;
    let mut last = first;
    for _ in 1..options.steps {
        last = trainer.train_step().unwrap().loss;
    }
    assert!((first - (config.vocab_size as f64).ln()).abs() < 0.2, "first loss {first}");
    assert!(last < 0.01, "last loss {last}");
}

#[test]
fn two_runs_of_one_seed_are_the_same_to_the_last_bit_and_of_two_seeds_are_not() {
    let losses = |seed| {
        let options = TrainOptions { seed, ..options(12) };
        let (_, mut trainer) = trainer(&options);
        (0..12).map(|_| trainer.train_step().unwrap().loss.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(losses(1), losses(1));
    assert_ne!(losses(1), losses(2));
}

#[test]
fn a_resumed_run_ends_as_one_that_was_never_stopped() {
    let space = tempfile::tempdir().unwrap();
    let (whole, parts) = (space.path().join("whole"), space.path().join("parts"));
    let options = options(11);

    let (tokenizer, mut uninterrupted) = trainer(&options);
    let mut folder = RunFolder::create(&whole, &tokenizer, &uninterrupted, "").unwrap();
    let (outcome, losses) = run_in(&mut folder, &mut uninterrupted, None);
    assert_eq!(outcome, Outcome::Finished);
    drop(folder);

    let (tokenizer, mut first) = trainer(&options);
    let mut folder = RunFolder::create(&parts, &tokenizer, &first, "").unwrap();
    let (outcome, mut pieces) = run_in(&mut folder, &mut first, Some(6));
    assert!(resume(&parts, &options).err().unwrap().to_string().contains("another process is training in"));
    assert_eq!(outcome, Outcome::Interrupted);
    // What a crash after the checkpoint may leave: steps that will be made again.
    folder.log(&serde_json::json!({ "step": 7, "loss": 9.9 })).unwrap();
    drop(folder);
    let (mut folder, mut second) = resume(&parts, &options).unwrap();
    let (outcome, rest) = run_in(&mut folder, &mut second, None);
    assert_eq!(outcome, Outcome::Finished);
    pieces.extend(rest);

    assert_eq!(losses, pieces);
    assert_eq!(weights(&uninterrupted), weights(&second));
    assert_eq!(
        uninterrupted.moments().iter().map(|(_, tensor)| values(tensor)).collect::<Vec<_>>(),
        second.moments().iter().map(|(_, tensor)| values(tensor)).collect::<Vec<_>>()
    );
    assert_eq!(uninterrupted.best(), second.best());
    let metrics = |root: &Path| {
        let text = std::fs::read_to_string(root.join("training/metrics.jsonl")).unwrap();
        let mut lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.iter_mut().for_each(|line| drop(line.as_object_mut().unwrap().remove("seconds")));
        lines
    };
    assert_eq!(metrics(&whole), metrics(&parts));
    assert_eq!(metrics(&whole).len(), 11 + 3);
    let at = |root: &Path, file| std::fs::read(root.join(file)).unwrap();
    assert_eq!(at(&whole, "model.safetensors"), at(&parts, "model.safetensors"));
}

#[test]
fn the_root_holds_the_best_weights_even_after_it_was_lost() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    // A rate this high ends worse than it was.
    let options = TrainOptions { learning_rate: 0.5, warmup_steps: 16, clip_norm: 0.0, ..options(16) };
    let (tokenizer, mut trainer) = trainer(&options);
    let mut folder = RunFolder::create(&root, &tokenizer, &trainer, "").unwrap();
    run_in(&mut folder, &mut trainer, None);
    drop(folder);
    let best = trainer.best().unwrap();
    assert!(best.step < 16, "the test needs a run that gets worse: best at step {}", best.step);

    let loss = |root: &Path| {
        let run = Run::open(root, &Device::Cpu).unwrap();
        let (_, corpus) = data();
        let batches = windows(&corpus.validation, 13, 315, Rest::Drop).unwrap();
        evaluate(&run.model, batches, &Device::Cpu).unwrap().loss
    };
    assert_eq!(loss(&root), best.validation_loss);
    std::fs::write(root.join("model.safetensors"), b"lost").unwrap();
    assert!(Run::open(&root, &Device::Cpu).is_err());
    let (mut folder, mut trainer) = resume(&root, &options).unwrap();
    folder.begin(&mut trainer).unwrap();
    assert_eq!(loss(&root), best.validation_loss);

    // What else the best checkpoint says is not needed.
    let checkpoint = root.join(format!("training/step-{:08}", best.step));
    std::fs::write(root.join("model.safetensors"), b"lost").unwrap();
    std::fs::write(checkpoint.join("state.json"), b"lost").unwrap();
    folder.begin(&mut trainer).unwrap();
    assert_eq!(loss(&root), best.validation_loss);

    // While they are at the root, their checkpoint is not needed.
    let good = std::fs::read(root.join("model.safetensors")).unwrap();
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for is_gone in [false, true] {
        match is_gone {
            false => std::fs::write(checkpoint.join("model.safetensors"), &damaged).unwrap(),
            true => std::fs::remove_dir_all(&checkpoint).unwrap(),
        }
        folder.begin(&mut trainer).unwrap();
        assert_eq!(std::fs::read(root.join("model.safetensors")).unwrap(), good);
        assert_eq!((folder.take_lost_best(), trainer.best()), (None, Some(best)));
    }

    // Lost in both places, the current weights replace them, in this session and the next.
    std::fs::write(root.join("model.safetensors"), &damaged).unwrap();
    let current = std::fs::read(root.join("training/step-00000016/model.safetensors")).unwrap();
    for _ in 0..2 {
        drop(folder);
        (folder, trainer) = resume(&root, &TrainOptions { steps: 18, ..options.clone() }).unwrap();
        folder.begin(&mut trainer).unwrap();
        assert_eq!((folder.take_lost_best(), folder.take_lost_best(), trainer.best()), (Some(best), None, None));
        assert_eq!(std::fs::read(root.join("model.safetensors")).unwrap(), current);
    }
    let mut lost = vec![];
    drop(folder);
    (folder, trainer) = resume(&root, &TrainOptions { steps: 18, ..options.clone() }).unwrap();
    let outcome = train(&mut trainer, Some(&mut folder), &mut |event| {
        if let Event::BestLost(best) = event {
            lost.push(best);
        }
        ControlFlow::Continue(())
    });
    assert_eq!((outcome.unwrap(), lost), (Outcome::Finished, vec![best]));
    assert_eq!(trainer.best().unwrap().step, 18);
    assert_eq!(loss(&root), trainer.best().unwrap().validation_loss);

    // And if these are lost too, nothing replaces them.
    std::fs::write(root.join("model.safetensors"), &damaged).unwrap();
    std::fs::write(root.join("training/step-00000018/model.safetensors"), &damaged).unwrap();
    let error = folder.begin(&mut trainer).unwrap_err().to_string();
    assert!(error.contains("broken checkpoint") && error.contains("are not the ones that were written"), "{error}");
    assert_eq!(std::fs::read(root.join("model.safetensors")).unwrap(), damaged);
}

#[test]
fn a_broken_checkpoint_or_another_text_is_refused() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let options = options(4);
    let (tokenizer, mut trainer) = trainer(&options);
    let mut folder = RunFolder::create(&root, &tokenizer, &trainer, "").unwrap();
    run_in(&mut folder, &mut trainer, None);
    drop(folder);
    let refusal = |result: candle_core::Result<(RunFolder, Trainer)>| result.err().unwrap().to_string();

    let other = TrainOptions { batch_size: 6, ..options.clone() };
    assert!(refusal(resume(&root, &other)).contains("resume: expected batch_size 5, as the run has, got 6"));
    let (folder, config, checkpoint) = RunFolder::resume(&root, &Device::Cpu).unwrap();
    drop(folder);
    let (_, corpus) = data();
    let changed = Corpus { fingerprint: "another".into(), ..corpus };
    let error = Trainer::resume(checkpoint, &config, &options, changed, &Device::Cpu).err().unwrap();
    assert!(error.to_string().contains("the text or the tokenizer is not the one"), "{error}");

    let current = root.join("training/step-00000004");
    for file in ["optimizer.safetensors", "model.safetensors", "state.json"] {
        let good = std::fs::read(current.join(file)).unwrap();
        let mut broken = good.clone();
        broken.truncate(good.len() - 3);
        std::fs::write(current.join(file), &broken).unwrap();
        assert!(refusal(resume(&root, &options)).contains("broken checkpoint"), "{file}");
        std::fs::write(current.join(file), &good).unwrap();
    }
    std::fs::write(root.join("training/current"), "../elsewhere\n").unwrap();
    assert!(refusal(resume(&root, &options)).contains("names no checkpoint"));
    assert!(RunFolder::create(&root, &tokenizer, &trainer, "").err().unwrap().to_string().contains("already exists"));
}

/// The content of `state.json` with this state, sealed as whoever wrote it.
pub fn sealed(mut state: serde_json::Value) -> String {
    state["seal"] = "".into();
    let json = serde_json::to_string_pretty(&state).unwrap();
    let sum: String = Sha256::digest(&json).iter().map(|byte| format!("{byte:02x}")).collect();
    json.replace("\"seal\": \"\"", &format!("\"seal\": \"{sum}\""))
}

#[test]
fn a_state_with_any_byte_changed_is_refused() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let options = options(4);
    drop(finished_run(&root, &options));
    let metrics = std::fs::read(root.join("training/metrics.jsonl")).unwrap();
    let path = root.join("training/step-00000004/state.json");
    let good = std::fs::read(&path).unwrap();
    for (at, &byte) in good.iter().enumerate() {
        let mut changed = good.clone();
        changed[at] = if byte.is_ascii_digit() { b'0' + (byte - b'0' + 1) % 10 } else { byte ^ 1 };
        std::fs::write(&path, &changed).unwrap();
        let text = String::from_utf8_lossy(&changed).into_owned();
        assert!(resume(&root, &options).is_err(), "byte {at}: {text}");
    }
    assert_eq!(std::fs::read(root.join("training/metrics.jsonl")).unwrap(), metrics);
    std::fs::write(&path, &good).unwrap();
    resume(&root, &options).unwrap();

    // Another checkpoint's state in its place.
    std::fs::rename(root.join("training/step-00000004"), root.join("training/step-00000003")).unwrap();
    std::fs::write(root.join("training/current"), "step-00000003\n").unwrap();
    let error = resume(&root, &options).err().unwrap().to_string();
    assert!(error.contains("its step is not the folder's"), "{error}");
}

#[test]
fn a_state_that_contradicts_itself_is_refused_whoever_sealed_it() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let options = options(4);
    drop(finished_run(&root, &options));
    let path = root.join("training/step-00000004/state.json");
    let good: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (place, value, expected) in [
        ("/step", serde_json::json!(5), "its step is not the folder's"),
        ("/validation_is_pending", true.into(), "its step is not the folder's"),
        ("/counters/skipped", 5.into(), "more steps are skipped than made"),
        ("/counters/skipped_in_a_row", 1.into(), "more steps are skipped in a row than in all"),
        ("/best/step", 5.into(), "the best model is not one of its steps"),
        ("/published/checkpoint", "../step-00000004".into(), "the weights at the root are not of an earlier step"),
        ("/published/checkpoint", "step-00000005".into(), "the weights at the root are not of an earlier step"),
        ("/seconds", (-1.0).into(), "the seconds are not a duration"),
    ] {
        let mut changed = good.clone();
        *changed.pointer_mut(place).unwrap() = value;
        std::fs::write(&path, sealed(changed)).unwrap();
        let error = resume(&root, &options).err().unwrap().to_string();
        assert!(error.contains("broken checkpoint") && error.contains(expected), "{place}: {error}");
    }
    std::fs::write(&path, sealed(good)).unwrap();
    resume(&root, &options).unwrap();
}

#[test]
fn metrics_that_are_shorter_than_they_were_are_told_of() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let options = options(4);
    drop(finished_run(&root, &options));
    assert_eq!(resume(&root, &options).unwrap().0.lost_metrics(), 0);
    let path = root.join("training/metrics.jsonl");
    let metrics = std::fs::read(&path).unwrap();
    std::fs::write(&path, &metrics[..metrics.len() - 3]).unwrap();
    let last = metrics.split_inclusive(|&byte| byte == b'\n').next_back().unwrap();
    assert_eq!(resume(&root, &options).unwrap().0.lost_metrics(), last.len() as u64);
}

#[test]
fn options_come_back_from_a_checkpoint_as_they_were() {
    for i in 0..60 {
        let learning_rate = 0.0017 + f64::from(i) * 0.000_113;
        let min_learning_rate = learning_rate / 10.0;
        let options = TrainOptions { learning_rate, min_learning_rate, ..options(1) };
        let json = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<TrainOptions>(&json).unwrap(), options);
    }
}

#[test]
fn shards_and_threads_leave_the_result_as_it_is() {
    let losses = |shards, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (_, mut trainer) = trainer(&TrainOptions { shards, ..options(20) });
            (0..20).map(|_| trainer.train_step().unwrap().loss).collect::<Vec<f64>>()
        })
    };
    let one = losses(1, 1);
    for shards in [2, 5] {
        let sharded = losses(shards, 1);
        // Threads: to the last bit. Shards: the same sums in another order.
        assert_eq!(sharded, losses(shards, 2));
        assert_eq!(sharded, losses(shards, 5));
        for (step, (loss, expected)) in sharded.iter().zip(&one).enumerate() {
            assert!((loss - expected).abs() < 1e-4, "{shards} shards, step {step}: {loss}, expected {expected}");
        }
    }
    assert_eq!(one, losses(1, 5));
}

#[test]
fn validation_builds_no_graph() {
    let (_, trainer) = trainer(&options(1));
    let ids = candle_core::Tensor::new(&[[1u32, 2, 3]], &Device::Cpu).unwrap();
    assert!(!trainer.model().forward(&ids).unwrap().track_op());
}

#[test]
fn sampling_follows_its_options() {
    let logits = [0.0f32, 3.0, 1.0, 2.9, f32::NEG_INFINITY];
    let draw = |options: SamplingOptions| {
        let mut sampler = Sampler::new(options, 1, 0).unwrap();
        (0..2000).map(|_| sampler.sample(&logits, &[]).unwrap()).collect::<Vec<_>>()
    };
    let share = |draws: &[u32], id| draws.iter().filter(|&&drawn| drawn == id).count() as f64 / draws.len() as f64;
    assert!(draw(SamplingOptions { temperature: 0.0, ..Default::default() }).iter().all(|&id| id == 1));
    let all = draw(SamplingOptions::default());
    let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    for (id, logit) in logits.iter().enumerate() {
        let expected = f64::from(*logit).exp() / total;
        // Four standard errors of a share of 2000 draws.
        let allowed = 4.0 * (expected * (1.0 - expected) / 2000.0).sqrt();
        let got = share(&all, id as u32);
        assert!((got - expected).abs() <= allowed, "id {id}: {got}, expected {expected} ± {allowed}");
    }
    let two = draw(SamplingOptions { top_k: Some(2), ..Default::default() });
    assert!(two.iter().all(|id| [1, 3].contains(id)) && share(&two, 3) > 0.3);
    // 1 and 3 have probabilities 0.48 and 0.43; 2 comes third.
    assert!(draw(SamplingOptions { top_p: Some(0.4), ..Default::default() }).iter().all(|&id| id == 1));
    let nucleus = draw(SamplingOptions { top_p: Some(0.6), ..Default::default() });
    assert!(nucleus.iter().all(|id| [1, 3].contains(id)) && share(&nucleus, 3) > 0.3);
    let cold = draw(SamplingOptions { temperature: 0.1, ..Default::default() });
    assert!(share(&cold, 1) > share(&all, 1) + 0.1);
    for options in [
        SamplingOptions { temperature: -1.0, ..Default::default() },
        SamplingOptions { temperature: f64::NAN, ..Default::default() },
        SamplingOptions { top_k: Some(0), ..Default::default() },
        SamplingOptions { top_p: Some(0.0), ..Default::default() },
    ] {
        assert!(Sampler::new(options, 1, 0).is_err(), "{options:?}");
    }
    assert!(Sampler::new(SamplingOptions::default(), 1, 0).unwrap().sample(&[f32::NAN], &[]).is_err());
}

#[test]
fn generation_goes_on_past_the_context_and_repeats_with_its_seed() {
    let options = TrainOptions { learning_rate: 1e-2, ..options(60) };
    let (tokenizer, mut trainer) = trainer(&options);
    for _ in 0..60 {
        trainer.train_step().unwrap();
    }
    let prompt = tokenizer.encode("one").unwrap();
    let text = |seed| {
        let mut sampler = Sampler::new(SamplingOptions::default(), seed, 0).unwrap();
        let go_on = &mut |_| ControlFlow::Continue(());
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

/// The scalars of every event file of a run: (step, name) and the bits of the value, in their order.
///
/// A reader of its own for the part of the format that is used; that the format is TensorBoard's is held in
/// `metrics::tensorboard`.
fn events(root: &Path) -> Vec<(u64, String, u32)> {
    let mut found = vec![];
    for entry in std::fs::read_dir(root.join("training/tensorboard")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            found.extend(scalars(&rest[12..12 + length]));
            rest = &rest[16 + length..];
        }
    }
    found
}

/// The fields of a protobuf message: number, integer or fixed value, bytes.
fn fields(mut message: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn varint(message: &mut &[u8]) -> u64 {
        let length = message.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let value = message[..length].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
        *message = &message[length..];
        value
    }
    let mut found = vec![];
    while !message.is_empty() {
        let key = varint(&mut message);
        let (mut value, mut length) = (0, 0);
        match key & 7 {
            0 => value = varint(&mut message),
            1 => length = 8,
            2 => length = varint(&mut message) as usize,
            _ => length = 4,
        }
        found.push((key >> 3, value, &message[..length]));
        message = &message[length..];
    }
    found
}

fn scalars(event: &[u8]) -> Vec<(u64, String, u32)> {
    let all = fields(event);
    let step = all.iter().find(|field| field.0 == 2).map_or(0, |field| field.1);
    let values = all.iter().filter(|field| field.0 == 5).flat_map(|field| fields(field.2));
    let scalar = |value: &[u8]| {
        let (mut tag, mut bits) = (String::new(), 0);
        for (number, _, bytes) in fields(value) {
            match number {
                1 => tag = String::from_utf8(bytes.to_vec()).unwrap(),
                _ => bits = u32::from_le_bytes(bytes.try_into().unwrap()),
            }
        }
        (step, tag, bits)
    };
    values.map(|value| scalar(value.2)).collect()
}

/// What the metrics say, as [`events`] gives it.
fn scalars_of_metrics(root: &Path) -> Vec<(u64, String, u32)> {
    let text = std::fs::read_to_string(root.join("training/metrics.jsonl")).unwrap();
    let mut found = vec![];
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let step = line["step"].as_u64().unwrap();
        let numbers =
            line.as_object().unwrap().iter().filter(|(name, _)| !["step", "seconds"].contains(&name.as_str()));
        found
            .extend(numbers.filter_map(|(name, value)| Some((step, name.clone(), (value.as_f64()? as f32).to_bits()))));
    }
    found
}

#[test]
fn events_and_plot_of_a_resumed_run_are_those_of_one_that_never_stopped() {
    let space = tempfile::tempdir().unwrap();
    let options = options(12);
    let [whole, parts] = ["whole", "parts"].map(|name| space.path().join(name));
    let plot = |root: &Path| std::fs::read_to_string(root.join("training/loss.svg")).unwrap();

    let (tokenizer, mut all) = trainer(&options);
    let mut folder = RunFolder::create(&whole, &tokenizer, &all, "").unwrap();
    run_in(&mut folder, &mut all, None);
    assert_eq!(events(&whole), scalars_of_metrics(&whole));
    assert_eq!(folder.plot(), whole.join("training/loss.svg"));
    drop(folder);

    let (tokenizer, mut first) = trainer(&options);
    let mut folder = RunFolder::create(&parts, &tokenizer, &first, "").unwrap();
    run_in(&mut folder, &mut first, Some(5));
    // Steps behind the last checkpoint, which a crash loses.
    for _ in 0..2 {
        let report = first.train_step().unwrap();
        folder.log(&report).unwrap();
    }
    drop(folder);
    let (mut folder, mut second) = resume(&parts, &options).unwrap();
    run_in(&mut folder, &mut second, None);
    assert_eq!(events(&parts), events(&whole));
    assert_eq!(plot(&parts), plot(&whole));
    assert_eq!(std::fs::read_dir(parts.join("training/tensorboard")).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_drawn_is_told_once_and_training_goes_on() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let options = options(8);
    let (tokenizer, mut trainer) = trainer(&options);
    let mut folder = RunFolder::create(&root, &tokenizer, &trainer, "").unwrap();
    std::fs::write(root.join("training/tensorboard"), b"in the way").unwrap();
    let mut told = vec![];
    let outcome = train(&mut trainer, Some(&mut folder), &mut |event| {
        if let Event::ChartsLost(error) = event {
            told.push(error.to_string());
        }
        ControlFlow::Continue(())
    });
    assert_eq!((outcome.unwrap(), trainer.step()), (Outcome::Finished, 8));
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("expected a folder"), "{told:?}");
    drop(folder);

    // The next session has them again.
    std::fs::remove_file(root.join("training/tensorboard")).unwrap();
    let (mut folder, mut trainer) = resume(&root, &options).unwrap();
    folder.begin(&mut trainer).unwrap();
    assert_eq!(events(&root), scalars_of_metrics(&root));
}
