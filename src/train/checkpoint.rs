//! One checkpoint on disk: a folder of weights, optimizer state and training state, complete or absent.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use candle_core::{Device, Error, Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Counters, TrainOptions, Trainer, generations};
use crate::files;
use crate::model::{ModelConfig, safetensors_from_bytes, safetensors_to_bytes, weights_from_bytes, weights_to_bytes};

pub(super) const WEIGHTS: &str = "model.safetensors";
const MOMENTS: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";

/// The files at the run's root that a checkpoint is useless without.
const ROOT_FILES: [&str; 2] = [CONFIG, TOKENIZER];

/// The version of this layout; later ones may be unreadable for this code.
const FORMAT: u32 = 2;

/// The model with the lowest validation loss so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The steps it had been trained for.
    pub step: u64,
    /// Its validation loss, in nats per token.
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

/// What a checkpoint records of the run folder, beside the trainer's state.
pub(super) struct RunState {
    /// The checksums of [`root_checksums`].
    pub(super) root_checksums: BTreeMap<String, String>,
    /// The best model that the run folder has, or will have with this checkpoint.
    pub(super) best: Option<Best>,
    /// The weights that belong at the root, of an earlier checkpoint; `None` if they are those of this one.
    pub(super) published: Option<SavedWeights>,
    pub(super) metrics_bytes: u64,
    pub(super) seconds: f64,
}

/// A checkpoint's state beside weights and moments. The position in the data and the random state are not part of it:
/// both are functions of the step and the options' seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    format: u32,
    /// Steps done.
    pub step: u64,
    /// Whether the validation due at this step has not been made yet.
    #[serde(default)]
    pub validation_is_pending: bool,
    /// The best model so far, after the first validation.
    pub best: Option<Best>,
    /// The run's counters.
    #[serde(default)]
    pub counters: Counters,
    /// The options of the run.
    pub options: TrainOptions,
    /// The fingerprint of the corpus.
    pub corpus: String,
    /// The length of the metrics file at this checkpoint.
    pub metrics_bytes: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// The weights that belong at the run's root: the best, or these while there is no best.
    pub(super) published: SavedWeights,
    /// SHA-256 of the files beside this one, and of configuration and tokenizer at the root.
    pub(super) checksums: BTreeMap<String, String>,
    /// SHA-256 of the file that holds this state, with this field empty.
    seal: String,
}

/// A checkpoint that has been read.
pub struct Checkpoint {
    /// The state beside weights and moments.
    pub state: TrainState,
    /// The weights, by their names in the model.
    pub weights: BTreeMap<String, Tensor>,
    /// The optimizer's moments, by name.
    pub moments: BTreeMap<String, Tensor>,
}

