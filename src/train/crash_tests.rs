//! Training runs that are killed at every change on disk, and runs on a disk that is full, read-only or fails once.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::{Device, Result, bail};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{Event, Outcome, RunFolder, TrainOptions, Trainer, train};
use crate::errors::bare;
use crate::files::faults::{self, Fault};
use crate::files::power::Disk;
use crate::model::ModelConfig;
use crate::text::{Corpus, CorpusOptions, Document, Spill, Tokenizer, TokenizerChoice, Validation, prepare};

const CONTEXT_LEN: usize = 5;

/// No fault, and no syncing.
const NEVER: Option<Fault> = Some(Fault::Killed(u64::MAX));

fn data() -> (Tokenizer, Corpus) {
    prepared(None).unwrap()
}

/// The data, with the ids in a file in the folder `spill`, or in memory.
fn prepared(spill: Option<PathBuf>) -> Result<(Tokenizer, Corpus)> {
    let documents = [Document::new("numbers", "one two three four five ".repeat(9))];
    let spill = spill.map(|folder| Spill { folder, above: 0 });
    let options = CorpusOptions { context_len: CONTEXT_LEN, spill };
    prepare(&documents, &Validation::Fraction(0.2), &TokenizerChoice::Characters, &options, &mut |_| {})
}

fn config(tokenizer: &Tokenizer) -> ModelConfig {
    ModelConfig {
        context_len: CONTEXT_LEN,
        embed_dim: 6,
        num_heads: 2,
        num_layers: 1,
        hidden_dim: 7,
        ..ModelConfig::gpt2(tokenizer.vocab_size())
    }
}

/// The options of a run whose best model is neither its first nor its last.
fn options() -> TrainOptions {
    TrainOptions {
        steps: 8,
        batch_size: 3,
        shards: 2,
        warmup_steps: 8,
        learning_rate: 0.9,
        clip_norm: 0.0,
        eval_every: 2,
        ..Default::default()
    }
}

/// Starts the run in `root`, with its ids in a file, or resumes it. With `breaks_off` it stops at the second
/// validation.
fn session(root: &Path, breaks_off: bool) -> Result<Outcome> {
    let beside = root.ancestors().skip(1).find(|folder| folder.is_dir()).map(Path::to_path_buf);
    session_with(root, beside, breaks_off, &mut |_| {})
}

/// The same with the ids of a new run in a file in `spill`, or in memory; `saved` is told each step that is safe on
/// disk.
fn session_with(root: &Path, spill: Option<PathBuf>, breaks_off: bool, saved: &mut dyn FnMut(u64)) -> Result<Outcome> {
    let mut made = 0;
    session_with_events(root, spill, None, &mut |event| {
        match event {
            Event::Step(report) => made = report.step,
            Event::Saved(step) => saved(*step),
            Event::Validating { .. } if breaks_off && made == 4 => return ControlFlow::Break(()),
            _ => {}
        }
        ControlFlow::Continue(())
    })
}

/// The same with a save interval and a listener, which is told of the first checkpoint too.
fn session_with_events(
    root: &Path,
    spill: Option<PathBuf>,
    save_every: Option<Duration>,
    on_event: &mut dyn FnMut(&Event) -> ControlFlow<()>,
) -> Result<Outcome> {
    let options = options();
    let (mut folder, mut trainer) = if RunFolder::exists(root) {
        let (folder, config, checkpoint) = RunFolder::resume(root, &Device::Cpu)?;
        let Some(corpus) = folder.ids(&mut |_| {})? else { bail!("the ids are lost") };
        (folder, Trainer::resume(checkpoint, &config, &options, corpus, &Device::Cpu)?)
    } else {
        let (tokenizer, corpus) = prepared(spill)?;
        let trainer = Trainer::new(&config(&tokenizer), &options, corpus, &Device::Cpu)?;
        (RunFolder::create(root, &tokenizer, &trainer, "")?, trainer)
    };
    save_every.into_iter().for_each(|time| folder.set_save_interval(time));
    let _ = on_event(&Event::Saved(trainer.step()));
    train(&mut trainer, Some(&mut folder), &mut |event| on_event(&event))
}

