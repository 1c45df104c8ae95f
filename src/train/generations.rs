//! The names of a run's checkpoints, and the pointer to the last one.

use std::fs;
use std::path::Path;

use candle_core::{Result, bail};

use super::Trainer;
use crate::files;

/// The pointer file.
const CURRENT: &str = "current";
/// What the name of a checkpoint ends with whose validation is pending. The same step is saved again after it, under
/// the other name: a checkpoint that is the current one is never written over.
const PENDING: &str = "-unvalidated";

/// The name of the checkpoint folder of a step.
pub(super) fn of_step(step: u64) -> String {
    format!("step-{step:08}")
}

/// The name of the checkpoint folder of what `trainer` holds now.
pub(super) fn of(trainer: &Trainer) -> String {
    let name = of_step(trainer.step());
    if trainer.validation_is_pending() { name + PENDING } else { name }
}

/// The name of the checkpoint folder that holds the best weights, or the last ones while there is no best.
pub(super) fn of_best(trainer: &Trainer) -> String {
    trainer.best().map_or_else(|| of(trainer), |best| of_step(best.step))
}

/// Whether there is a pointer in the folder `training`.
pub(super) fn has_current(training: &Path) -> bool {
    training.join(CURRENT).exists()
}

/// The name in the pointer file: that of a checkpoint folder, never a path that leads elsewhere.
pub(super) fn current(training: &Path) -> Result<String> {
    let path = training.join(CURRENT);
    let name = String::from_utf8_lossy(&files::read(&path)?).trim().to_string();
    let digits = name.strip_prefix("step-").map(|rest| rest.strip_suffix(PENDING).unwrap_or(rest));
    match digits.and_then(|digits| digits.parse::<u64>().ok()) {
        Some(step) if name == of_step(step) || name == of_step(step) + PENDING => Ok(name),
        _ => bail!("broken checkpoint: {} names no checkpoint", path.display()),
    }
}

/// Makes the checkpoint `name`, which lies complete in `training`, the current one.
pub(super) fn set_current(training: &Path, name: &str) -> Result<()> {
    files::replace_with(&training.join(CURRENT), format!("{name}\n").as_bytes())
}

/// Removes the checkpoints, and what has become of those that were never complete, other than `kept`.
pub(super) fn remove_all_but(training: &Path, kept: &[String]) -> Result<()> {
    for entry in fs::read_dir(training)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("step-") && !kept.contains(&name) {
            files::remove_folder(&entry.path())?;
        }
    }
    files::remove_file(&files::sibling(&training.join(CURRENT)))
}
