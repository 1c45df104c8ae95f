//! The folder of a run: a Hugging Face model folder, with what only training needs in `training/`.
//!
//! ```text
//! config.json, generation_config.json       the model
//! tokenizer.json, tokenizer_config.json     the tokenizer
//! model.safetensors                         the best weights so far
//! training/current                          names the last checkpoint; replacing this file commits one
//! training/step-00000250/                   a checkpoint: weights, moments, state, checksums
//! training/metrics.jsonl                    one JSON object a step, validation or failure
//! training/ids.safetensors                  the ids of the text
//! training/loss.svg                         a plot of the losses
//! training/tensorboard/                     the metrics as TensorBoard reads them
//! training/lock                             held while a process trains here
//! training/settings.toml                    the settings the run was started with
//! ```
//!
//! The last checkpoint and that of the best model are kept, older ones removed. A checkpoint comes with each validation, and
//! between them after some minutes: such a one has not been validated, so the best weights, once there are any, stay. Each file of a checkpoint has its checksum in
//! `state.json`, which has its own.
//!
//! A run is what `training/current` names, so a crash is harmless at each of the moments of a save, in their order:
//! 1. Metrics synced, checkpoint growing in `step-N.tmp`: the current checkpoint is untouched, its count of the bytes of
//!    the metrics cuts off what came after it, and the next start removes the rest.
//! 2. Checkpoint complete, synced and renamed, then the folder synced: the pointer names the one before, which is there.
//! 3. Pointer replaced: the new checkpoint counts, and all it names lies on disk. The best weights at the root may be
//!    older: the next start compares them with their checksum, which the checkpoint has too, and copies them again.
//! 4. Best weights at the root replaced, older checkpoints removed one by one: nothing names these.
//!
//! A new run grows in a folder beside its place and is renamed there with its first checkpoint.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{Device, Error, Result, bail};
use serde::Serialize;

use super::Trainer;
use super::checkpoint::{self, Checkpoint, RunState, SavedWeights, WEIGHTS};
use super::inputs::{IDS, SETTINGS};
use super::{generations, lock, space};
use crate::metrics::{Charts, PLOT};
use crate::model::ModelConfig;
use crate::{files, input};

pub(super) const TRAINING: &str = "training";
const METRICS: &str = "metrics.jsonl";

/// The time between two checkpoints unless told otherwise.
const SAVE_EVERY: Duration = Duration::from_secs(600);

/// The folder of a run in training.
pub struct RunFolder {
    root: PathBuf,
    metrics: File,
    metrics_bytes: u64,
    charts: Charts,
    seconds_before: f64,
    begun: Instant,
    save_every: Duration,
    /// When the last checkpoint was written or opened.
    saved: Instant,
    /// Of what lies at the root beside the weights.
    pub(super) root_checksums: BTreeMap<String, String>,
    /// The weights of the last checkpoint.
    current: Option<SavedWeights>,
    /// The weights that belong at the root.
    best: Option<SavedWeights>,
    /// Whether they are known to be there.
    is_published: bool,
    /// Bytes of the metrics that the last checkpoint speaks of and that are not there.
    lost_metrics: u64,
    /// Held as long as the folder is open: one process at a time.
    _lock: File,
}

impl RunFolder {
    /// The same folder where a new run belongs.
    pub(super) fn move_to(self, root: &Path) -> Result<Self> {
        if cfg!(not(windows)) {
            // Fails if somebody else has put a run there meanwhile.
            files::rename_folder(&self.root, root)?;
            return Ok(Self { root: root.to_path_buf(), ..self });
        }
        // Windows moves no folder with an open file in it.
        let Self { root: staging, metrics_bytes, root_checksums, current, best, is_published, .. } = self;
        files::rename_folder(&staging, root)?;
        Ok(Self { metrics_bytes, root_checksums, current, best, is_published, ..Self::open(root)? })
    }

    /// Whether `root` holds a run that can be resumed.
    pub fn exists(root: &Path) -> bool {
        generations::has_current(&root.join(TRAINING))
    }

