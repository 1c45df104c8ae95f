//! One checkpoint on disk: a folder with weights, moments and state, complete or absent.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Counters, TrainOptions, Trainer};
use crate::files;
use crate::model::{ModelConfig, load_weights, read_safetensors, save_weights, write_safetensors};
use crate::ops;

pub(super) const WEIGHTS: &str = "model.safetensors";
const MOMENTS: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// The version of this layout; a later one may not be readable by this code.
const FORMAT: u32 = 1;

/// The model of the lowest validation loss so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps it had been trained for.
    pub step: u64,
    /// Its validation loss, in nats a token.
    pub validation_loss: f64,
}

/// What a checkpoint says beside weights and moments. The data's position and the random state are no part of it:
/// both are functions of the step and the options' seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    format: u32,
    /// Steps done.
    pub step: u64,
    /// The best model so far, once there was a validation.
    pub best: Option<Best>,
    /// What it has counted.
    #[serde(default)]
    pub counters: Counters,
    /// The options of the run.
    pub options: TrainOptions,
    /// The fingerprint of the token ids.
    pub corpus: String,
    /// Bytes of the metrics file that belong to the steps done.
    pub metrics_bytes: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// SHA-256 of the files beside this one, and of configuration and tokenizer at the root.
    pub(super) checksums: BTreeMap<String, String>,
}

/// A checkpoint read back.
pub struct Checkpoint {
    /// What stands beside weights and moments.
    pub state: TrainState,
    /// The weights, by their names in the model.
    pub weights: BTreeMap<String, Tensor>,
    /// The optimizer's moments, by name.
    pub moments: BTreeMap<String, Tensor>,
}

/// Writes the trainer's state as the folder `path` of the run in `root`, which appears complete or not at all.
pub(super) fn write(root: &Path, path: &Path, trainer: &Trainer, metrics_bytes: u64, seconds: f64) -> Result<()> {
    let vars = trainer.parameters().vars();
    for (name, var) in &vars {
        if !ops::norm(var)?.is_finite() {
            bail!("step {}: {name} is no longer finite; a lower learning rate may help", trainer.step());
        }
    }
    let temporary = files::sibling(path);
    remove_folder(&temporary)?;
    remove_folder(path)?;
    fs::create_dir_all(&temporary)?;

    save_weights(&temporary.join(WEIGHTS), trainer.config(), &trainer.weights())?;
    write_safetensors(&temporary.join(MOMENTS), trainer.moments())?;
    let sums = vouched_for(root, &temporary).into_iter().map(|(name, path)| Ok((name.to_string(), checksum(&path)?)));
    let checksums = sums.collect::<Result<_>>()?;
    let state = TrainState {
        format: FORMAT,
        step: trainer.step(),
        best: trainer.best(),
        counters: trainer.counters(),
        options: trainer.options().clone(),
        corpus: trainer.corpus().fingerprint.clone(),
        metrics_bytes,
        seconds,
        checksums,
    };
    let json = serde_json::to_vec_pretty(&state).map_err(candle_core::Error::wrap)?;
    files::replace_with(&temporary.join(STATE), &json)?;

    fs::rename(&temporary, path)?;
    Ok(files::sync_parent(path)?)
}

/// The files whose checksums the state holds: those of the checkpoint in `folder`, and those at the run's root that it
/// is of no use without.
fn vouched_for(root: &Path, folder: &Path) -> [(&'static str, PathBuf); 4] {
    [(WEIGHTS, folder), (MOMENTS, folder), ("config.json", root), ("tokenizer.json", root)]
        .map(|(name, folder)| (name, folder.join(name)))
}

/// Reads the state in the folder `path`.
pub(super) fn read_state(path: &Path) -> Result<TrainState> {
    let path = path.join(STATE);
    let json = files::read(&path)?;
    let state: TrainState = match serde_json::from_slice(&json) {
        Ok(state) => state,
        Err(error) => bail!("broken checkpoint: {}: {error}", path.display()),
    };
    if state.format != FORMAT {
        bail!("{}: expected format {FORMAT}, got {}", path.display(), state.format);
    }
    Ok(state)
}

/// Reads the folder `path` of the run in `root`, and refuses files that are not those that were written.
pub(super) fn load(root: &Path, path: &Path, config: &ModelConfig, device: &Device) -> Result<Checkpoint> {
    let state = read_state(path)?;
    for (name, path) in vouched_for(root, path) {
        if state.checksums.get(name) != Some(&checksum(&path)?) {
            bail!("broken checkpoint: {} is not the file that was written", path.display());
        }
    }
    Ok(Checkpoint {
        weights: load_weights(&path.join(WEIGHTS), config, device)?,
        moments: read_safetensors(&path.join(MOMENTS), device)?,
        state,
    })
}

/// The SHA-256 of a file, in hexadecimal digits.
pub(super) fn checksum(path: &Path) -> Result<String> {
    Ok(Sha256::digest(files::read(path)?).iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(super) fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!("cannot remove {}: {error}", path.display())
        }
        _ => Ok(()),
    }
}
