//! Run folders of unknown origin or without permission: nothing outside is changed, and nothing inside is lost.

use std::ops::ControlFlow;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use candle_attention::train::{RunDir, Trainer, resume, train};
use candle_attention::{Error, Result};
use candle_core::Device;

use crate::hostile::Victim;

fn go_on(root: &Path, steps: i64) -> Result<(Trainer, RunDir)> {
    let changes = toml::Table::from_iter([("steps".to_string(), steps.into())]);
    let (trainer, run, damaged) = resume(root, &changes, &Device::Cpu, &mut |_| {})?;
    assert!(damaged.is_empty(), "{damaged:?}");
    Ok((trainer, run))
}

fn refusal(root: &Path) -> String {
    go_on(root, 4).err().unwrap().to_string()
}

/// A run of two steps, and a file beside it that is none of its business.
fn run_and_stranger() -> (Victim, PathBuf) {
    let victim = Victim::new("char");
    let stranger = victim.root.with_file_name("stranger");
    std::fs::write(&stranger, "precious").unwrap();
    (victim, stranger)
}

#[test]
fn links_are_refused_where_they_would_be_written_through() {
    let (Victim { root, .. }, stranger) = &run_and_stranger();
    for name in ["metrics.jsonl", "lock"] {
        let path = root.join("training").join(name);
        std::fs::rename(&path, root.join("kept")).unwrap();
        symlink(stranger, &path).unwrap();
        assert!(refusal(root).contains("expected an ordinary file"), "{}", refusal(root));
        std::fs::remove_file(&path).unwrap();
        symlink(root.join("nowhere"), &path).unwrap();
        assert!(refusal(root).contains("expected an ordinary file"), "{}", refusal(root));
        assert!(!root.join("nowhere").exists());
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(root.join("kept"), &path).unwrap();
    }
    std::fs::rename(root.join("training"), root.join("elsewhere")).unwrap();
    symlink(root.join("elsewhere"), root.join("training")).unwrap();
    assert!(refusal(root).contains("it has no training/lock"), "{}", refusal(root));
    assert_eq!(std::fs::read_to_string(stranger).unwrap(), "precious");
}

#[test]
fn links_are_replaced_or_removed_where_a_new_file_takes_their_place() {
    let (Victim { root, .. }, stranger) = &run_and_stranger();
    let folder = stranger.with_file_name("precious_folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("file"), "precious").unwrap();
    for name in ["model.safetensors", "README.md", "training/step-00000001.safetensors"] {
        std::fs::remove_file(root.join(name)).unwrap();
    }
    for link in [
        "model.safetensors",
        "model.safetensors.tmp",
        "README.md",
        "README.md.tmp",
        "training/settings.toml.tmp",
        "training/loss.svg.tmp",
    ] {
        symlink(stranger, root.join(link)).unwrap();
    }
    for link in ["training/step-00000003.safetensors.tmp", "training/step-00000001.safetensors"] {
        symlink(&folder, root.join(link)).unwrap();
    }
    let (mut trainer, mut run) = go_on(root, 4).unwrap();
    train(&mut trainer, Some(&mut run), &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(std::fs::read_to_string(stranger).unwrap(), "precious");
    assert_eq!(std::fs::read_to_string(folder.join("file")).unwrap(), "precious");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    drop(run);
    go_on(root, 4).unwrap();
    for folder in [root.clone(), root.join("training")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let is_link = std::fs::symlink_metadata(&path).unwrap().is_symlink();
            assert!(!is_link && path.extension().is_none_or(|end| end != "tmp"), "{} is left", path.display());
        }
    }
}

#[test]
fn a_new_run_takes_no_folder_that_has_anything_in_it() {
    let (Victim { root, .. }, stranger) = &run_and_stranger();
    let space = stranger.parent().unwrap();
    assert!(matches!(RunDir::create(root), Err(Error::Exists(_))));
    assert!(matches!(RunDir::create(space), Err(Error::Exists(_))));
    assert!(RunDir::create(stranger).is_err());
    // An empty folder is taken, also where a link leads to it; and given back, if nothing comes of it.
    let (empty, link) = (space.join("empty"), space.join("link"));
    std::fs::create_dir(&empty).unwrap();
    symlink(&empty, &link).unwrap();
    let run = RunDir::create(&link).unwrap();
    assert!(empty.join("training/lock").exists());
    drop(run);
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
    // A link is something, wherever it leads.
    symlink(space.join("nowhere"), empty.join("training")).unwrap();
    assert!(RunDir::create(&empty).is_err() && !space.join("nowhere").exists());
    std::fs::remove_file(empty.join("training")).unwrap();
    symlink(space, empty.join("training")).unwrap();
    assert!(RunDir::create(&empty).is_err() && !space.join("lock").exists());
    std::fs::remove_file(empty.join("training")).unwrap();
    // Texts may be in a folder of this name.
    std::fs::create_dir(empty.join("training")).unwrap();
    std::fs::write(empty.join("training/text.txt"), "text").unwrap();
    assert!(matches!(RunDir::create(&empty), Err(Error::Exists(_))));
    assert!(refusal(&empty).contains("is not a run"), "{}", refusal(&empty));
    assert_eq!(std::fs::read_dir(empty.join("training")).unwrap().count(), 1);
    assert_eq!(std::fs::read_to_string(stranger).unwrap(), "precious");
}

#[test]
fn a_folder_that_cannot_be_written_keeps_its_last_checkpoint() {
    let (Victim { root, .. }, _) = &run_and_stranger();
    let (mut trainer, mut run) = go_on(root, 4).unwrap();
    let batch = trainer.next_batch().unwrap();
    trainer.step(&batch).unwrap();
    let allow = |mode| std::fs::set_permissions(root.join("training"), PermissionsExt::from_mode(mode)).unwrap();
    allow(0o500);
    // Root may do anything.
    if std::fs::write(root.join("training/probe"), "").is_err() {
        let error = run.save(&trainer).unwrap_err().to_string();
        assert!(error.contains("cannot") && error.contains("ermission denied"), "{error}");
    }
    allow(0o700);
    drop(run);
    let (mut trainer, mut run) = go_on(root, 4).unwrap();
    assert_eq!(trainer.steps_done(), 2);
    train(&mut trainer, Some(&mut run), &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(trainer.steps_done(), 4);
}
