//! The folder of a run: a Hugging Face model folder, with everything that only training needs in `training/`.
//!
//! ```text
//! config.json, generation_config.json       the model
//! tokenizer.json, tokenizer_config.json     the tokenizer
//! README.md                                 the model card
//! model.safetensors                         the best weights so far; their step and loss in the metadata
//! training/step-00000250.safetensors        a checkpoint: weights, optimizer state, averages, state, checksum
//! training/settings.toml                    all options
//! training/ids.safetensors                  the token ids of the text
//! training/metrics.jsonl                    one JSON object per step or validation
//! training/loss.svg                         a plot of the losses
//! training/tensorboard/                     the metrics as TensorBoard reads them
//! training/watch/step-00000100.safetensors  the attention map of the text of `watch` at a step
//! training/lock                             held while a process trains here
//! ```
//!
//! Where adapters (LoRA) are trained, the root is a PEFT folder instead: `adapter_config.json`, which names the model below
//! them, and `adapter_model.safetensors`. The model's configuration is `training/config.json`.
//!
//! A checkpoint appears by one rename; the newest that verifies is the latest, and its state decides which weights are the
//! best. The weights at the root are written after it: where a crash came between, the next session writes them.
//!
//! Whoever succeeds in creating `training/` owns the run; nothing is ever taken over from another process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::latest::CheckpointState;
use super::metrics::{Line, Metrics};
use super::ownership::{lock, occupied, remove_created};
use super::trainer::Trainer;
use super::watch::Watch;
use super::{checkpoint, model_card, settings_file};
use crate::cpu::sums::euclidean_norm;
use crate::host::file_names::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, WEIGHTS};
use crate::host::{Error, Result, disk, input};
use crate::model::{TensorFile, adapter_json, base_files, save_adapter, save_weights_with};
use crate::text::Tokenizer;

/// The model with the lowest validation loss so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Best {
    /// The steps it had been trained for.
    pub step: u64,
    /// Its validation loss, in nats per token.
    pub loss: f64,
}

/// The folder of a run in training. While it is open, its lock is held.
pub struct RunDir {
    root: PathBuf,
    metrics: Metrics,
    /// All options, for the model card.
    settings: toml::Table,
    /// The folder of the model that a new run starts from.
    base: Option<PathBuf>,
    /// The step of the last checkpoint and when it was written or opened; `None` before the first.
    saved: Option<(u64, Instant)>,
    /// What `watch` asks for.
    watch: Option<Watch>,
    /// Whether this process is creating the run and, if so, its root.
    creates: Option<IsRootNew>,
    _lock: File,
}

/// Whether the root of a run did not exist before.
pub(super) type IsRootNew = bool;

impl RunDir {
    /// Creates the folder `root`, which may exist if it is empty, and its missing parents. Until
    /// [`RunDir::begin`] has written a first checkpoint, dropping it removes what was created.
    ///
    /// # Errors
    /// [`Error::Exists`] where there is something, [`Error::Locked`] where another process trains,
    /// [`Error::Unfinished`] where one has ended while it was creating a run, and if it cannot be written.
    pub fn create(root: &Path) -> Result<Self> {
        disk::create_parents(root)?;
        let is_root_new = disk::create_folder(root)?;
        if !is_root_new && !root.is_dir() {
            return Err(Error::Exists(root.to_path_buf()));
        }
        let is_other = |entry: fs::DirEntry| entry.file_name() != "training";
        let mut entries = fs::read_dir(root).map_err(Error::io("read", root))?.flatten();
        if entries.any(is_other) || !disk::create_folder(&root.join("training"))? {
            return Err(occupied(root));
        }
        Self::created(root, is_root_new).inspect_err(|_| {
            remove_created(root, is_root_new);
        })
    }

    /// Starts a run whose folder `training` has just been created.
    fn created(root: &Path, is_root_new: IsRootNew) -> Result<Self> {
        let (_lock, metrics) = (lock(root, true)?, Metrics::start(&root.join("training"), 0, 0.0)?);
        let (root, creates) = (root.to_path_buf(), Some(is_root_new));
        let settings = toml::Table::new();
        Ok(Self { root, metrics, settings, base: None, saved: None, watch: None, creates, _lock })
    }

