//! The folder of a run: a Hugging Face model folder, with everything that only training needs in `training/`.
//!
//! ```text
//! config.json, generation_config.json       the model
//! tokenizer.json, tokenizer_config.json     the tokenizer
//! model.safetensors                         the best weights so far
//! training/current                          names the current checkpoint; replacing this file commits one
//! training/step-00000250/                   a checkpoint: weights, moments, state, checksums
//! training/metrics.jsonl                    one JSON object per step, validation or failure
//! training/ids.safetensors                  the token ids of the text
//! training/loss.svg                         a plot of the losses
//! training/tensorboard/                     the metrics as TensorBoard reads them
//! training/lock                             held while a process trains here
//! training/settings.toml                    the settings of the last session
//! ```
//!
//! The current checkpoint and that of the best model are kept, older ones are removed. Each validation is followed by a
//! checkpoint; where validations are far apart, more are written between them, some minutes apart. Such a checkpoint
//! has not been validated, so the best weights, once there are any, stay. The checksums of a checkpoint's files are in
//! `state.json`, which has its own.
//!
//! `training/current` defines the run, so a crash is harmless at every stage of a save:
//! 1. Metrics are synced and the checkpoint is being written to `step-N.tmp`: the current checkpoint is untouched. The
//!    next session truncates the metrics to the length that it records, and removes the rest.
//! 2. The checkpoint is complete, synced and renamed, and the folder synced: the pointer still names the one before.
//! 3. The pointer is replaced: the new checkpoint is the current one, and everything it needs is on disk. The weights
//!    at the root may be older: the next session compares them with the checksum in the checkpoint, and copies them
//!    again.
//! 4. The weights at the root are replaced, and older checkpoints removed one by one: nothing refers to these.
//!
//! A new run is built in a folder beside its place and renamed after its first checkpoint.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{Device, Error, Result, bail};
use serde::Serialize;

use super::checkpoint::{self, Checkpoint, RunState, SavedWeights, TrainState, WEIGHTS};
use super::inputs::{IDS, SETTINGS};
use super::{Best, Trainer};
use super::{generations, lock, space};
use crate::files::{self, Staging};
use crate::input;
use crate::metrics::{Charts, PLOT};
use crate::model::ModelConfig;

pub(super) const TRAINING: &str = "training";
const METRICS: &str = "metrics.jsonl";

/// The default time between two checkpoints.
const SAVE_INTERVAL: Duration = Duration::from_secs(600);

/// The folder of a run in training.
pub struct RunFolder {
    root: PathBuf,
    metrics: File,
    metrics_bytes: u64,
    charts: Charts,
    seconds_before: f64,
    begun: Instant,
    save_interval: Duration,
    /// When the current checkpoint was written or opened.
    saved: Instant,
    /// Of the files at the root beside the weights.
    pub(super) root_checksums: BTreeMap<String, String>,
    /// The weights of the current checkpoint.
    current: Option<SavedWeights>,
    /// The weights that belong at the root: those of `best` or, while there is none, the last.
    published: Option<SavedWeights>,
    best: Option<Best>,
    /// Whether the published weights are known to be at the root.
    is_at_root: bool,
    /// Bytes missing from the metrics, by the record of the checkpoint.
    lost_metrics: u64,
    lost_best: Option<Best>,
    /// Held as long as the folder is open: one process at a time.
    _lock: File,
}

impl RunFolder {
    /// Moves a complete new folder to its place `root`.
    pub(super) fn move_to(self, staging: &Staging, root: &Path) -> Result<Self> {
        if cfg!(not(windows)) {
            staging.move_to(root)?;
            return Ok(Self { root: root.to_path_buf(), ..self });
        }
        // Windows does not rename a folder that contains an open file.
        let Self { metrics, charts, _lock: lock, .. } = self;
        drop((metrics, charts, lock));
        let Self { metrics_bytes, root_checksums, current, published, best, is_at_root, .. } = self;
        staging.move_to(root)?;
        Ok(Self { metrics_bytes, root_checksums, current, published, best, is_at_root, ..Self::open(root)? })
    }

    /// Whether `root` holds a run that can be resumed.
    pub fn exists(root: &Path) -> bool {
        generations::has_current(&root.join(TRAINING))
    }

