//! The folder of a run: who may create it, what is opened again after a crash or damage, and what is removed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Barrier;

use candle_attention::Error;
use candle_attention::generate::Pipeline;
use candle_attention::text::{Document, IdsStore, TextOptions, Validation, prepare};
use candle_attention::train::{Outcome, RunDir, TrainOptions, evaluate};
use candle_core::Device;

use crate::training::{
    data, finished_run, metrics, moments, new_run, options, resume, resume_damaged, run_in, trainer, weights,
};

/// All files and folders below a folder, with the content of files, but TensorBoard's, which each session writes anew.
fn tree(root: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let entries = walkdir::WalkDir::new(root).min_depth(1).into_iter().map(|entry| entry.unwrap().into_path());
    let entries = entries.filter(|path| !path.to_string_lossy().contains("tensorboard"));
    let name = |path: &Path| path.strip_prefix(root).unwrap().display().to_string();
    entries.map(|path| (name(&path), path.is_file().then(|| fs::read(&path).unwrap()))).collect()
}

fn assert_unchanged(root: &Path, before: &BTreeMap<String, Option<Vec<u8>>>) {
    let after = tree(root);
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    for (name, content) in after {
        assert!(content == before[&name], "{name}");
    }
}

fn checkpoint(root: &Path, step: u64) -> std::path::PathBuf {
    root.join(format!("training/step-{step:08}.safetensors"))
}

fn checkpoints(root: &Path) -> Vec<u64> {
    let names = tree(&root.join("training")).into_keys();
    names.filter_map(|name| name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()).collect()
}

/// Changes one bit in the middle of a file.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_run_is_created_in_a_new_or_an_empty_folder() {
    let space = tempfile::tempdir().unwrap();
    let (new, empty) = (space.path().join("some/new/run"), space.path().join("empty"));
    fs::create_dir(&empty).unwrap();
    for root in [&new, &empty] {
        drop(new_run(root, &options(4)));
        assert_eq!(resume(root, "").unwrap().1.steps_done(), 0);
        assert!(matches!(RunDir::create(root), Err(Error::Exists(its)) if its == *root));
    }
}

#[test]
fn where_there_is_something_nothing_is_created() {
    const NO_CHECKPOINTS: &str = "has no checkpoints: they were removed, or the run is one of an earlier version";
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("folder");
    let file = |name: &str| {
        let path = space.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "precious").unwrap();
    };
    for (files, expected) in [
        (&["folder/.hidden"][..], "is not a run"),
        // A project with a folder of that name is no run.
        (&["folder/training/data.txt"], "is not a run"),
        (&["folder/training"], "is not a run"),
        (&["folder"], "is not a run"),
        // A run whose checkpoints were removed to save space.
        (&["folder/training/lock", "folder/model.safetensors"], NO_CHECKPOINTS),
        // Checkpoints were folders once.
        (
            &[
                "folder/training/lock",
                "folder/training/current",
                "folder/training/step-00000004/state.json",
                "folder/model.safetensors",
            ],
            NO_CHECKPOINTS,
        ),
    ] {
        files.iter().for_each(|name| file(name));
        let before = tree(space.path());
        assert!(matches!(RunDir::create(&root), Err(Error::Exists(its)) if its == root), "{files:?}");
        let error = resume(&root, "").err().unwrap();
        assert!(matches!(error, Error::Input(_)) && error.to_string().contains(expected), "{files:?}: {error:?}");
        assert_unchanged(space.path(), &before);
        if root.is_dir() { fs::remove_dir_all(&root).unwrap() } else { fs::remove_file(&root).unwrap() }
    }
}

#[test]
fn a_run_that_is_given_up_before_its_first_checkpoint_leaves_nothing_of_its_own() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    // In a new folder, in an empty one, and where somebody else has put something in the meantime.
    for (is_new, others) in [(true, false), (false, false), (true, true), (false, true)] {
        if !is_new {
            fs::create_dir(&root).unwrap();
        }
        let run = RunDir::create(&root).unwrap();
        fs::write(run.ids_path(), "ids").unwrap();
        if others {
            fs::write(root.join("notes.txt"), "mine").unwrap();
        }
        drop(run);
        assert_eq!(root.is_dir(), !is_new || others);
        let left: Vec<String> = if root.is_dir() { tree(&root).into_keys().collect() } else { vec![] };
        assert_eq!(left, if others { vec!["notes.txt"] } else { vec![] });
        let _ = fs::remove_dir_all(&root);
    }

    // The tokenizer cannot be written after the model's configuration was.
    let (tokenizer, trainer) = trainer(&options(4));
    fs::create_dir(&root).unwrap();
    let mut run = RunDir::create(&root).unwrap();
    fs::create_dir(root.join("tokenizer.json")).unwrap();
    run.begin(&tokenizer, &trainer, &toml::Table::new()).unwrap_err();
    assert!(root.join("config.json").exists());
    drop(run);
    assert_eq!(tree(&root), BTreeMap::from([("tokenizer.json".to_string(), None)]));
}