    /// The path of the run.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn training(&self) -> PathBuf {
        self.root.join("training")
    }

    /// Where the token ids of a new run go.
    pub fn ids_path(&self) -> PathBuf {
        self.training().join("ids.safetensors")
    }

    /// The path of the loss plot, which exists once there are losses to draw.
    pub fn plot_path(&self) -> PathBuf {
        self.training().join("loss.svg")
    }

    /// The path of the metrics.
    pub fn metrics_path(&self) -> PathBuf {
        self.training().join("metrics.jsonl")
    }

    /// Makes this the run of a model that starts from the one in the folder `base`, whose tokenizer, settings of generation
    /// and further keys of `config.json` it keeps.
    pub fn start_from(&mut self, base: &Path) {
        self.base = Some(base.to_path_buf());
    }

    /// Writes the model's configuration, the tokenizer, the settings (the trainer's options, and what else the caller wants
    /// to keep with them) and a first checkpoint of a new run.
    ///
    /// # Errors
    /// If something cannot be written.
    pub fn begin(&mut self, tokenizer: &Tokenizer, trainer: &Trainer, others: &toml::Table) -> Result<()> {
        let config = trainer.config();
        let write = |name: &str, text: String| disk::replace_with(&self.root.join(name), text.as_bytes());
        if let Some(base) = &trainer.base {
            write(ADAPTER_CONFIG, adapter_json(config, &base.lora, &base.path)?)?;
            write("training/config.json", config.to_json()?)?;
        } else {
            config.save(&self.root)?;
        }
        tokenizer.save(&self.root, config.context_len)?;
        if let Some(base) = &self.base {
            base_files::keep(base, &self.root)?;
        }
        self.settings = settings_file::write(&self.training(), others, trainer.options())?;
        self.watch = Watch::new(&trainer.options().watch, tokenizer, config, &self.training())?;
        self.watch.iter().try_for_each(|watch| watch.begin(0))?;
        self.save(trainer)
    }

    /// Opens the run at the checkpoint that `trainer` has resumed: makes the weights at the root those of the best model, or the
    /// current ones where there is no best.
    pub(super) fn resumed(
        root: &Path,
        (lock, metrics_bytes, seconds): (File, u64, f64),
        trainer: &Trainer,
        settings: &toml::Table,
    ) -> Result<Self> {
        let (training, step) = (root.join("training"), trainer.steps_done());
        let watch = match &trainer.options().watch[..] {
            "" => None,
            text => Watch::new(text, &Tokenizer::open(root)?, trainer.config(), &training)?,
        };
        settings_file::write(&training, settings, trainer.options())?;
        watch.iter().try_for_each(|watch| watch.begin(step))?;
        let metrics = Metrics::start(&training, metrics_bytes, seconds)?;
        let saved = Some((step, Instant::now()));
        let (root, settings) = (root.to_path_buf(), settings.clone());
        let run = Self { root, metrics, settings, base: None, saved, watch, creates: None, _lock: lock };
        if trainer.best().is_none_or(|best| !is_held(&run.root, trainer, best)) {
            run.publish(trainer)?;
        }
        model_card::write(&run.root, trainer, &run.settings)?;
        run.remove_old(step, trainer.options().keep)?;
        Ok(run)
    }

    /// All options, and what else is kept with them.
    pub(super) fn settings(&self) -> &toml::Table {
        &self.settings
    }

    /// Lets a new run go, as if it had no checkpoint yet: dropping it removes what was created.
    pub(super) fn let_go(&mut self) {
        if self.creates.is_some() {
            self.saved = None;
        }
    }

    /// Removes what is in the folder `root` of a run that has no checkpoint yet, and `root` itself if it was new; says
    /// whether that is done. It is what dropping it does, for a process that ends without.
    pub fn remove_unfinished(root: &Path, is_root_new: bool) -> bool {
        remove_created(root, is_root_new)
    }

    /// Takes the options of the trainer into the settings.
    ///
    /// # Errors
    /// If the settings cannot be written.
    pub(super) fn settle(&mut self, trainer: &Trainer) -> Result<()> {
        self.settings = settings_file::write(&self.training(), &self.settings, trainer.options())?;
        Ok(())
    }

    /// Keeps the attention map that is due at this step, if one is, or at the end of a run.
    pub(super) fn watch(&self, trainer: &Trainer) -> Result<()> {
        let (step, steps) = (trainer.steps_done(), trainer.options().steps);
        match &self.watch {
            Some(watch) if Watch::is_due(step, steps) || trainer.is_out_of_patience() => {
                watch.write(trainer.model(), step)
            }
            _ => Ok(()),
        }
    }

    /// Appends a line to the metrics.
    pub(super) fn log(&mut self, line: Line) -> Result<()> {
        self.metrics.add(line)
    }

    /// Seconds since the run was created, those between sessions excluded.
    pub fn seconds(&self) -> f64 {
        self.metrics.seconds()
    }

    /// Whether the last checkpoint is older than the options allow.
    pub(super) fn is_save_due(&self, trainer: &Trainer) -> bool {
        let interval = Duration::try_from_secs_f64(60.0 * trainer.options().save_every).unwrap_or(Duration::MAX);
        self.saved.is_none_or(|(step, at)| step != trainer.steps_done() && at.elapsed() >= interval)
    }

    /// Writes a checkpoint, then the weights at the root if they are the best or there are no best yet; removes older
    /// checkpoints, and later ones, which are damaged: those steps were made again. Of several processes the first does this,
    /// and the others call [`Trainer::tensors`], to give it theirs.
    ///
    /// # Errors
    /// If a weight is not finite, or something cannot be written. The checkpoint before stays intact.
    pub fn save(&mut self, trainer: &Trainer) -> Result<()> {
        let (training, step, tensors) = (self.training(), trainer.steps_done(), trainer.tensors()?);
        check_finite(&tensors, step)?;
        self.metrics.save()?;
        let state = CheckpointState {
            trainer: trainer.state.clone(),
            metrics_bytes: self.metrics.bytes(),
            seconds: self.seconds(),
        };
        let state = serde_json::to_string(&state).map_err(|error| Error::Input(error.to_string()))?;
        checkpoint::write(&checkpoint::path(&training, step), &state, &tensors)?;
        self.saved = Some((step, Instant::now()));
        if trainer.best().is_none_or(|best| best.step == step) {
            self.publish(trainer)?;
        }
        model_card::write(&self.root, trainer, &self.settings)?;
        for later in checkpoint::steps(&training)?.into_iter().filter(|other| *other > step) {
            disk::remove_file(&checkpoint::path(&training, later))?;
        }
        self.remove_old(step, trainer.options().keep)
    }

    /// Removes all checkpoints up to this step but the newest `keep`.
    fn remove_old(&self, step: u64, keep: usize) -> Result<()> {
        let training = self.training();
        for old in checkpoint::steps(&training)?.into_iter().filter(|other| *other <= step).skip(keep) {
            disk::remove_file(&checkpoint::path(&training, old))?;
        }
        Ok(())
    }

    /// Writes the current weights to the root.
    fn publish(&self, trainer: &Trainer) -> Result<()> {
        let mut metadata = BTreeMap::from([("step", trainer.steps_done().to_string())]);
        if let Some(best) = trainer.best() {
            metadata.insert("loss", best.loss.to_string());
        }
        let (path, config, weights) = (self.root.join(weights_name(trainer)), trainer.config(), trainer.weights());
        match trainer.base {
            None => save_weights_with(&path, config, &weights, metadata),
            Some(_) => save_adapter(&path, config, &weights, metadata),
        }
    }
}

