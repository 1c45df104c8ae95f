//! One checkpoint on disk: a folder with weights, moments and state, complete or absent.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Error, Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Counters, TrainOptions, Trainer};
use crate::files;
use crate::model::{ModelConfig, safetensors_from_bytes, safetensors_to_bytes, weights_from_bytes, weights_to_bytes};
use crate::ops;

pub(super) const WEIGHTS: &str = "model.safetensors";
const MOMENTS: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";

/// What of the run's root a checkpoint is of no use without.
const ROOT_FILES: [&str; 2] = [CONFIG, TOKENIZER];

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
    /// Whether the validation that was due at this step is yet to be made: it was broken off.
    #[serde(default)]
    pub validation_is_pending: bool,
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

/// Writes the trainer's state as the folder `path`, which appears complete or not at all; `checksums` are those of
/// [`root_checksums`].
pub(super) fn write(
    path: &Path,
    trainer: &Trainer,
    mut checksums: BTreeMap<String, String>,
    metrics_bytes: u64,
    seconds: f64,
) -> Result<()> {
    let vars = trainer.parameters().vars();
    for (name, var) in &vars {
        if !ops::norm(var)?.is_finite() {
            bail!("step {}: {name} is no longer finite; a lower learning rate may help", trainer.step());
        }
    }
    let temporary = files::sibling(path);
    files::remove_folder(&temporary)?;
    files::remove_folder(path)?;
    files::create_folder(&temporary)?;

    let mut write = |name: &str, bytes: &[u8]| {
        checksums.insert(name.to_string(), write_and_sum(&temporary.join(name), bytes)?);
        Ok::<_, Error>(())
    };
    write(WEIGHTS, &weights_to_bytes(trainer.config(), &trainer.weights())?)?;
    write(MOMENTS, &safetensors_to_bytes(trainer.moments())?)?;
    let state = TrainState {
        format: FORMAT,
        step: trainer.step(),
        validation_is_pending: trainer.validation_is_pending(),
        best: trainer.best(),
        counters: trainer.counters(),
        options: trainer.options().clone(),
        corpus: trainer.corpus().fingerprint.clone(),
        metrics_bytes,
        seconds,
        checksums,
    };
    let json = serde_json::to_vec_pretty(&state).map_err(Error::wrap)?;
    files::write_new(&temporary.join(STATE), &json)?;
    files::rename_folder(&temporary, path)
}

/// Writes a file, and gives the checksum of what it should hold; both take as long, so they go on side by side.
fn write_and_sum(path: &Path, bytes: &[u8]) -> Result<String> {
    std::thread::scope(|scope| {
        let sum = scope.spawn(|| sha256(bytes));
        files::write_new(path, bytes)?;
        sum.join().map_err(|_| Error::Msg(format!("cannot sum {}", path.display())))
    })
}

/// The checksums of those files at the run's root that a checkpoint is of no use without.
pub(super) fn root_checksums(root: &Path) -> Result<BTreeMap<String, String>> {
    ROOT_FILES.into_iter().map(|name| Ok((name.to_string(), checksum(&root.join(name))?))).collect()
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
pub(super) fn load(root: &Path, path: &Path, device: &Device) -> Result<(ModelConfig, Checkpoint)> {
    let state = read_state(path)?;
    let config = ModelConfig::from_json(&state.read(root, CONFIG)?)?;
    state.read(root, TOKENIZER)?;
    let weights = weights_from_bytes(&path.join(WEIGHTS), &state.read(path, WEIGHTS)?, &config, device)?;
    let moments = safetensors_from_bytes(&path.join(MOMENTS), &state.read(path, MOMENTS)?, device)?;
    Ok((config, Checkpoint { state, weights, moments }))
}

impl TrainState {
    /// Reads a file that the checksums vouch for.
    fn read(&self, folder: &Path, name: &str) -> Result<Vec<u8>> {
        let path = folder.join(name);
        let bytes = files::read(&path)?;
        if self.checksums.get(name) != Some(&sha256(&bytes)) {
            bail!("broken checkpoint: {} is not the file that was written", path.display());
        }
        Ok(bytes)
    }

    /// The checksums of the files at the run's root.
    pub(super) fn root_checksums(&self) -> BTreeMap<String, String> {
        let of_root = self.checksums.iter().filter(|(name, _)| ROOT_FILES.contains(&name.as_str()));
        of_root.map(|(name, sum)| (name.clone(), sum.clone())).collect()
    }
}

/// Whether the weights in the checkpoint folder `path`, or a copy of them at `copy`, are those that were written.
pub(super) fn are_its_weights(path: &Path, copy: &Path) -> Result<bool> {
    let expected = read_state(path)?.checksums.remove(WEIGHTS);
    Ok(checksum(copy).is_ok_and(|sum| Some(sum) == expected))
}

/// The SHA-256 of a file.
fn checksum(path: &Path) -> Result<String> {
    Ok(sha256(&files::read(path)?))
}

/// The SHA-256 of some bytes, in hexadecimal digits.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