    /// Opens the folder of an earlier run at its last checkpoint. Nothing is changed before [`RunFolder::begin`].
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
        folder.current = checkpoint.state.weights();
        folder.best = Some(checkpoint.state.published.clone());
        folder.metrics_bytes = checkpoint.state.metrics_bytes;
        if folder.metrics.metadata()?.len() < folder.metrics_bytes {
            // Somebody has cut it: whole lines stay.
            let metrics = files::read(&training.join(METRICS))?;
            let whole = metrics.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at as u64 + 1);
            folder.lost_metrics = folder.metrics_bytes.saturating_sub(whole);
            folder.metrics_bytes = whole;
        }
        Ok((folder, config, checkpoint))
    }

    /// Bytes of the metrics that the checkpoint resumed from speaks of and that are not there: somebody has cut the file.
    pub fn lost_metrics(&self) -> u64 {
        self.lost_metrics
    }

    /// Makes the folder ready to go on at the checkpoint that `trainer` stands at: cuts off metrics that came later, puts
    /// the best weights back at the root if they are not there, and removes what a crash has left behind.
    ///
    /// # Errors
    /// If the best weights are lost, or something cannot be written.
    pub fn begin(&mut self, trainer: &Trainer) -> Result<()> {
        let training = self.root.join(TRAINING);
        if self.metrics.metadata()?.len() > self.metrics_bytes {
            files::truncate(&self.metrics, &training.join(METRICS), self.metrics_bytes)?;
        }
        let target = self.root.join(WEIGHTS);
        if let Some(best) = &self.best {
            self.is_published = best.are_in(&target);
            let source = Path::new(&best.checkpoint).join(WEIGHTS);
            let is_kept = || input::inside(&training, &source).is_ok_and(|source| best.are_in(&source));
            if !self.is_published && !is_kept() {
                let (target, source) = (target.display(), training.join(source));
                bail!("broken checkpoint: neither {target} nor {} is the file that was written", source.display());
            }
        }
        self.charts = Charts::begin(&training, &training.join(METRICS), self.seconds());
        self.publish(trainer)?;
        files::remove_file(&files::sibling(&target))?;
        files::remove_file(&files::sibling(&training.join(SETTINGS)))?;
        files::remove_file(&files::sibling(&training.join(IDS)))?;
        self.remove_old()
    }

    /// Opens the folder that training writes in, and holds its lock.
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
            save_every: SAVE_EVERY,
            saved: now,
            root_checksums: BTreeMap::new(),
            current: None,
            best: None,
            is_published: false,
            lost_metrics: 0,
            _lock: lock,
        })
    }

    /// Where the run lies.
    pub fn root(&self) -> &Path {
        &self.root
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
        let mut line =
            serde_json::to_vec(&Line { report, seconds: self.seconds() }).map_err(candle_core::Error::wrap)?;
        line.push(b'\n');
        files::append(&self.metrics, &self.root.join(TRAINING).join(METRICS), self.metrics_bytes, &line)?;
        self.metrics_bytes += line.len() as u64;
        self.charts.add(&line);
        Ok(())
    }

    /// Where the loss plot lies, once there are losses to draw.
    pub fn plot(&self) -> PathBuf {
        self.root.join(TRAINING).join(PLOT)
    }

    /// The error that has ended what is drawn from the metrics, told once: training can go on without.
    pub fn take_charts_error(&mut self) -> Option<Error> {
        self.charts.take_error()
    }

    /// Seconds of training so far, those of the sessions before this one included.
    pub fn seconds(&self) -> f64 {
        self.seconds_before + self.begun.elapsed().as_secs_f64()
    }

    /// Sets the time after which [`train`](super::train) writes a checkpoint where none has come with a validation: zero for one
    /// after every step. It is ten minutes unless told otherwise, and changes nothing of how a run ends.
    pub fn save_every(&mut self, time: Duration) {
        self.save_every = time;
    }

    /// Whether that time has passed since the last checkpoint.
    pub(super) fn is_save_due(&self) -> bool {
        self.saved.elapsed() >= self.save_every
    }

    /// Writes a checkpoint, makes it the current one, and publishes the best weights at the root. A step's checkpoint is
    /// written once: if it is the current one already, it stays as it is.
    ///
    /// # Errors
    /// If something cannot be written, or the disk has no space for it, which is looked at before anything is written; the
    /// checkpoint before stays the current one, and the save can be tried again.
    pub fn save(&mut self, trainer: &Trainer) -> Result<()> {
        let training = self.root.join(TRAINING);
        let name = generations::of(trainer);
        if self.current.as_ref().is_none_or(|current| current.checkpoint != name) {
            files::check_space(&training, "a checkpoint", space::of_save(trainer))?;
            files::sync(&training.join(METRICS))?;
            self.charts.save();
            let run = RunState {
                root_checksums: self.root_checksums.clone(),
                published: self.best_of(trainer),
                metrics_bytes: self.metrics_bytes,
                seconds: self.seconds(),
            };
            let state = checkpoint::write(&training.join(&name), trainer, run)?;
            generations::set_current(&training, &name)?;
            self.current = state.weights();
            self.set_best(state.published);
        }
        self.saved = Instant::now();
        self.publish(trainer)?;
        self.remove_old()
    }

    /// The weights that belong at the root; `None` if they are those of a checkpoint of `trainer` that is yet to be written.
    fn best_of(&self, trainer: &Trainer) -> Option<SavedWeights> {
        let name = generations::of_best(trainer);
        if name == generations::of(trainer) {
            return None;
        }
        // Validated, but never saved: what lies at the root is as good as can be had.
        self.current.as_ref().filter(|current| current.checkpoint == name).or(self.best.as_ref()).cloned()
    }

    fn set_best(&mut self, best: SavedWeights) {
        self.is_published &= self.best.as_ref().is_some_and(|before| before.checksum == best.checksum);
        self.best = Some(best);
    }

    /// Makes the best weights, or the last ones while there is no best, those at the root.
    fn publish(&mut self, trainer: &Trainer) -> Result<()> {
        // Saved first, and validated then.
        if let Some(current) =
            self.current.clone().filter(|current| current.checkpoint == generations::of_best(trainer))
        {
            self.set_best(current);
        }
        if let Some(best) = self.best.as_ref().filter(|_| !self.is_published) {
            // A copy, not a link: who changes the file at the root must not change the checkpoint.
            let source = self.root.join(TRAINING).join(&best.checkpoint).join(WEIGHTS);
            files::replace_by_copy(&self.root.join(WEIGHTS), &source)?;
            self.is_published = true;
        }
        Ok(())
    }

    fn remove_old(&self) -> Result<()> {
        let kept: Vec<&str> = self.current.iter().chain(&self.best).map(|weights| &*weights.checkpoint).collect();
        generations::remove_all_but(&self.root.join(TRAINING), &kept)
    }
}
