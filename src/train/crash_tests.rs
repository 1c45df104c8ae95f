//! Runs whose process is killed at any change on disk, whose disk is full from any change on, or has one error at any.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::Device;

use super::{Event, Outcome, RunDir, TrainOptions, Trainer, checkpoint, resume, train};
use crate::host::disk::{Change, sibling};
use crate::host::faults::{self, Fault};
use crate::host::{Error, Result};
use crate::model::ModelConfig;
use crate::text::{Document, IdsStore, TextOptions, Validation, prepare};

/// No fault; syncing is left out.
const NONE: Option<Fault> = Some(Fault::Killed(usize::MAX));

/// A run of several validations whose best model is neither its first nor its last.
fn options() -> TrainOptions {
    TrainOptions {
        steps: 8,
        batch: 3,
        shards: 2,
        lr: 0.9,
        warmup: 1.0,
        clip: 0.0,
        eval_every: Some(2),
        ..Default::default()
    }
}

/// A new run in `root`.
fn new_run(root: &Path, options: &TrainOptions) -> Result<(Trainer, RunDir)> {
    let mut run = RunDir::create(root)?;
    let documents = [Document::new("numbers", "one two three four five ".repeat(9))];
    let (ids, validation, choice) = (run.ids_path(), Validation::Fraction(0.2), "char".parse()?);
    let (tokenizer, corpus) =
        prepare(&documents, &validation, &choice, TextOptions::default(), IdsStore::File(&ids), &mut |_| {})?;
    let config = ModelConfig {
        context_len: 5,
        embed_dim: 6,
        num_heads: 2,
        num_layers: 1,
        hidden_dim: 7,
        ..ModelConfig::gpt2(tokenizer.vocab_size())
    };
    let trainer = Trainer::new(&config, options, corpus, &Device::Cpu)?;
    run.begin(&tokenizer, &trainer, &toml::Table::new())?;
    Ok((trainer, run))
}

/// Opens the run in `root` again, of which nothing may be damaged.
fn resumed(root: &Path) -> Result<(Trainer, RunDir)> {
    let (trainer, run, damaged) = resume(root, &toml::Table::new(), &Device::Cpu, &mut |_| {})?;
    assert!(damaged.is_empty(), "{damaged:?}");
    Ok((trainer, run))
}

/// Creates the run in `root`, or goes on with it; adds to `saved` the steps that are reported as safe. With `breaks_off` it
/// stops in the second validation.
fn session(root: &Path, options: &TrainOptions, breaks_off: bool, saved: &mut Vec<u64>) -> Result<Outcome> {
    let is_new = !root.join("training").exists();
    let (mut trainer, mut run) = if is_new { new_run(root, options)? } else { resumed(root)? };
    saved.push(trainer.steps_done());
    let mut step = trainer.steps_done();
    train(&mut trainer, Some(&mut run), &mut |event| {
        match event {
            Event::Step(report) => step = report.step,
            Event::Saved(step) => saved.push(step),
            Event::Validating { .. } if breaks_off && step == 4 => return ControlFlow::Break(()),
            _ => {}
        }
        ControlFlow::Continue(())
    })
}

/// A run that is broken off once and resumed.
fn two_sessions(root: &Path, options: &TrainOptions, saved: &mut Vec<u64>) -> Result<Outcome> {
    session(root, options, true, saved)?;
    session(root, options, false, saved)
}

/// Everything in a run but times, by path.
fn content(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut content = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root) {
        let path = entry.unwrap().into_path();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        // Names and content of event files depend on the date.
        if path.is_file() && !name.contains("tensorboard") {
            let bytes = match name.as_str() {
                "training/metrics.jsonl" => without_times(&fs::read_to_string(&path).unwrap()),
                _ if name.contains("/step-") => checkpoint_content(&path),
                _ => fs::read(&path).unwrap(),
            };
            content.insert(name, bytes);
        }
    }
    content
}

fn checkpoint_content(path: &Path) -> Vec<u8> {
    let (state, tensors) = checkpoint::read(path, &Device::Cpu).unwrap();
    let mut bytes = without_times(&state);
    for (name, tensor) in tensors {
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        bytes.extend(name.bytes().chain(values.into_iter().flat_map(f32::to_le_bytes)));
    }
    bytes
}

/// JSON objects without their seconds, and what depends on the number of their digits.
fn without_times(json: &str) -> Vec<u8> {
    let objects = serde_json::Deserializer::from_str(json).into_iter::<serde_json::Value>();
    let strip = |object: serde_json::Result<serde_json::Value>| {
        let mut object = object.unwrap();
        object.as_object_mut().unwrap().retain(|name, _| name != "seconds" && name != "metrics_bytes");
        format!("{object}\n")
    };
    objects.map(strip).collect::<String>().into()
}