/// All files of a finished run by path, without what depends on the time.
fn content(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut content = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // Names and content of event files depend on the date.
                folders.extend((!path.ends_with("tensorboard")).then_some(path));
                continue;
            }
            let mut bytes = std::fs::read(&path).unwrap();
            if path.ends_with("metrics.jsonl") || path.ends_with("state.json") {
                bytes = without_times(&String::from_utf8(bytes).unwrap());
            }
            content.push((path.strip_prefix(root).unwrap().display().to_string(), bytes));
        }
    }
    content.sort();
    content
}

/// The objects in `json` without their seconds, and fields that depend on these.
fn without_times(json: &str) -> Vec<u8> {
    let objects = serde_json::Deserializer::from_str(json).into_iter::<serde_json::Value>();
    let mut text = String::new();
    for object in objects {
        let mut object = object.unwrap();
        for name in ["seconds", "metrics_bytes", "seal"] {
            object.as_object_mut().unwrap().remove(name);
        }
        text += &format!("{object}\n");
    }
    text.into()
}

fn assert_same(got: &[(String, Vec<u8>)], expected: &[(String, Vec<u8>)], label: &str) {
    let names = |content: &[(String, Vec<u8>)]| content.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(got), names(expected), "{label}");
    for ((name, got), (_, expected)) in got.iter().zip(expected) {
        assert!(got == expected, "{label}: {name}\n{}", String::from_utf8_lossy(got));
    }
}

/// The files of an undisturbed run.
fn undisturbed() -> Vec<(String, Vec<u8>)> {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    assert_eq!(session(&root, false).unwrap(), Outcome::Finished);
    let content = content(&root);
    let of = |name: &str| content.iter().filter(|(path, _)| path.contains(name)).count();
    assert!(of("step-00000008") == 3 && of("step-00000004") == 3 && of("step-") == 6, "the best is that of step 4");
    content
}

/// The number of changes that a run makes, broken off once and resumed.
fn changes() -> u64 {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    faults::with(NEVER, || {
        assert_eq!(session(&root, true).unwrap(), Outcome::Interrupted);
        assert_eq!(session(&root, false).unwrap(), Outcome::Finished);
    })
    .1
}

/// Checks that a run with these faults, one per session, and a last session without, ends like an undisturbed run.
/// Gives whether the first fault struck.
fn survives(faults: &[Fault], expected: &[(String, Vec<u8>)]) -> bool {
    let mut struck = Vec::new();
    let label = format!("{faults:?}");
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    for &fault in faults {
        let disturbed = || session(&root, true).and_then(|_| session(&root, false));
        struck.push(faults::with(Some(fault), disturbed).0.is_err());
        assert_eq!(root.exists(), RunFolder::exists(&root), "{label}: a folder that is no run");
    }
    let outcome = faults::with(NEVER, || session(&root, false)).0;
    assert_eq!(outcome.unwrap_or_else(|error| panic!("{label}: {error}")), Outcome::Finished, "{label}");
    assert_same(&content(&root), expected, &label);
    for left in std::fs::read_dir(space.path()).unwrap() {
        let left = left.unwrap().path();
        // Killed between linking and unlinking the ids, it leaves the first name; the next such run removes it.
        let is_ids = left.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".attn-ids-"));
        assert!(left == root || is_ids || content(&left).is_empty(), "{label}: {} is left", left.display());
    }
    struck[0]
}

#[test]
fn a_run_that_is_killed_at_any_change_of_the_disk_ends_as_if_it_was_not() {
    let (expected, changes) = (undisturbed(), changes());
    assert!(changes > 130, "{changes} changes");
    for n in 0..changes {
        assert!(survives(&[Fault::Killed(n)], &expected), "nothing failed at {n}");
        // The second fault strikes during recovery.
        survives(&[Fault::Torn(n), Fault::Killed(n * 31 % 97)], &expected);
    }
}

#[test]
fn a_run_that_saves_after_every_step_is_killed_and_loses_nothing_beyond_the_last() {
    let (expected, mut last) = (undisturbed(), 0);
    for n in (0..).step_by(3) {
        let space = tempfile::tempdir().unwrap();
        let root = space.path().join("run");
        let (mut made, mut saved) = (0, 0);
        let session_until_killed = || {
            session_with_events(&root, None, Some(Duration::ZERO), &mut |event| {
                match event {
                    Event::Step(report) => made = report.step,
                    Event::Saved(step) => saved = *step,
                    _ => {}
                }
                assert!(made <= saved + 1, "step {made} is made, and {saved} the last that is saved");
                if saved == 5 && made == 5 {
                    let weights = |of: &str| std::fs::read(root.join(of).join("model.safetensors")).unwrap();
                    assert!(weights("") == weights("training/step-00000004"), "the best weights are not at the root");
                }
                ControlFlow::Continue(())
            })
        };
        let outcome = faults::with(Some(Fault::Killed(n)), session_until_killed).0;
        if RunFolder::exists(&root) {
            let (_folder, _, checkpoint) = RunFolder::resume(&root, &Device::Cpu).unwrap();
            assert!(checkpoint.state.step >= saved, "killed at {n}: step {saved} was safe");
        }
        assert_eq!(faults::with(NEVER, || session(&root, false)).0.unwrap(), Outcome::Finished);
        assert_same(&content(&root), &expected, &format!("killed at {n}"));
        last = n;
        if outcome.is_ok() {
            break;
        }
    }
    assert!(last > 150, "{last} changes");
}