    /// Opens the folder of an earlier run at its current checkpoint. Until [`RunFolder::begin`] nothing changes, except
    /// that the lock is taken and missing files for lock and metrics are created.
    ///
    /// # Errors
    /// If there is no run, its checkpoint is broken, or another process is training in it.
    pub fn resume(root: &Path, device: &Device) -> Result<(Self, ModelConfig, Checkpoint)> {
        let training = root.join(TRAINING);
        let mut folder = Self::open(root)?;
        let current = input::inside(&training, generations::current(&training)?)?;
        let (config, checkpoint) = checkpoint::load(root, &current, device)?;
        folder.seconds_before = checkpoint.state.seconds;
        folder.root_checksums = checkpoint.state.root_checksums();
        folder.adopt(&checkpoint.state);
        folder.metrics_bytes = checkpoint.state.metrics_bytes;
        if folder.metrics_len()? < folder.metrics_bytes {
            // The file has been truncated: keep whole lines.
            let metrics = files::read(&training.join(METRICS))?;
            let whole = metrics.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at as u64 + 1);
            folder.lost_metrics = folder.metrics_bytes.saturating_sub(whole);
            folder.metrics_bytes = whole;
        }
        Ok((folder, config, checkpoint))
    }

    /// Bytes that the metrics have lost since the checkpoint: the file has been truncated.
    pub fn lost_metrics(&self) -> u64 {
        self.lost_metrics
    }

    /// Prepares the folder to go on at the checkpoint that `trainer` has resumed or created: truncates the metrics to
    /// it, restores the best weights at the root if necessary, and removes what a crash has left.
    ///
    /// If the best weights are lost, at the root and in their checkpoint, the current ones take their place and
    /// `trainer` forgets the best; see [`RunFolder::take_lost_best`].
    ///
    /// # Errors
    /// If something cannot be read or written.
    pub fn begin(&mut self, trainer: &mut Trainer) -> Result<()> {
        let training = self.root.join(TRAINING);
        if self.metrics_len()? > self.metrics_bytes {
            files::truncate(&self.metrics, &training.join(METRICS), self.metrics_bytes)?;
        }
        let target = self.root.join(WEIGHTS);
        if let Some(published) = &self.published {
            self.is_at_root = published.are_in(&target)?;
            if !self.is_at_root && !published.are_kept(&training)? {
                self.fall_back_to_current(&training, trainer)?;
            }
        }
        self.charts = Charts::begin(&training, &training.join(METRICS), self.seconds());
        self.publish()?;
        files::remove_file(&files::sibling(&target))?;
        files::remove_file(&files::sibling(&training.join(SETTINGS)))?;
        files::remove_file(&files::sibling(&training.join(IDS)))?;
        self.remove_old()
    }

    /// Publishes the current weights in place of the best ones, which are lost.
    fn fall_back_to_current(&mut self, training: &Path, trainer: &mut Trainer) -> Result<()> {
        match &self.current {
            Some(current) if current.are_kept(training)? => self.published = Some(current.clone()),
            _ => bail!("broken checkpoint: the weights of {} are not the ones that were written", self.root.display()),
        }
        self.lost_best = self.best.take();
        trainer.best = None;
        Ok(())
    }

    /// The best model whose weights are saved: those at the root.
    pub fn best(&self) -> Option<Best> {
        self.best
    }

    /// The best model whose weights [`RunFolder::begin`] has found to be lost; reported once.
    pub fn take_lost_best(&mut self) -> Option<Best> {
        self.lost_best.take()
    }

    /// Opens the folder for training, and takes its lock.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let training = root.join(TRAINING);
        match fs::symlink_metadata(&training) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => bail!("expected a folder, got a link or a file: {}", training.display()),
            Err(error) => bail!("cannot read {}: {error}", training.display()),
        }
        let (lock, now) = (lock::take(root, &training)?, Instant::now());
        Ok(Self {
            root: root.to_path_buf(),
            metrics: files::open_in_place(&training.join(METRICS))?,
            metrics_bytes: 0,
            charts: Charts::default(),
            seconds_before: 0.0,
            begun: now,
            save_interval: SAVE_INTERVAL,
            saved: now,
            root_checksums: BTreeMap::new(),
            current: None,
            published: None,
            best: None,
            is_at_root: false,
            lost_metrics: 0,
            lost_best: None,
            _lock: lock,
        })
    }

    /// The path of the run.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn metrics_len(&self) -> Result<u64> {
        match self.metrics.metadata() {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) => bail!("cannot read {}: {error}", self.root.join(TRAINING).join(METRICS).display()),
        }
    }

    /// Appends a report, with the seconds of training so far, to the metrics.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn log(&mut self, report: &impl Serialize) -> Result<()> {
        #[derive(Serialize)]
        struct Line<'a, R> {
            #[serde(flatten)]
            report: &'a R,
            seconds: f64,
        }
        let mut line = serde_json::to_vec(&Line { report, seconds: self.seconds() }).map_err(Error::wrap)?;
        line.push(b'\n');
        files::append(&self.metrics, &self.root.join(TRAINING).join(METRICS), self.metrics_bytes, &line)?;
        self.metrics_bytes += line.len() as u64;
        self.charts.add(&line);
        Ok(())
    }

    /// The path of the loss plot, which exists once there are losses to draw.
    pub fn plot(&self) -> PathBuf {
        self.root.join(TRAINING).join(PLOT)
    }

    /// The error that has ended loss plot and event file, reported once: training can go on without them.
    pub fn take_charts_error(&mut self) -> Option<Error> {
        self.charts.take_error()
    }

    /// Seconds of training so far, earlier sessions included.
    pub fn seconds(&self) -> f64 {
        self.seconds_before + self.begun.elapsed().as_secs_f64()
    }

    /// Sets the time after which [`train`](super::train) writes a checkpoint even where no validation is due; zero
    /// means after every step. The default is ten minutes. It has no influence on the result of the run.
    pub fn set_save_interval(&mut self, time: Duration) {
        self.save_interval = time;
    }

    /// Whether the current checkpoint will be older than that interval after another `time`.
    pub(super) fn is_save_due_within(&self, time: Duration) -> bool {
        self.saved.elapsed() + time >= self.save_interval
    }

    /// The step of the current checkpoint.
    pub(super) fn saved_step(&self) -> Option<u64> {
        self.current.as_ref().and_then(SavedWeights::step)
    }

    /// Writes a checkpoint, makes it the current one, and publishes the best weights at the root. Does nothing for a
    /// state that is the current checkpoint already.
    ///
    /// # Errors
    /// If a weight is not finite, the disk has too little free space, which is checked first, or something cannot be
    /// written. The checkpoint before stays intact, and the save can be tried again.
    pub fn save(&mut self, trainer: &Trainer) -> Result<()> {
        let training = self.root.join(TRAINING);
        let name = generations::of(trainer);
        self.catch_up(&training)?;
        if !self.is_current(&name) {
            self.write(trainer, &training, &name)?;
        }
        self.saved = Instant::now();
        self.note_best(trainer);
        self.publish()?;
        self.remove_old()
    }

    /// Follows the pointer on disk: an earlier save may have replaced it, and then failed to sync it.
    fn catch_up(&mut self, training: &Path) -> Result<()> {
        // A new folder has none before its first checkpoint.
        if generations::has_current(training) {
            let name = generations::current(training)?;
            if !self.is_current(&name) {
                files::sync_names(training)?;
                self.adopt(&checkpoint::read_state(&training.join(name))?);
            }
        }
        Ok(())
    }

    fn is_current(&self, name: &str) -> bool {
        self.current.as_ref().is_some_and(|current| current.checkpoint == name)
    }

    /// Writes the checkpoint `name`, and makes it the current one.
    fn write(&mut self, trainer: &Trainer, training: &Path, name: &str) -> Result<()> {
        files::check_space(training, "a checkpoint", space::of_save(trainer))?;
        files::sync(&training.join(METRICS))?;
        self.charts.save();
        let (best, published) = self.best_with(trainer);
        let run = RunState {
            root_checksums: self.root_checksums.clone(),
            best,
            published,
            metrics_bytes: self.metrics_bytes,
            seconds: self.seconds(),
        };
        let state = checkpoint::write(&training.join(name), trainer, run)?;
        generations::set_current(training, name)?;
        self.adopt(&state);
        Ok(())
    }

    /// Makes the checkpoint of this state the current one.
    fn adopt(&mut self, state: &TrainState) {
        self.current = state.weights();
        // A best model of another step than the published weights was never saved.
        let best = state.best.filter(|best| state.published.step() == Some(best.step));
        self.set_published(best, state.published.clone());
    }

    fn set_published(&mut self, best: Option<Best>, weights: SavedWeights) {
        self.is_at_root &= self.published.as_ref().is_some_and(|before| before.checksum == weights.checksum);
        (self.best, self.published) = (best, Some(weights));
    }

    /// The best model that this folder will have with a checkpoint of `trainer`, and its weights; `None` for the
    /// weights of that checkpoint.
    fn best_with(&self, trainer: &Trainer) -> (Option<Best>, Option<SavedWeights>) {
        match trainer.best() {
            Some(best) if best.step == trainer.step() => (Some(best), None),
            Some(best) if self.current_is_of(best) => (Some(best), self.current.clone()),
            // Also where the trainer's best model was validated and never saved: its weights are gone.
            _ if self.best.is_some() => (self.best, self.published.clone()),
            _ => (None, None),
        }
    }

    fn current_is_of(&self, best: Best) -> bool {
        self.saved_step() == Some(best.step)
    }

    /// Publishes the current checkpoint if `trainer` has found it to be the best after it was written.
    fn note_best(&mut self, trainer: &Trainer) {
        if let (Some(best), Some(current)) = (trainer.best(), self.current.clone())
            && self.current_is_of(best)
        {
            self.set_published(Some(best), current);
        }
    }

    /// Copies the published weights to the root, unless they are there.
    fn publish(&mut self) -> Result<()> {
        if let Some(published) = self.published.as_ref().filter(|_| !self.is_at_root) {
            // A copy, not a link: changing the file at the root must not change the checkpoint.
            let source = self.root.join(TRAINING).join(&published.checkpoint).join(WEIGHTS);
            files::replace_by_copy(&self.root.join(WEIGHTS), &source)?;
            self.is_at_root = true;
        }
        Ok(())
    }

    fn remove_old(&self) -> Result<()> {
        let kept: Vec<&str> = self.current.iter().chain(&self.published).map(|weights| &*weights.checkpoint).collect();
        generations::remove_all_but(&self.root.join(TRAINING), &kept)
    }
}