fn assert_same(got: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>, label: &str) {
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{label}");
    for (name, bytes) in got {
        assert!(bytes == &expected[name], "{label}: {name}\n{}", String::from_utf8_lossy(bytes));
    }
}

/// The content of a run that was never stopped.
fn undisturbed(options: &TrainOptions) -> BTreeMap<String, Vec<u8>> {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let outcome = faults::with(NONE, || session(&root, options, false, &mut vec![])).0;
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    content(&root)
}

/// The changes of a run that is broken off once and resumed.
fn changes(root: &Path, options: &TrainOptions) -> Vec<(Change, PathBuf)> {
    let (outcome, changes) = faults::with(NONE, || two_sessions(root, options, &mut vec![]));
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    changes
}

fn has_checkpoint(root: &Path) -> bool {
    checkpoint::steps(&root.join("training")).is_ok_and(|steps| !steps.is_empty())
}

/// Checks that a run with these faults, one after the other, and then none ends as one that was never stopped. Gives whether
/// the first fault has stopped it.
fn survives(options: &TrainOptions, faults: &[Fault], expected: &BTreeMap<String, Vec<u8>>) -> bool {
    let (space, label) = (tempfile::tempdir().unwrap(), format!("{faults:?}"));
    let (root, mut stopped, mut safe) = (space.path().join("run"), vec![], 0);
    for &fault in faults {
        let mut saved = vec![];
        let outcome = faults::with(Some(fault), || two_sessions(&root, options, &mut saved)).0;
        stopped.push(outcome.is_err());
        // A process that goes on after an error removes what it cannot complete; one that is killed cannot.
        let is_killed = matches!(fault, Fault::Killed(_) | Fault::Torn(_));
        if !has_checkpoint(&root) && !is_killed {
            let left = fs::read_dir(&root).map_or(0, Iterator::count);
            assert_eq!(left, 0, "{label}: {outcome:?}");
        }
        safe = saved.into_iter().fold(safe, u64::max);
    }
    faults::with(NONE, || {
        let is_committed = has_checkpoint(&root);
        if root.join("training").exists() && !is_committed {
            for refused in [resumed(&root).map(drop), RunDir::create(&root).map(drop)] {
                assert!(matches!(&refused, Err(Error::Unfinished(folder)) if *folder == root), "{label}: {refused:?}");
            }
            fs::remove_dir_all(&root).unwrap();
        }
        let mut saved = vec![];
        let outcome = session(&root, options, false, &mut saved);
        assert_eq!(outcome.unwrap_or_else(|error| panic!("{label}: {error}")), Outcome::Finished, "{label}");
        assert!(saved[0] >= safe && (is_committed || safe == 0), "{label}: step {safe} was safe, got {}", saved[0]);
    });
    assert_same(&content(&root), expected, &label);
    stopped[0]
}

