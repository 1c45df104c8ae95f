//! Run folders of unknown origin or without permission: nothing outside is changed, and nothing inside is lost.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use candle_attention::train::RunFolder;
use candle_core::Device;

use crate::training::{data, finished_run, options, resume, run_in};

fn refusal(root: &Path) -> String {
    RunFolder::resume(root, &Device::Cpu).err().unwrap().to_string()
}

/// A finished run, and a file beside it that is none of its business.
fn run_and_stranger() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let space = tempfile::tempdir().unwrap();
    let (root, stranger) = (space.path().join("run"), space.path().join("stranger"));
    drop(finished_run(&root, &options(4)));
    std::fs::write(&stranger, "precious").unwrap();
    (space, root, stranger)
}

#[test]
fn links_are_refused_where_they_would_be_written_through() {
    let (_space, root, stranger) = run_and_stranger();
    for name in ["metrics.jsonl", "lock"] {
        let path = root.join("training").join(name);
        std::fs::rename(&path, root.join("kept")).unwrap();
        symlink(&stranger, &path).unwrap();
        assert!(refusal(&root).contains("expected an ordinary file"), "{}", refusal(&root));
        std::fs::remove_file(&path).unwrap();
        symlink(root.join("nowhere"), &path).unwrap();
        assert!(refusal(&root).contains("expected an ordinary file"), "{}", refusal(&root));
        assert!(!root.join("nowhere").exists());
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(root.join("kept"), &path).unwrap();
    }
    std::fs::rename(root.join("training"), root.join("elsewhere")).unwrap();
    symlink(root.join("elsewhere"), root.join("training")).unwrap();
    assert!(refusal(&root).contains("expected a folder"), "{}", refusal(&root));
    assert_eq!(std::fs::read_to_string(stranger).unwrap(), "precious");
}

#[test]
fn links_are_replaced_or_removed_where_a_new_file_takes_their_place() {
    let (space, root, stranger) = run_and_stranger();
    let folder = space.path().join("precious_folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("file"), "precious").unwrap();
    std::fs::remove_file(root.join("model.safetensors")).unwrap();
    for link in ["model.safetensors", "model.safetensors.tmp", "training/current.tmp", "training/settings.toml.tmp"] {
        symlink(&stranger, root.join(link)).unwrap();
    }
    for link in ["training/step-00000006.tmp", "training/step-00000006", "training/step-00000002"] {
        symlink(&folder, root.join(link)).unwrap();
    }
    let options = options(6);
    let (mut run, mut trainer) = resume(&root, &options).unwrap();
    run.write_settings("new").unwrap();
    run_in(&mut run, &mut trainer, None);
    assert_eq!(std::fs::read_to_string(&stranger).unwrap(), "precious");
    assert_eq!(std::fs::read_to_string(folder.join("file")).unwrap(), "precious");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    drop(run);
    resume(&root, &options).unwrap();
    let is_link = |path: &Path| std::fs::symlink_metadata(path).unwrap().is_symlink();
    for folder in [root.clone(), root.join("training")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            assert!(!is_link(&path) && path.extension().is_none_or(|end| end != "tmp"), "{} is left", path.display());
        }
    }
}

#[test]
fn what_dead_processes_have_left_beside_a_new_run_is_removed_and_nothing_else() {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let lock = |name: &str| {
        let training = space.path().join(name).join("training");
        std::fs::create_dir_all(&training).unwrap();
        std::fs::File::create(training.join("lock")).unwrap()
    };
    let living = lock(".run.attn-1-0");
    living.lock().unwrap();
    drop(lock(".run.attn-2-0"));
    // Of a run of another name.
    drop(lock(".other run.attn-2-0"));
    for other in [".run.attn-2-0-old", ".run.attn-", ".attn-2-0", "run.attn-2-0"] {
        drop(lock(other));
    }
    // Perhaps about to take its lock.
    std::fs::create_dir(space.path().join(".run.attn-3-0")).unwrap();
    drop(finished_run(&root, &options(4)));
    let names = std::fs::read_dir(space.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    let expected = [".attn-2-0", ".run.attn-", ".run.attn-1-0", ".run.attn-2-0-old", ".run.attn-3-0"];
    assert_eq!(names, [&expected[..], &["run", "run.attn-2-0"]].concat());
}

#[test]
fn a_folder_that_cannot_be_written_keeps_its_last_checkpoint() {
    let (_space, root, _) = run_and_stranger();
    let options = options(6);
    let (mut folder, mut trainer) = resume(&root, &options).unwrap();
    folder.begin(&mut trainer).unwrap();
    trainer.train_step().unwrap();
    let allow = |mode| std::fs::set_permissions(root.join("training"), PermissionsExt::from_mode(mode)).unwrap();
    allow(0o500);
    // Root may do anything.
    if std::fs::write(root.join("training/probe"), "").is_err() {
        let error = folder.save(&trainer).unwrap_err().to_string();
        assert!(error.contains("cannot") && error.contains("ermission denied"), "{error}");
    }
    allow(0o700);
    drop(folder);
    let (mut folder, mut trainer) = resume(&root, &options).unwrap();
    assert_eq!(trainer.step(), 4);
    run_in(&mut folder, &mut trainer, None);
    assert_eq!(data().1.fingerprint, trainer.corpus().fingerprint);
}
