//! One checkpoint on disk: a folder with weights, moments and state, complete or absent.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use candle_core::{Device, Error, Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Counters, TrainOptions, Trainer, generations};
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
const FORMAT: u32 = 2;

/// The model of the lowest validation loss so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps it had been trained for.
    pub step: u64,
    /// Its validation loss, in nats a token.
    pub validation_loss: f64,
}

/// The weights of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedWeights {
    /// The name of the checkpoint's folder.
    pub(super) checkpoint: String,
    /// The SHA-256 of their file.
    pub(super) checksum: String,
}

/// What a checkpoint says of the run beside what the trainer says.
pub(super) struct RunState {
    /// The checksums of [`root_checksums`].
    pub(super) root_checksums: BTreeMap<String, String>,
    /// The weights that belong at the root, of an earlier checkpoint; `None` if they are those of this one.
    pub(super) published: Option<SavedWeights>,
    pub(super) metrics_bytes: u64,
    pub(super) seconds: f64,
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
    /// The weights that belong at the run's root: the best, or these while there is no best.
    pub(super) published: SavedWeights,
    /// SHA-256 of the files beside this one, and of configuration and tokenizer at the root.
    pub(super) checksums: BTreeMap<String, String>,
    /// SHA-256 of the file that holds this state, with nothing in this place.
    seal: String,
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

/// Writes the trainer's state as the folder `path`, which appears complete or not at all; gives what it says.
pub(super) fn write(path: &Path, trainer: &Trainer, run: RunState) -> Result<TrainState> {
    let vars = trainer.parameters().vars();
    for (name, var) in &vars {
        if !ops::euclidean_norm(var)?.is_finite() {
            bail!("step {}: {name} is no longer finite; a lower learning rate may help", trainer.step());
        }
    }
    let temporary = files::sibling(path);
    files::remove_folder(&temporary)?;
    files::remove_folder(path)?;
    files::create_folder(&temporary)?;

    let mut checksums = run.root_checksums;
    let mut write = |name: &str, bytes: &[u8]| {
        let sum = write_and_sum(&temporary.join(name), bytes)?;
        checksums.insert(name.to_string(), sum.clone());
        Ok::<_, Error>(sum)
    };
    let weights = write(WEIGHTS, &weights_to_bytes(trainer.config(), &trainer.weights())?)?;
    write(MOMENTS, &safetensors_to_bytes(trainer.moments())?)?;
    let own = SavedWeights { checkpoint: generations::of(trainer), checksum: weights };
    let state = TrainState {
        format: FORMAT,
        step: trainer.step(),
        validation_is_pending: trainer.validation_is_pending(),
        best: trainer.best(),
        counters: trainer.counters(),
        options: trainer.options().clone(),
        corpus: trainer.corpus().fingerprint.clone(),
        metrics_bytes: run.metrics_bytes,
        seconds: run.seconds,
        published: run.published.unwrap_or(own),
        checksums,
        seal: String::new(),
    };
    files::write_new(&temporary.join(STATE), state.sealed()?.as_bytes())?;
    files::rename_folder(&temporary, path)?;
    Ok(state)
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
fn read_state(path: &Path) -> Result<TrainState> {
    let file = path.join(STATE);
    let json = files::read(&file)?;
    let broken = |what: &dyn Display| Error::Msg(format!("broken checkpoint: {}: {what}", file.display()));
    let state: TrainState = serde_json::from_slice(&json).map_err(|error| broken(&error))?;
    if state.format != FORMAT {
        bail!("{}: expected format {FORMAT}, got {}", file.display(), state.format);
    }
    if !state.is_the_content_of(&json) {
        return Err(broken(&"it is not the file that was written"));
    }
    match state.contradiction(&path.file_name().unwrap_or_default().to_string_lossy()) {
        Some(contradiction) => Err(broken(&contradiction)),
        None => Ok(state),
    }
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
    /// The content of its file: the seal vouches for every other byte.
    fn sealed(&self) -> Result<String> {
        let json = serde_json::to_string_pretty(self).map_err(Error::wrap)?;
        let member = |seal: &str| format!("\"seal\": \"{seal}\"");
        Ok(json.replacen(&member(""), &member(&sha256(json.as_bytes())), 1))
    }

    fn is_the_content_of(&self, json: &[u8]) -> bool {
        let json = String::from_utf8_lossy(json);
        json.rsplit_once(&self.seal).is_some_and(|(before, behind)| {
            !self.seal.is_empty() && sha256(format!("{before}{behind}").as_bytes()) == self.seal
        })
    }

    /// What cannot be true of the checkpoint `name`, whoever wrote it.
    fn contradiction(&self, name: &str) -> Option<&'static str> {
        let Counters { skipped, skipped_in_a_row, .. } = self.counters;
        let is_sound = |best: Best| best.step <= self.step && best.validation_loss.is_finite();
        [
            (
                generations::step_of(name) == Some((self.step, self.validation_is_pending)),
                "its step is not the folder's",
            ),
            (skipped <= self.step, "more steps are skipped than made"),
            (skipped_in_a_row <= skipped, "more steps are skipped in a row than in all"),
            (self.best.is_none_or(is_sound), "the best model is not one of its steps, or its loss no number"),
            (
                generations::step_of(&self.published.checkpoint).is_some_and(|(step, _)| step <= self.step),
                "the weights at the root are of no step before",
            ),
            (self.seconds.is_finite() && self.seconds >= 0.0, "the seconds are no time"),
        ]
        .into_iter()
        .find_map(|(holds, contradiction)| (!holds).then_some(contradiction))
    }

    /// Its own weights.
    pub(super) fn weights(&self) -> Option<SavedWeights> {
        let checkpoint = generations::of_state(self.step, self.validation_is_pending);
        self.checksums.get(WEIGHTS).map(|checksum| SavedWeights { checkpoint, checksum: checksum.clone() })
    }

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

impl SavedWeights {
    /// Whether the file `path` holds them.
    pub(super) fn are_in(&self, path: &Path) -> bool {
        checksum(path).is_ok_and(|sum| sum == self.checksum)
    }
}

/// The SHA-256 of a file.
fn checksum(path: &Path) -> Result<String> {
    Ok(sha256(&files::read(path)?))
}

/// The SHA-256 of some bytes, in hexadecimal digits.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