#[test]
fn a_creation_that_was_never_completed_is_named_and_left_alone() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    // Killed before the lock, and at any time after it.
    fs::create_dir_all(root.join("training")).unwrap();
    for file in [None, Some("training/lock"), Some("training/ids.safetensors"), Some("config.json")] {
        file.into_iter().for_each(|file| fs::write(root.join(file), "").unwrap());
        let before = tree(&root);
        let refused = [RunDir::create(&root).err(), resume(&root, "").err()];
        for error in refused.map(Option::unwrap) {
            assert!(matches!(&error, Error::Unfinished(its) if *its == root), "{file:?}: {error:?}");
            assert!(error.to_string().contains("never completed; remove that folder"), "{error}");
        }
        assert_unchanged(&root, &before);
    }
}

#[test]
fn a_run_is_locked_while_it_is_open_whether_or_not_it_has_a_checkpoint() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let is_locked = || {
        let before = tree(&root);
        let refused = [RunDir::create(&root).err(), resume(&root, "").err()];
        for error in refused.map(Option::unwrap) {
            assert!(matches!(&error, Error::Locked(its) if *its == root), "{error:?}");
        }
        assert_unchanged(&root, &before);
    };
    let run = RunDir::create(&root).unwrap();
    is_locked();
    drop(run);
    let (run, _) = new_run(&root, &options(4));
    is_locked();
    drop(run);
    let (run, _) = resume(&root, "").unwrap();
    is_locked();
    drop(run);
    resume(&root, "").unwrap();
}

/// They also look at one another's folder between its creation and its lock.
#[test]
fn of_several_that_create_or_resume_a_run_at_once_exactly_one_has_it() {
    const SEVERAL: usize = 4;
    let at_once = |open: &(dyn Fn() -> Result<RunDir, Error> + Sync)| {
        let barrier = Barrier::new(SEVERAL);
        std::thread::scope(|scope| {
            let threads = [(); SEVERAL].map(|()| {
                scope.spawn(|| {
                    barrier.wait();
                    let run = open();
                    // Held until all have tried.
                    barrier.wait();
                    run
                })
            });
            threads.map(|thread| thread.join().unwrap())
        })
    };
    let space = tempfile::tempdir().unwrap();
    let (tokenizer, trainer) = trainer(&options(4));
    for n in 0..30 {
        let root = space.path().join(format!("run-{n}"));
        let (mut created, refused): (Vec<_>, Vec<_>) =
            at_once(&|| RunDir::create(&root)).into_iter().partition(Result::is_ok);
        assert_eq!(created.len(), 1, "{n}");
        for error in refused.into_iter().map(|refused| refused.err().unwrap()) {
            assert!(matches!(error, Error::Locked(_) | Error::Unfinished(_)), "{n}: {error:?}");
        }
        // Nothing of the one that has it is missing.
        let mut run = created.remove(0).unwrap();
        assert!(root.join("training/lock").exists());
        if n % 10 > 0 {
            continue;
        }
        prepared_ids(&run);
        run.begin(&tokenizer, &trainer, &toml::Table::new()).unwrap();
        drop(run);
        let (resumed, refused): (Vec<_>, Vec<_>) =
            at_once(&|| Ok(resume(&root, "")?.0)).into_iter().partition(Result::is_ok);
        assert_eq!(resumed.len(), 1, "{n}");
        assert!(refused.into_iter().all(|refused| matches!(refused, Err(Error::Locked(_)))), "{n}");
    }
}

/// Writes the ids of the usual text where a new run has them.
fn prepared_ids(run: &RunDir) {
    let documents = [Document::new("numbers", crate::training::TEXT.repeat(40))];
    let (choice, path) = ("char".parse().unwrap(), run.ids_path());
    prepare(
        &documents,
        &Validation::Fraction(0.1),
        &choice,
        TextOptions::default(),
        IdsStore::File(&path),
        &mut |_| {},
    )
    .unwrap();
}