/// The model whose weights are in the file `name` of the folder `root`, if it is a validated one of a run.
pub(super) fn held(root: &Path, name: &str) -> Option<Best> {
    let file = TensorFile::open(&input::inside(root, name).ok()?).ok()?;
    Some(Best { step: file.metadata("step")?.parse().ok()?, loss: file.metadata("loss")?.parse().ok()? })
}

/// Whether the weights at the root are those of this model.
fn is_held(root: &Path, trainer: &Trainer, best: Best) -> bool {
    held(root, weights_name(trainer)).is_some_and(|held| held.step == best.step)
}

/// Forgets the best model of a trainer that has been resumed if its weights are lost, neither at the root nor in the checkpoint:
/// the next validation finds a new best.
pub(super) fn forget_lost_best(root: &Path, trainer: &mut Trainer) {
    if trainer.best().is_some_and(|best| best.step != trainer.steps_done() && !is_held(root, trainer, best)) {
        trainer.state.best = None;
    }
}

/// The name of the weights at the root.
fn weights_name(trainer: &Trainer) -> &'static str {
    if trainer.base.is_some() { ADAPTER_WEIGHTS } else { WEIGHTS }
}

impl Drop for RunDir {
    /// Removes a new run that has no checkpoint yet.
    fn drop(&mut self) {
        if let (Some(is_root_new), None) = (self.creates, self.saved) {
            remove_created(&self.root, is_root_new);
        }
    }
}

/// Refuses weights that are not finite: nothing could be learned from them.
fn check_finite(tensors: &BTreeMap<String, Tensor>, step: u64) -> Result<()> {
    let is_weight = |name: &&str| *name == "weight" || *name == "average";
    let parts = tensors.iter().filter_map(|(name, tensor)| Some((name.split_once('.')?, name, tensor)));
    let (weights, moments): (Vec<_>, Vec<_>) = parts.partition(|((kind, _), ..)| is_weight(kind));
    // The moments last: where they are not finite, it mostly began with a weight.
    for ((kind, of), name, tensor) in weights.into_iter().chain(moments) {
        let norm = euclidean_norm(tensor)?;
        if !norm.is_finite() {
            let name = if is_weight(&kind) { of } else { name };
            return Err(Error::Diverged { step, what: format!("the weight {name}"), value: norm });
        }
    }
    Ok(())
}
