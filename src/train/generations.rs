//! The names of a run's checkpoints, and the pointer to the current one.

use std::fs;
use std::path::Path;

use candle_core::{Error, Result, bail};

use super::Trainer;
use crate::files;

/// The pointer file.
const CURRENT: &str = "current";
/// The ending of the name of a checkpoint whose validation is pending. After the validation the same step is saved
/// again, without the ending: the current checkpoint is never overwritten.
const PENDING: &str = "-unvalidated";

/// The name of the checkpoint folder of a step, whose validation may be pending.
pub(super) fn of_state(step: u64, validation_is_pending: bool) -> String {
    format!("step-{step:08}{}", if validation_is_pending { PENDING } else { "" })
}

/// The name of the checkpoint folder for the current state of `trainer`.
pub(super) fn of(trainer: &Trainer) -> String {
    of_state(trainer.step(), trainer.validation_is_pending())
}

/// The step that the name of a checkpoint folder stands for, and whether its validation is pending; `None` for other
/// names.
pub(super) fn step_of(name: &str) -> Option<(u64, bool)> {
    let (digits, is_pending) = match name.strip_suffix(PENDING) {
        Some(rest) => (rest, true),
        None => (name, false),
    };
    let step = digits.strip_prefix("step-")?.parse().ok()?;
    (of_state(step, is_pending) == name).then_some((step, is_pending))
}

/// Whether the folder `training` has a pointer.
pub(super) fn has_current(training: &Path) -> bool {
    training.join(CURRENT).exists()
}

/// The name in the pointer file: that of a checkpoint folder, never a path to elsewhere.
pub(super) fn current(training: &Path) -> Result<String> {
    let path = training.join(CURRENT);
    let name = String::from_utf8_lossy(&files::read(&path)?).trim().to_string();
    if step_of(&name).is_none() {
        bail!("broken checkpoint: {} names no checkpoint", path.display());
    }
    Ok(name)
}

/// Makes the checkpoint `name`, which is complete in `training`, the current one.
pub(super) fn set_current(training: &Path, name: &str) -> Result<()> {
    files::replace_with(&training.join(CURRENT), format!("{name}\n").as_bytes())
}

/// Removes all checkpoints, complete or not, except `kept`. Other names, such as a user's copy of a checkpoint, stay.
pub(super) fn remove_all_but(training: &Path, kept: &[&str]) -> Result<()> {
    let is_ours = |name: &str| step_of(name.strip_suffix(files::GROWING).unwrap_or(name)).is_some();
    let cannot = |error| Error::Msg(format!("cannot list {}: {error}", training.display()));
    for entry in fs::read_dir(training).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_ours(&name) && !kept.contains(&&*name) && !entry.file_type().map_err(cannot)?.is_file() {
            files::remove_folder(&entry.path())?;
        }
    }
    files::remove_file(&files::sibling(&training.join(CURRENT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_checkpoints_are_removed() {
        let space = tempfile::tempdir().unwrap();
        let ours = ["step-00000004", "step-00000004-unvalidated", "step-00000004.tmp", "step-123456789"];
        let others =
            ["step-00000004.good", "step-00000004-backup", "step-4", "step-", "step-00000004.tmp.tmp", "notes"];
        for name in ours.iter().chain(&others).chain(&["step-00000002"]) {
            fs::create_dir(space.path().join(name)).unwrap();
            fs::write(space.path().join(name).join("state.json"), "{}").unwrap();
        }
        for name in ["step-notes.txt", "step-00000005"] {
            fs::write(space.path().join(name), "a file").unwrap();
        }
        remove_all_but(space.path(), &["step-00000002"]).unwrap();
        let mut left: Vec<String> = fs::read_dir(space.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut expected: Vec<&str> =
            others.into_iter().chain(["step-00000002", "step-notes.txt", "step-00000005"]).collect();
        expected.sort();
        assert_eq!(left, expected);
    }
}