#[test]
fn the_newest_checkpoint_that_verifies_is_the_latest() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let (run, whole) = finished_run(&root, &TrainOptions { keep: 3, ..options(12) });
    drop(run);
    assert_eq!((whole.best().unwrap().step, checkpoints(&root)), (12, vec![4, 8, 12]));
    let good = tree(&root);
    for (broken, expected) in [(&[12][..], 8), (&[12, 8], 4)] {
        for step in broken {
            damage(&checkpoint(&root, *step));
        }
        let (mut run, mut trainer, damaged) = resume_damaged(&root, "").unwrap();
        assert_eq!(trainer.steps_done(), expected);
        let path_of = |error: &Error| match error {
            Error::Corrupt { path, .. } => path.clone(),
            other => panic!("{other}"),
        };
        let named: Vec<_> = damaged.iter().map(path_of).collect();
        assert_eq!(named, broken.iter().map(|step| checkpoint(&root, *step)).collect::<Vec<_>>());
        // The weights at the root, of a later step, count as not written.
        assert_eq!(trainer.best().unwrap().step, expected);
        let published = Pipeline::open(&root, &Device::Cpu).unwrap();
        let loss = evaluate(&published.model, &data().1.validation, true, None, &mut |_, _| {
            std::ops::ControlFlow::Continue(())
        });
        assert_eq!(loss.unwrap().unwrap().loss, trainer.best().unwrap().loss);

        assert_eq!(run_in(&mut run, &mut trainer, None).0, Outcome::Finished);
        assert!(weights(&trainer) == weights(&whole) && moments(&trainer) == moments(&whole));
        drop(run);
        let (_run, trainer) = resume(&root, "").unwrap();
        assert!(weights(&trainer) == weights(&whole));
        assert_eq!(checkpoints(&root), [4, 8, 12]);
        assert!(tree(&root)["model.safetensors"] == good["model.safetensors"]);
    }
    // None is whole: nothing is touched.
    for step in [4, 8, 12] {
        damage(&checkpoint(&root, step));
    }
    let before = tree(&root);
    let error = resume_damaged(&root, "").err().unwrap();
    assert!(matches!(&error, Error::Corrupt { path, .. } if *path == checkpoint(&root, 12)), "{error:?}");
    assert_unchanged(&root, &before);
}

/// With other intervals than before, no later step would overwrite it, and it could be taken for the latest.
#[test]
fn a_damaged_checkpoint_is_gone_once_there_is_a_new_one() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    drop(finished_run(&root, &options(12)));
    let lost = fs::read(checkpoint(&root, 12)).unwrap();
    fs::write(checkpoint(&root, 12), &lost[..lost.len() - 1]).unwrap();
    let (mut run, mut trainer, damaged) = resume_damaged(&root, "eval-every = 3").unwrap();
    assert_eq!((trainer.steps_done(), damaged.len(), checkpoints(&root)), (8, 1, vec![8, 12]));
    run_in(&mut run, &mut trainer, Some(9));
    drop(run);
    assert_eq!(checkpoints(&root), [8, 9]);
    assert_eq!(resume(&root, "").unwrap().1.steps_done(), 9);
}

#[test]
fn as_many_checkpoints_are_kept_as_the_option_says() {
    let space = tempfile::tempdir().unwrap();
    for (keep, expected) in [(1, &[11][..]), (2, &[8, 11]), (3, &[4, 8, 11]), (9, &[0, 4, 8, 11])] {
        let root = space.path().join(format!("{keep}"));
        drop(finished_run(&root, &TrainOptions { keep, ..options(11) }));
        assert_eq!(checkpoints(&root), expected);
        // Fewer from now on.
        let _run = resume(&root, "keep = 1").unwrap();
        assert_eq!(checkpoints(&root), [11]);
    }
}

#[test]
fn what_a_crash_has_left_of_a_checkpoint_is_removed_and_nothing_else() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    drop(finished_run(&root, &options(4)));
    let (left, mine) = (root.join("training/step-00000003.safetensors.tmp"), root.join("training/notes.tmp"));
    fs::write(&left, "half").unwrap();
    fs::write(&mine, "mine").unwrap();
    let _run = resume(&root, "").unwrap();
    assert!(!left.exists() && mine.exists());
}