/// Writes the trainer's state as the folder `path`, which appears complete or not at all.
///
/// # Errors
/// If a weight is not finite, or something cannot be written.
pub(super) fn write(path: &Path, trainer: &Trainer, run: RunState) -> Result<TrainState> {
    if let Some(name) = trainer.non_finite_weight()? {
        bail!("step {}: {name} is no longer finite; a lower learning rate may help", trainer.step());
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
        best: run.best,
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

/// Writes a file and gives the checksum of its content; both take equally long, so they run in parallel.
fn write_and_sum(path: &Path, bytes: &[u8]) -> Result<String> {
    std::thread::scope(|scope| {
        let sum = scope.spawn(|| sha256(bytes));
        files::write_new(path, bytes)?;
        sum.join().map_err(|_| Error::Msg(format!("cannot compute the checksum of {}", path.display())))
    })
}

/// The checksums of the files at the run's root that a checkpoint is useless without.
pub(super) fn root_checksums(root: &Path) -> Result<BTreeMap<String, String>> {
    ROOT_FILES.into_iter().map(|name| Ok((name.to_string(), sha256(&files::read(&root.join(name))?)))).collect()
}

/// Reads the state in the checkpoint folder `path`.
pub(super) fn read_state(path: &Path) -> Result<TrainState> {
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

/// Reads the checkpoint folder `path` of the run in `root`.
///
/// # Errors
/// If something cannot be read, or a file is not the one that was written.
pub(super) fn load(root: &Path, path: &Path, device: &Device) -> Result<(ModelConfig, Checkpoint)> {
    let state = read_state(path)?;
    let config = ModelConfig::from_json(&state.read(root, CONFIG)?)?;
    state.read(root, TOKENIZER)?;
    let weights = weights_from_bytes(&path.join(WEIGHTS), &state.read(path, WEIGHTS)?, &config, device)?;
    let moments = safetensors_from_bytes(&path.join(MOMENTS), &state.read(path, MOMENTS)?, device)?;
    Ok((config, Checkpoint { state, weights, moments }))
}

impl TrainState {
    /// The content of its file: the seal is the checksum of every other byte.
    fn sealed(&self) -> Result<String> {
        let json = serde_json::to_string_pretty(self).map_err(Error::wrap)?;
        let member = |seal: &str| format!("\"seal\": \"{seal}\"");
        Ok(json.replacen(&member(""), &member(&sha256(json.as_bytes())), 1))
    }

    fn is_the_content_of(&self, json: &[u8]) -> bool {
        let json = String::from_utf8_lossy(json);
        json.rsplit_once(&self.seal).is_some_and(|(before, after)| {
            !self.seal.is_empty() && sha256(format!("{before}{after}").as_bytes()) == self.seal
        })
    }

    /// What cannot be true of the checkpoint `name`, whoever has written it.
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
            (self.best.is_none_or(is_sound), "the best model is not one of its steps, or its loss is not finite"),
            (
                generations::step_of(&self.published.checkpoint).is_some_and(|(step, _)| step <= self.step),
                "the weights at the root are not of an earlier step",
            ),
            (self.seconds.is_finite() && self.seconds >= 0.0, "the seconds are not a duration"),
        ]
        .into_iter()
        .find_map(|(holds, contradiction)| (!holds).then_some(contradiction))
    }

    /// Its own weights.
    pub(super) fn weights(&self) -> Option<SavedWeights> {
        let checkpoint = generations::of_state(self.step, self.validation_is_pending);
        self.checksums.get(WEIGHTS).map(|checksum| SavedWeights { checkpoint, checksum: checksum.clone() })
    }

    /// Reads a file and verifies its checksum.
    fn read(&self, folder: &Path, name: &str) -> Result<Vec<u8>> {
        let path = folder.join(name);
        let bytes = files::read(&path)?;
        if self.checksums.get(name) != Some(&sha256(&bytes)) {
            bail!("broken checkpoint: {} is not the file that was written", path.display());
        }
        Ok(bytes)
    }

    /// The checksums of files at the run's root.
    pub(super) fn root_checksums(&self) -> BTreeMap<String, String> {
        let of_root = self.checksums.iter().filter(|(name, _)| ROOT_FILES.contains(&name.as_str()));
        of_root.map(|(name, sum)| (name.clone(), sum.clone())).collect()
    }
}

impl SavedWeights {
    /// The step of their checkpoint.
    pub(super) fn step(&self) -> Option<u64> {
        generations::step_of(&self.checkpoint).map(|(step, _)| step)
    }

    /// Whether the file `path` holds them.
    ///
    /// # Errors
    /// If it exists and cannot be read.
    pub(super) fn are_in(&self, path: &Path) -> Result<bool> {
        match is_ordinary_file(path).and_then(|is_file| Ok(is_file && checksum(path)? == self.checksum)) {
            Ok(are) => Ok(are),
            Err(error) => bail!("cannot read {}: {error}", path.display()),
        }
    }

    /// Whether their checkpoint in the folder `training` still has them.
    ///
    /// # Errors
    /// If its file exists and cannot be read.
    pub(super) fn are_kept(&self, training: &Path) -> Result<bool> {
        let folder = training.join(&self.checkpoint);
        let is_folder = fs::symlink_metadata(&folder).is_ok_and(|found| found.is_dir());
        Ok(is_folder && self.are_in(&folder.join(WEIGHTS))?)
    }
}

/// Whether `path` is a file and not a link, which could lead anywhere.
fn is_ordinary_file(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(found.is_file()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The SHA-256 of a file, however large.
fn checksum(path: &Path) -> io::Result<String> {
    let (mut file, mut sum, mut buffer) = (File::open(path)?, Sha256::new(), Vec::new());
    while file.by_ref().take(1 << 20).read_to_end(&mut buffer)? > 0 {
        sum.update(&buffer);
        buffer.clear();
    }
    Ok(hexadecimal(&sum.finalize()))
}

/// The SHA-256 of some bytes.
fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn weights_that_cannot_be_read_are_an_error_and_not_other_weights() {
        let space = tempfile::tempdir().unwrap();
        let path = space.path().join(WEIGHTS);
        let bytes = vec![7; (1 << 20) + 3];
        let weights = SavedWeights { checkpoint: String::new(), checksum: sha256(&bytes) };
        assert!(!weights.are_in(&path).unwrap());
        fs::write(&path, &bytes).unwrap();
        assert!(weights.are_in(&path).unwrap());
        fs::write(&path, &bytes[1..]).unwrap();
        assert!(!weights.are_in(&path).unwrap());
        // An ordinary file of which no byte can be read.
        let error = weights.are_in(Path::new("/proc/self/mem")).unwrap_err().to_string();
        assert!(error.starts_with("cannot read /proc/self/mem: "), "{error}");
    }
}