#[test]
fn a_run_of_ids_in_memory_that_is_killed_while_it_is_created_leaves_none() {
    let expected = undisturbed();
    for n in 0.. {
        let space = tempfile::tempdir().unwrap();
        let root = space.path().join("run");
        let torn = faults::with(Some(Fault::Torn(n)), || session_with(&root, None, true, &mut |_| {})).0;
        assert!(torn.is_err(), "nothing failed at {n}");
        let is_created = root.exists();
        let outcome = faults::with(NEVER, || session(&root, false)).0;
        assert_eq!(outcome.unwrap(), Outcome::Finished);
        assert_same(&content(&root), &expected, &format!("torn at {n}"));
        if is_created {
            assert!(n > 20, "created after {n} changes");
            break;
        }
    }
}

/// On a disk that loses what was not synced, all of it or any part.
#[test]
fn a_power_failure_at_any_change_of_the_disk_leaves_a_run_that_ends_as_if_there_was_none() {
    let expected = undisturbed();
    let space = tempfile::tempdir().unwrap();
    // The parents of the run are new, and can be lost as well.
    let place = Path::new("runs/today/run");
    let mut saved = Vec::new();
    let made = faults::recorded(|| {
        let root = space.path().join(place);
        for (breaks_off, outcome) in [(true, Outcome::Interrupted), (false, Outcome::Finished)] {
            let told = &mut |step| saved.push((faults::changes(), step));
            let spill = Some(space.path().to_path_buf());
            assert_eq!(session_with(&root, spill, breaks_off, told).unwrap(), outcome);
        }
    });
    let mut disk = Disk::new(space.path());
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (n, change) in made.iter().enumerate() {
        disk.apply(change);
        for is_any_part in [false, true, true] {
            let label = format!("after {} of {} changes, {change:?}, {is_any_part}", n + 1, made.len());
            let survivors = tempfile::tempdir().unwrap();
            disk.survivors(survivors.path(), is_any_part.then_some(&mut rng));
            let root = survivors.path().join(place);
            assert_eq!(root.exists(), RunFolder::exists(&root), "{label}: a folder that is no run");
            if let Some((_, step)) = saved.iter().rfind(|(changes, _)| *changes <= n as u64 + 1) {
                let (_, _, checkpoint) = RunFolder::resume(&root, &Device::Cpu).expect(&label);
                assert!(checkpoint.state.step >= *step, "{label}: step {step} was safe");
            }
            let outcome = faults::with(NEVER, || session(&root, false)).0;
            assert_eq!(outcome.unwrap_or_else(|error| panic!("{label}: {error}")), Outcome::Finished, "{label}");
            assert_same(&content(&root), &expected, &label);
        }
    }
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint_and_room_is_all_it_takes_to_go_on() {
    let (expected, changes) = (undisturbed(), changes());
    let struck = (0..changes).filter(|&n| survives(&[Fault::Full(n)], &expected)).count() as u64;
    assert!(struck > changes / 2 && struck < changes, "{struck} of {changes} changes failed");
}

#[test]
fn a_save_that_failed_can_be_tried_again() {
    let (tokenizer, corpus) = data();
    for n in 0..20 {
        let space = tempfile::tempdir().unwrap();
        let root = space.path().join("run");
        let mut trainer = Trainer::new(&config(&tokenizer), &options(), corpus.clone(), &Device::Cpu).unwrap();
        let mut folder = RunFolder::create(&root, &tokenizer, &trainer, "").unwrap();
        let report = trainer.train_step().unwrap();
        let failed = faults::with(Some(Fault::Full(n)), || folder.log(&report).and_then(|()| folder.save(&trainer))).0;
        assert_eq!(failed.is_err(), n <= 16, "at {n}: {failed:?}");
        if n == 0 {
            folder.log(&report).unwrap();
        }
        folder.save(&trainer).unwrap();
        drop(folder);
        let (_, _, checkpoint) = RunFolder::resume(&root, &Device::Cpu).unwrap();
        assert_eq!(checkpoint.state.step, 1);
        let metrics = std::fs::read_to_string(root.join("training/metrics.jsonl")).unwrap();
        assert_eq!(metrics.lines().count(), 1, "{metrics}");
    }
}

/// A trainer at step 1, and the folder of its run at step 0.
fn run_before_a_save(root: &Path) -> (RunFolder, Trainer) {
    let (tokenizer, corpus) = data();
    let mut trainer = Trainer::new(&config(&tokenizer), &options(), corpus, &Device::Cpu).unwrap();
    let mut folder = RunFolder::create(root, &tokenizer, &trainer, "").unwrap();
    let report = trainer.train_step().unwrap();
    folder.log(&report).unwrap();
    (folder, trainer)
}

fn step_on_disk(root: &Path) -> u64 {
    RunFolder::resume(root, &Device::Cpu).unwrap().2.state.step
}

/// Even where a rename has succeeded and only its sync fails.
#[test]
fn a_save_with_one_error_at_any_change_can_be_tried_again() {
    let mut failures = 0;
    for n in 0.. {
        let space = tempfile::tempdir().unwrap();
        let root = space.path().join("run");
        let (mut folder, trainer) = run_before_a_save(&root);
        let (failed, changes) = faults::with(Some(Fault::Once(n)), || folder.save(&trainer));
        failures += u64::from(failed.is_err());
        if let Err(error) = failed {
            assert!(error.to_string().contains("input/output error"), "{error}");
        }
        folder.save(&trainer).unwrap();
        drop(folder);
        assert_eq!(step_on_disk(&root), 1, "after an error at {n}");
        if n >= changes {
            break;
        }
    }
    // All but the removal of a temporary file.
    assert!(failures > 14, "{failures} failures");
}

/// After an error whose rename has taken effect the pointer names the new checkpoint, which must then stay.
#[test]
fn a_save_that_is_tried_again_and_killed_leaves_a_run_that_opens() {
    for n in 0.. {
        let mut is_over = false;
        for m in 0.. {
            let space = tempfile::tempdir().unwrap();
            let root = space.path().join("run");
            let (mut folder, trainer) = run_before_a_save(&root);
            let (_, changes) = faults::with(Some(Fault::Once(n)), || folder.save(&trainer));
            is_over = n >= changes;
            let killed = faults::with(Some(Fault::Killed(m)), || folder.save(&trainer)).0;
            drop(folder);
            assert!(step_on_disk(&root) <= 1, "after an error at {n}, killed at {m}");
            if killed.is_ok() {
                break;
            }
        }
        if is_over {
            break;
        }
    }
}

#[test]
fn a_run_with_one_error_at_any_change_of_its_creation_is_not_there_and_can_be_created() {
    let (tokenizer, corpus) = data();
    let trainer = Trainer::new(&config(&tokenizer), &options(), corpus, &Device::Cpu).unwrap();
    for n in 0.. {
        let space = tempfile::tempdir().unwrap();
        let root = space.path().join("run");
        let create = || RunFolder::create(&root, &tokenizer, &trainer, "").map(drop);
        let (created, changes) = faults::with(Some(Fault::Once(n)), create);
        if let Err(error) = created {
            assert!(error.to_string().contains("input/output error"), "at {n}: {error}");
            assert_eq!(std::fs::read_dir(space.path()).unwrap().count(), 0, "at {n}");
            create().unwrap();
        }
        assert_eq!(step_on_disk(&root), 0, "after an error at {n}");
        if n >= changes {
            assert!(n > 20, "{n} changes");
            break;
        }
    }
}

#[test]
fn on_a_read_only_disk_everything_fails_and_nothing_changes() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let read_only = |work: &mut dyn FnMut() -> Result<()>| {
        let error = bare(&faults::with(Some(Fault::ReadOnly), work).0.unwrap_err()).to_string();
        assert!(error.contains("read-only"), "{error}");
    };
    let (tokenizer, corpus) = data();
    let new = Trainer::new(&config(&tokenizer), &options(), corpus, &Device::Cpu).unwrap();
    read_only(&mut || RunFolder::create(&root, &tokenizer, &new, "").map(drop));
    assert_eq!(std::fs::read_dir(space.path()).unwrap().count(), 0);

    let (mut folder, trainer) = run_before_a_save(&root);
    let before = content(&root);
    read_only(&mut || folder.save(&trainer));
    assert_same(&content(&root), &before, "after a save");
    drop(folder);
    read_only(&mut || session(&root, false).map(drop));
    assert_same(&content(&root), &before, "after resuming");
    assert_eq!(step_on_disk(&root), 0);
}

