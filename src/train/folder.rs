//! The folder of a run: a Hugging Face model folder, with what only training needs in `training/`.
//!
//! ```text
//! config.json, generation_config.json       the model
//! tokenizer.json, tokenizer_config.json     the tokenizer
//! model.safetensors                         the best weights so far
//! training/current                          names the last checkpoint; replacing this file commits one
//! training/step-00000250/                   a checkpoint: weights, moments, state, checksums
//! training/metrics.jsonl                    one JSON object a step or validation
//! training/ids.safetensors                  the ids of the text
//! training/loss.svg                         a plot of the losses
//! training/tensorboard/                     the metrics as TensorBoard reads them
//! training/lock                             held while a process trains here
//! training/settings.toml                    the settings the run was started with
//! ```
//!
//! The last checkpoint and that of the best model are kept, older ones removed.
//!
//! A run is what `training/current` names, so a crash is harmless at each of the moments of a save, in their order:
//! 1. Metrics synced, checkpoint growing in `step-N.tmp`: the current checkpoint is untouched, its count of the bytes of
//!    the metrics cuts off what came after it, and the next start removes the rest.
//! 2. Checkpoint complete, synced and renamed, then the folder synced: the pointer names the one before, which is there.
//! 3. Pointer replaced: the new checkpoint counts, and all it names lies on disk. The best weights at the root may be
//!    older: the next start compares them with their checksum and copies them again.
//! 4. Best weights at the root replaced, older checkpoints removed one by one: nothing names these.
//!
//! A new run grows in a folder beside its place and is renamed there with its first checkpoint.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{Device, Error, Result, bail};
use serde::Serialize;

use super::Trainer;
use super::checkpoint::{self, Checkpoint, WEIGHTS};
use super::{generations, lock, space};
use crate::errors::bare;
use crate::metrics::{Charts, PLOT};
use crate::model::ModelConfig;
use crate::text::{Corpus, Progress, Tokenizer};
use crate::{files, input};

pub(super) const TRAINING: &str = "training";
const METRICS: &str = "metrics.jsonl";
const SETTINGS: &str = "settings.toml";
const IDS: &str = "ids.safetensors";

/// The folder of a run in training.
pub struct RunFolder {
    root: PathBuf,
    metrics: File,
    metrics_bytes: u64,
    charts: Charts,
    seconds_before: f64,
    begun: Instant,
    /// Of what lies at the root beside the weights.
    root_checksums: BTreeMap<String, String>,
    /// The checkpoint whose weights are known to be those at the root.
    published: Option<String>,
    /// Held as long as the folder is open: one process at a time.
    _lock: File,
}

impl RunFolder {
    /// Creates the folder `root` with a first checkpoint of `trainer`; it appears complete or not at all.
    ///
    /// `settings` is kept as it is for whoever resumes; see [`RunFolder::settings`].
    ///
    /// # Errors
    /// If `root` exists already or cannot be written, or the disk has no space for all that the run will keep.
    pub fn create(root: &Path, tokenizer: &Tokenizer, trainer: &Trainer, settings: &str) -> Result<Self> {
        if fs::symlink_metadata(root).is_ok() {
            bail!("{} already exists", root.display());
        }
        lock::remove_dead_staging_folders(root);
        files::check_space(files::parent(root), "the run", space::of_run(trainer))?;
        let staging = files::staging_folder(root)?;
        let written = Self::write_new(&staging, tokenizer, trainer, settings).and_then(|folder| folder.move_to(root));
        if let Err(error) = &written {
            // Best effort: the error that counts is the one that is returned.
            let _ = files::remove_folder(&staging);
            bail!("cannot create {}: {}", root.display(), bare(error));
        }
        trainer.corpus().forget_temporary();
        written
    }

    fn write_new(root: &Path, tokenizer: &Tokenizer, trainer: &Trainer, settings: &str) -> Result<Self> {
        let (config, training) = (trainer.config(), root.join(TRAINING));
        files::create_folder(&training)?;
        let mut folder = Self::open(root)?;
        files::write_new(&root.join("config.json"), config.to_json()?.as_bytes())?;
        files::write_new(&root.join("generation_config.json"), config.generation_json()?.as_bytes())?;
        tokenizer.save(root, config.context_len)?;
        trainer.corpus().save(&training.join(IDS))?;
        files::write_new(&training.join(SETTINGS), settings.as_bytes())?;
        folder.root_checksums = checkpoint::root_checksums(root)?;
        folder.save(trainer)?;
        Ok(folder)
    }

