//! The latest checkpoint of a run.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::checkpoint;
use super::ownership::{is_of_a_run, lock, not_a_run, occupied};
use super::trainer::TrainState;
use crate::host::{Error, Result};

/// The state in a checkpoint's metadata.
#[derive(Serialize, Deserialize)]
pub(super) struct CheckpointState {
    #[serde(flatten)]
    pub(super) trainer: TrainState,
    /// The length of the metrics at this checkpoint.
    pub(super) metrics_bytes: u64,
    /// Seconds since the run was created, over all its sessions.
    pub(super) seconds: f64,
}

/// What [`latest`] has read.
pub(super) struct Latest {
    pub(super) state: CheckpointState,
    pub(super) tensors: BTreeMap<String, Tensor>,
    /// Newer checkpoints that are not what was written.
    pub(super) damaged: Vec<Error>,
    /// The lock, which is held.
    pub(super) lock: File,
}

/// Locks the folder of an earlier run and reads its latest checkpoint that verifies. Nothing changes yet.
pub(super) fn latest(root: &Path, device: &Device) -> Result<Latest> {
    let training = root.join("training");
    if !is_of_a_run(&training) {
        return Err(not_a_run(root));
    }
    if checkpoint::steps(&training)?.is_empty() {
        return Err(match occupied(root) {
            Error::Exists(_) => Error::Input(format!(
                "{} has no checkpoints: they were removed, or the run is one of an earlier version",
                root.display()
            )),
            error => error,
        });
    }
    let lock = lock(root, false)?;
    checkpoint::remove_unfinished(&training)?;
    let mut damaged = vec![];
    for step in checkpoint::steps(&training)? {
        let path = checkpoint::path(&training, step);
        match checkpoint::read(&path, device).and_then(|(state, tensors)| Ok((parse(&path, &state)?, tensors))) {
            Ok((state, tensors)) => return Ok(Latest { state, tensors, damaged, lock }),
            Err(error @ Error::Corrupt { .. }) => damaged.push(error),
            Err(error) => return Err(error),
        }
    }
    Err(damaged.into_iter().next().unwrap_or_else(|| Error::Unfinished(root.to_path_buf())))
}

/// The state of the checkpoint `path`.
pub(super) fn parse(path: &Path, state: &str) -> Result<CheckpointState> {
    serde_json::from_str(state).map_err(|error| Error::corrupt(path, error))
}