/// Another process looks for abandoned folders while a run is being created, also before the lock is taken.
#[test]
fn a_run_that_is_being_created_is_not_taken_for_abandoned() {
    let space = tempfile::tempdir().unwrap();
    let (tokenizer, corpus) = data();
    let trainer = Trainer::new(&config(&tokenizer), &options(), corpus, &Device::Cpu).unwrap();
    let is_done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                super::lock::remove_dead_staging_folders(&space.path().join("other"));
            }
        });
        for n in 0..200 {
            let root = space.path().join(format!("run-{n}"));
            let created = faults::with(NEVER, || RunFolder::create(&root, &tokenizer, &trainer, "")).0;
            let label = || is_done.store(true, std::sync::atomic::Ordering::Relaxed);
            let folder = created.inspect_err(|_| label()).unwrap();
            assert!(root.join("training/lock").exists(), "{n}");
            drop(folder);
        }
        is_done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// A validated state that cannot be saved makes no other weights the best ones.
#[test]
fn the_weights_at_the_root_are_those_of_the_best_model_that_was_saved() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let (tokenizer, corpus) = data();
    let tame = TrainOptions { learning_rate: 1e-2, warmup_steps: 0, ..options() };
    let mut trainer = Trainer::new(&config(&tokenizer), &tame, corpus, &Device::Cpu).unwrap();
    let mut folder = RunFolder::create(&root, &tokenizer, &trainer, "").unwrap();
    // Steps with a validation that is the best so far, and steps that are saved; then the best step on disk.
    for (step, is_validated, is_saved, best) in [
        (1, true, false, None),
        (2, false, true, None),
        (3, true, true, Some(3)),
        (4, true, false, Some(3)),
        (5, false, true, Some(3)),
        (6, true, true, Some(6)),
        (7, false, true, Some(6)),
    ] {
        trainer.train_step().unwrap();
        if is_validated {
            assert!(trainer.validate().unwrap().is_best, "step {step}");
        }
        let fault = if is_saved { NEVER } else { Some(Fault::Full(0)) };
        assert_eq!(faults::with(fault, || folder.save(&trainer)).0.is_ok(), is_saved, "step {step}");
        drop(folder);
        let (reopened, _, checkpoint) = RunFolder::resume(&root, &Device::Cpu).unwrap();
        folder = reopened;
        assert_eq!(checkpoint.state.best.map(|best| best.step), best, "step {step}");
        let published = best.unwrap_or(checkpoint.state.step);
        let weights = |of: &str| std::fs::read(root.join(of).join("model.safetensors")).unwrap();
        assert!(weights("") == weights(&format!("training/step-{published:08}")), "step {step}");
    }
}

#[test]
fn too_little_space_is_seen_before_anything_is_written() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let little = |work: &mut dyn FnMut() -> Result<()>| {
        bare(&faults::with_available_space(3_000_000, work).unwrap_err()).to_string()
    };
    let (tokenizer, corpus) = data();
    let mut trainer = Trainer::new(&config(&tokenizer), &options(), corpus, &Device::Cpu).unwrap();
    let error = little(&mut || RunFolder::create(&root, &tokenizer, &trainer, "").map(drop));
    assert!(error.contains("no space for the run: it needs 8.4 MB on the disk of"), "{error}");
    assert!(error.ends_with("with 3.0 MB available"), "{error}");
    assert_eq!(std::fs::read_dir(space.path()).unwrap().count(), 0);

    let mut folder = RunFolder::create(&root, &tokenizer, &trainer, "").unwrap();
    let before = content(&root);
    trainer.train_step().unwrap();
    let error = little(&mut || folder.save(&trainer));
    assert!(error.contains("no space for a checkpoint: it needs 3.2 MB on the disk of"), "{error}");
    assert_same(&content(&root), &before, "after the refusal");
    folder.save(&trainer).unwrap();
}