#[test]
fn a_run_that_is_killed_at_any_change_on_disk_ends_as_one_that_was_never_stopped() {
    let (options, space) = (options(), tempfile::tempdir().unwrap());
    let (expected, changes) = (undisturbed(&options), changes(&space.path().join("run"), &options).len());
    let root_weights = String::from_utf8_lossy(&expected["model.safetensors"]).into_owned();
    let is_of = |step: &str| root_weights.contains(&format!(r#""step":"{step}""#));
    assert!(is_of("4") || is_of("6"), "the best is to be neither the first nor the last: {root_weights}");
    assert!(changes > 100, "{changes} changes");
    for n in 0..changes {
        assert!(survives(&options, &[Fault::Killed(n)], &expected), "nothing failed at {n}");
        // The second one strikes while the run is resumed.
        survives(&options, &[Fault::Torn(n), Fault::Killed(n * 31 % 53)], &expected);
    }
}

#[test]
fn a_run_that_saves_after_every_step_loses_none_that_was_reported_as_safe() {
    let (options, space) = (TrainOptions { save_every: 0.0, ..options() }, tempfile::tempdir().unwrap());
    let (expected, changes) = (undisturbed(&options), changes(&space.path().join("run"), &options).len());
    for n in (0..changes).step_by(3) {
        assert!(survives(&options, &[Fault::Torn(n)], &expected), "nothing failed at {n}");
    }
}

#[test]
fn a_full_disk_or_an_error_stops_a_run_and_the_last_checkpoint_stands() {
    let (options, space) = (options(), tempfile::tempdir().unwrap());
    let (expected, changes) = (undisturbed(&options), changes(&space.path().join("run"), &options).len());
    let stopped = (0..changes).filter(|&n| survives(&options, &[Fault::Full(n)], &expected)).count();
    // The last changes take no space.
    assert!(stopped > changes / 2 && stopped < changes, "{stopped} of {changes}");
    for n in 0..changes {
        assert!(survives(&options, &[Fault::Once(n)], &expected), "nothing failed at {n}");
    }
}

/// Even where the rename has succeeded and only its sync fails.
#[test]
fn a_save_that_failed_can_be_tried_again() {
    for n in 0.. {
        let space = tempfile::tempdir().unwrap();
        let root = space.path().join("run");
        let (mut trainer, mut run) = faults::with(NONE, || new_run(&root, &options())).0.unwrap();
        let batch = trainer.next_batch().unwrap();
        trainer.step(&batch).unwrap();
        let (failed, changes) = faults::with(Some(Fault::Once(n)), || run.save(&trainer));
        assert_eq!(failed.is_err(), n < changes.len(), "{n}: {failed:?}");
        faults::with(NONE, || run.save(&trainer)).0.unwrap();
        drop(run);
        assert_eq!(faults::with(NONE, || resumed(&root)).0.unwrap().0.steps_done(), 1, "{n}");
        if failed.is_ok() {
            assert!(n > 8, "{n} changes");
            break;
        }
    }
}

/// The order that a power failure asks for: what a rename makes visible is on the disk before, and so is everything that it
/// refers to.
#[test]
fn what_is_renamed_is_synced_before_and_its_folder_after() {
    let space = tempfile::tempdir().unwrap();
    // The folders above the run are new too.
    let root = space.path().join("runs/today/run");
    let changes = changes(&root, &options());
    let training = root.join("training");
    let before =
        |at: usize, path: &Path| changes[..at].iter().rev().find(|(_, its)| its == path).map(|(change, _)| *change);
    let position = |change: Change, path: &Path| changes.iter().position(|made| *made == (change, path.to_path_buf()));
    let (mut checkpoints, mut published) = (vec![], 0);
    for (at, (change, path)) in changes.iter().enumerate() {
        assert!(path.starts_with(space.path()), "{path:?}");
        let folder_is_synced = || {
            let folder = path.parent().unwrap().to_path_buf();
            assert_eq!(changes.get(at + 1), Some(&(Change::SyncFolder, folder)), "after {change:?} of {path:?}");
        };
        match change {
            Change::CreateFolder => folder_is_synced(),
            Change::Rename => {
                assert_eq!(changes[at - 1], (Change::Sync, sibling(path)), "before the rename of {path:?}");
                folder_is_synced();
            }
            _ => continue,
        }
        let step =
            path.file_stem().unwrap().to_string_lossy().strip_prefix("step-").map(|step| step.parse::<u64>().unwrap());
        if let Some(step) = step.filter(|_| *change == Change::Rename) {
            assert_eq!(before(at, &training.join("metrics.jsonl")), Some(Change::Sync), "step {step}");
            checkpoints.push(step);
        }
        if path.ends_with("model.safetensors") {
            published += 1;
            assert!(published <= checkpoints.len(), "the weights at the root come before the checkpoint");
        }
    }
    assert_eq!(checkpoints, [0, 2, 4, 4, 6, 8]);
    let first = position(Change::Rename, &checkpoint::path(&training, 0)).unwrap();
    for name in ["config.json", "generation_config.json", "tokenizer.json", "training/settings.toml"] {
        assert!(position(Change::Rename, &root.join(name)).unwrap() < first, "{name}");
    }
    // Both the ids and their name.
    let ids = training.join("ids.safetensors");
    assert_eq!(before(first, &ids), Some(Change::Sync));
    let synced = changes[..first].iter().rposition(|made| *made == (Change::SyncFolder, training.clone())).unwrap();
    assert!(position(Change::Write, &ids).unwrap() < synced);
    for step in [0, 2, 4, 6] {
        if let Some(removed) = position(Change::Remove, &checkpoint::path(&training, step)) {
            let later = changes[..removed].iter().filter(|(change, path)| {
                let newer =
                    [2, 4, 6, 8].iter().any(|other| *other > step && *path == checkpoint::path(&training, *other));
                *change == Change::Rename && newer
            });
            assert!(later.count() >= options().keep, "step {step}");
        }
    }
}