#[test]
fn the_root_has_the_best_weights_and_has_them_again_if_they_are_in_the_checkpoint() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    // A rate this high ends worse than it was.
    let options = TrainOptions { lr: 0.5, warmup: 1.0, clip: 0.0, keep: 9, ..options(16) };
    let (run, trainer) = finished_run(&root, &options);
    drop(run);
    let best = trainer.best().unwrap();
    assert!((4..16).contains(&best.step), "the test needs a run that gets worse: best at step {}", best.step);
    let good = fs::read(root.join("model.safetensors")).unwrap();
    let loss = || {
        let run = Pipeline::open(&root, &Device::Cpu).unwrap();
        let go_on = &mut |_, _| std::ops::ControlFlow::Continue(());
        evaluate(&run.model, &data().1.validation, true, None, go_on).unwrap().unwrap().loss
    };
    assert_eq!(loss(), best.loss);

    // Lost, while the latest checkpoint is another: the current ones take their place, and the next validation is the
    // best.
    fs::remove_file(root.join("model.safetensors")).unwrap();
    for _ in 0..2 {
        let (_run, trainer) = resume(&root, "").unwrap();
        assert_eq!(trainer.best(), None);
        assert_ne!(loss(), best.loss);
    }
    let (mut run, mut trainer) = resume(&root, "steps = 18").unwrap();
    run_in(&mut run, &mut trainer, None);
    drop(run);
    let found = trainer.best().unwrap();
    assert_eq!((found.step, loss()), (18, found.loss));

    // Of the checkpoint of the best step itself they are written again, to the last bit.
    checkpoints(&root).into_iter().filter(|step| *step > best.step).for_each(|step| {
        fs::remove_file(checkpoint(&root, step)).unwrap();
    });
    for lost in [None, Some(&b"garbage"[..])] {
        match lost {
            None => fs::remove_file(root.join("model.safetensors")).unwrap(),
            Some(garbage) => fs::write(root.join("model.safetensors"), garbage).unwrap(),
        }
        let (_run, trainer) = resume(&root, "").unwrap();
        assert_eq!((trainer.steps_done(), trainer.best()), (best.step, Some(best)));
        assert!(fs::read(root.join("model.safetensors")).unwrap() == good);
    }
}

#[test]
fn metrics_that_are_shorter_than_they_were_go_on_after_the_last_whole_line() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    drop(finished_run(&root, &options(4)));
    let path = root.join("training/metrics.jsonl");
    let whole = fs::read(&path).unwrap();
    assert_eq!(metrics(&root).len(), 5);
    for (len, expected) in [(whole.len() - 3, 4), (whole.len(), 5), (3, 0), (0, 0)] {
        fs::write(&path, &whole[..len]).unwrap();
        let (mut run, mut trainer) = resume(&root, "steps = 5").unwrap();
        assert_eq!(metrics(&root).len(), expected, "{len}");
        run_in(&mut run, &mut trainer, None);
        assert_eq!(metrics(&root).len(), expected + 2, "{len}");
        drop(run);
        fs::remove_file(checkpoint(&root, 5)).unwrap();
    }
    fs::remove_file(&path).unwrap();
    resume(&root, "").unwrap();
}

#[test]
fn ids_that_are_not_those_of_the_run_are_refused() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let (run, _) = finished_run(&root, &options(4));
    let ids = run.ids_path();
    drop(run);
    let good = fs::read(&ids).unwrap();
    let refused = |expected: &str| {
        let error = resume(&root, "").err().unwrap();
        assert!(matches!(&error, Error::Corrupt { path, .. } if *path == ids), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    damage(&ids);
    refused("the ids are not those that were written");
    // Another text, and whole.
    fs::remove_file(&ids).unwrap();
    let documents = [Document::new("numbers", crate::training::TEXT.repeat(41))];
    let choice = "char".parse().unwrap();
    prepare(&documents, &Validation::Fraction(0.1), &choice, TextOptions::default(), IdsStore::File(&ids), &mut |_| {})
        .unwrap();
    refused("they are not the ids that the run was trained on");
    fs::write(&ids, good).unwrap();
    resume(&root, "").unwrap();
}

#[test]
fn changes_that_are_refused_leave_the_run_as_it_is() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    drop(finished_run(&root, &options(8)));
    let before = tree(&root);
    for (changes, expected) in [
        ("batch = 6", "batch: cannot be changed when resuming"),
        ("lr = 0.0", "lr: expected a number above 0, got 0.0"),
        ("steps = 7", "steps: expected at least the 8 that are done, got 7"),
    ] {
        let error = resume(&root, changes).err().unwrap();
        assert!(matches!(error, Error::Input(_)) && error.to_string().contains(expected), "{error:?}");
        assert_unchanged(&root, &before);
    }
}