    fn move_to(self, root: &Path) -> Result<Self> {
        if cfg!(not(windows)) {
            // Fails if somebody else has put a run there meanwhile.
            files::rename_folder(&self.root, root)?;
            return Ok(Self { root: root.to_path_buf(), ..self });
        }
        // Windows moves no folder with an open file in it.
        let (staging, metrics_bytes) = (self.root.clone(), self.metrics_bytes);
        let (root_checksums, published) = (self.root_checksums.clone(), self.published.clone());
        drop(self);
        files::rename_folder(&staging, root)?;
        Ok(Self { metrics_bytes, root_checksums, published, ..Self::open(root)? })
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
        folder.metrics_bytes = checkpoint.state.metrics_bytes;
        if folder.metrics.metadata()?.len() < folder.metrics_bytes {
            // Somebody has cut it: whole lines stay.
            let metrics = files::read(&training.join(METRICS))?;
            folder.metrics_bytes = metrics.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at as u64 + 1);
        }
        Ok((folder, config, checkpoint))
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
        let (best, target) = (generations::of_best(trainer), self.root.join(WEIGHTS));
        let source = training.join(&best);
        if source.exists() {
            input::inside(&training, &best)?;
            if checkpoint::are_its_weights(&source, &target)? {
                self.published = Some(best);
            } else if !checkpoint::are_its_weights(&source, &source.join(WEIGHTS))? {
                bail!("broken checkpoint: {} is not the file that was written", source.join(WEIGHTS).display());
            }
        }
        self.charts = Charts::begin(&training, &training.join(METRICS), self.seconds());
        self.publish(trainer)?;
        files::remove_file(&files::sibling(&target))?;
        files::remove_file(&files::sibling(&training.join(SETTINGS)))?;
        files::remove_file(&files::sibling(&training.join(IDS)))?;
        self.remove_old(trainer)
    }

    /// Opens the folder that training writes in, and holds its lock.
    fn open(root: &Path) -> Result<Self> {
        let training = root.join(TRAINING);
        match fs::symlink_metadata(&training) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => bail!("expected a folder, got a link or a file: {}", training.display()),
            Err(error) => bail!("cannot read {}: {error}", training.display()),
        }
        let lock = lock::take(root, &training)?;
        Ok(Self {
            root: root.to_path_buf(),
            metrics: files::open_in_place(&training.join(METRICS))?,
            metrics_bytes: 0,
            charts: Charts::default(),
            seconds_before: 0.0,
            begun: Instant::now(),
            root_checksums: BTreeMap::new(),
            published: None,
            _lock: lock,
        })
    }

    /// The ids that the run was trained on, if they are still there; see [`Corpus::open`].
    ///
    /// # Errors
    /// If they are damaged.
    pub fn ids(&self, progress: &mut dyn FnMut(Progress)) -> Result<Option<Corpus>> {
        let path = self.root.join(TRAINING).join(IDS);
        path.exists().then(|| Corpus::open(&path, progress)).transpose()
    }

    /// Replaces the ids, which may have been lost or damaged, by those of `corpus`.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write_ids(&self, corpus: &Corpus) -> Result<()> {
        let path = self.root.join(TRAINING).join(IDS);
        let growing = files::sibling(&path);
        files::remove_file(&growing)?;
        corpus.save(&growing)?;
        files::rename_file(&growing, &path)?;
        corpus.forget_temporary();
        Ok(())
    }

    /// The settings that the run in `root` was started with.
    ///
    /// # Errors
    /// If there are none.
    pub fn settings(root: &Path) -> Result<String> {
        let path = root.join(TRAINING).join(SETTINGS);
        match String::from_utf8(files::read(&path)?) {
            Ok(settings) => Ok(settings),
            Err(error) => bail!("{}: {error}", path.display()),
        }
    }

    /// Replaces the settings, for whoever resumes next.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write_settings(&self, settings: &str) -> Result<()> {
        files::replace_with(&self.root.join(TRAINING).join(SETTINGS), settings.as_bytes())
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

    /// Writes a checkpoint, makes it the current one, and publishes the best weights at the root. A step's checkpoint is
    /// written once: if it is the current one already, it stays as it is.
    ///
    /// # Errors
    /// If something cannot be written, or the disk has no space for it, which is looked at before anything is written; the
    /// checkpoint before stays the current one, and the save can be tried again.
    pub fn save(&mut self, trainer: &Trainer) -> Result<()> {
        let training = self.root.join(TRAINING);
        let name = generations::of(trainer);
        let is_current = generations::current(&training).is_ok_and(|current| current == name);
        if !is_current {
            files::check_space(&training, "a checkpoint", space::of_save(trainer))?;
            files::sync(&training.join(METRICS))?;
            self.charts.save();
            let checksums = self.root_checksums.clone();
            checkpoint::write(&training.join(&name), trainer, checksums, self.metrics_bytes, self.seconds())?;
            generations::set_current(&training, &name)?;
        }
        self.publish(trainer)?;
        self.remove_old(trainer)
    }

    /// Makes the best weights, or the last ones while there is no best, those at the root.
    fn publish(&mut self, trainer: &Trainer) -> Result<()> {
        let training = self.root.join(TRAINING);
        let target = self.root.join(WEIGHTS);
        let mut name = generations::of_best(trainer);
        if self.published.as_ref() == Some(&name) {
            return Ok(());
        }
        if !training.join(&name).exists() {
            // Validated, but never saved: what lies at the root is as good as can be had.
            if target.exists() {
                return Ok(());
            }
            name = generations::of(trainer);
        }
        // A copy, not a link: who changes the file at the root must not change the checkpoint.
        files::replace_by_copy(&target, &training.join(&name).join(WEIGHTS))?;
        self.published = Some(name);
        Ok(())
    }

    fn remove_old(&self, trainer: &Trainer) -> Result<()> {
        let kept = [generations::of(trainer), generations::of_best(trainer)];
        generations::remove_all_but(&self.root.join(TRAINING), &kept)
    }
}
