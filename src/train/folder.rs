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

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{Device, Error, Result, bail};
use serde::Serialize;

use super::checkpoint::{self, Checkpoint, WEIGHTS, remove_folder};
use super::{Best, Trainer};
use crate::errors::bare;
use crate::metrics::{Charts, PLOT};
use crate::model::ModelConfig;
use crate::text::{Corpus, Progress, Tokenizer};
use crate::{files, input};

const TRAINING: &str = "training";
const CURRENT: &str = "current";
const LOCK: &str = "lock";
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
    /// Held as long as the folder is open: one process at a time.
    _lock: File,
}

impl RunFolder {
    /// Creates the folder `root` with a first checkpoint of `trainer`; it appears complete or not at all.
    ///
    /// `settings` is kept as it is for whoever resumes; see [`RunFolder::settings`].
    ///
    /// # Errors
    /// If `root` exists already, or cannot be written.
    pub fn create(root: &Path, tokenizer: &Tokenizer, trainer: &Trainer, settings: &str) -> Result<Self> {
        if root.exists() {
            bail!("{} already exists", root.display());
        }
        let staging = files::staging_folder(root)?;
        let written = Self::write_new(&staging, tokenizer, trainer, settings).and_then(|()| {
            // Fails if somebody else has put a run there meanwhile.
            fs::rename(&staging, root)?;
            Ok(files::sync_parent(root)?)
        });
        if let Err(error) = written {
            // Best effort: the error that counts is the one that is returned.
            let _ = remove_folder(&staging);
            bail!("cannot create {}: {}", root.display(), bare(&error));
        }
        trainer.corpus().forget_temporary();
        Self::at(root, 0, 0.0)
    }

    fn write_new(root: &Path, tokenizer: &Tokenizer, trainer: &Trainer, settings: &str) -> Result<()> {
        let config = trainer.config();
        fs::create_dir_all(root.join(TRAINING))?;
        files::replace_with(&root.join("config.json"), config.to_json()?.as_bytes())?;
        files::replace_with(&root.join("generation_config.json"), config.generation_json()?.as_bytes())?;
        tokenizer.save(root, config.context_len)?;
        files::replace_with(&root.join(TRAINING).join(SETTINGS), settings.as_bytes())?;
        files::replace_with(&root.join(TRAINING).join(METRICS), b"")?;
        trainer.corpus().save(&root.join(TRAINING).join(IDS))?;
        Self::at(root, 0, 0.0)?.save(trainer)
    }

    /// Whether `root` holds a run that can be resumed.
    pub fn exists(root: &Path) -> bool {
        root.join(TRAINING).join(CURRENT).exists()
    }

    /// Opens the folder of an earlier run at its last checkpoint. Nothing is changed before [`RunFolder::begin`].
    ///
    /// # Errors
    /// If there is no run, its checkpoint is broken, or another process is training in it.
    pub fn resume(root: &Path, device: &Device) -> Result<(Self, ModelConfig, Checkpoint)> {
        let training = root.join(TRAINING);
        // Of unknown origin: what is read and written here lies here.
        input::refuse_links(&training)?;
        let folder = Self::at(root, 0, 0.0)?;
        let config = ModelConfig::open(root)?;
        let checkpoint = checkpoint::load(root, &training.join(current(&training)?), &config, device)?;
        let seconds_before = checkpoint.state.seconds;
        // What a crash has left of the metrics may be less than the checkpoint knew.
        let metrics_bytes = folder.metrics.metadata()?.len().min(checkpoint.state.metrics_bytes);
        Ok((Self { metrics_bytes, seconds_before, ..folder }, config, checkpoint))
    }

    /// Makes the folder ready to go on at the checkpoint that `trainer` stands at: cuts off metrics that came later, and
    /// puts the best weights back at the root if they are not there.
    ///
    /// # Errors
    /// If the best weights are lost, or something cannot be written.
    pub fn begin(&mut self, trainer: &Trainer) -> Result<()> {
        self.metrics.set_len(self.metrics_bytes)?;
        let training = self.root.join(TRAINING);
        self.charts = Charts::begin(&training, &training.join(METRICS), self.seconds());
        self.publish(trainer.step(), trainer.best())
    }

    fn at(root: &Path, metrics_bytes: u64, seconds_before: f64) -> Result<Self> {
        let training = root.join(TRAINING);
        let lock = File::create(training.join(LOCK))?;
        if !is_locked(&lock) {
            bail!("another process is training in {}", root.display());
        }
        let metrics = OpenOptions::new().append(true).create(true).open(training.join(METRICS))?;
        let (root, begun) = (root.to_path_buf(), Instant::now());
        let charts = Charts::default();
        Ok(Self { root, metrics, metrics_bytes, charts, seconds_before, begun, _lock: lock })
    }

    /// The ids that the run was trained on, if they are still there; see [`Corpus::open`].
    ///
    /// # Errors
    /// If they are damaged.
    pub fn ids(&self, progress: &mut dyn FnMut(Progress)) -> Result<Option<Corpus>> {
        let path = self.root.join(TRAINING).join(IDS);
        path.exists().then(|| Corpus::open(&path, progress)).transpose()
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
        self.metrics.write_all(&line)?;
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
    /// If something cannot be written; the checkpoint before stays the current one.
    pub fn save(&mut self, trainer: &Trainer) -> Result<()> {
        self.metrics.sync_all()?;
        self.charts.save();
        let training = self.root.join(TRAINING);
        let name = generation(trainer.step());
        let is_current = current(&training).is_ok_and(|current| current == name);
        if !is_current {
            checkpoint::write(&self.root, &training.join(&name), trainer, self.metrics_bytes, self.seconds())?;
            files::replace_with(&training.join(CURRENT), format!("{name}\n").as_bytes())?;
        }
        self.publish(trainer.step(), trainer.best())?;
        self.remove_all_but(trainer.step(), trainer.best())
    }

    /// Makes the best weights, or the last ones while there is no best, those at the root.
    fn publish(&self, step: u64, best: Option<Best>) -> Result<()> {
        let training = self.root.join(TRAINING);
        let target = self.root.join(WEIGHTS);
        let mut source = training.join(generation(best.map_or(step, |best| best.step)));
        if !source.exists() {
            // Validated, but never saved: what lies at the root is as good as can be had.
            if target.exists() {
                return Ok(());
            }
            source = training.join(generation(step));
        }
        let expected = checkpoint::read_state(&source)?.checksums.remove(WEIGHTS);
        let is_right = |path: &Path| checkpoint::checksum(path).is_ok_and(|sum| Some(sum) == expected);
        if is_right(&target) {
            return Ok(());
        }
        files::replace(&target, |temporary| {
            fs::copy(source.join(WEIGHTS), temporary)?;
            match is_right(temporary) {
                true => Ok(()),
                false => {
                    bail!("broken checkpoint: {} is not the file that was written", source.join(WEIGHTS).display())
                }
            }
        })
    }

    fn remove_all_but(&self, step: u64, best: Option<Best>) -> Result<()> {
        let kept = [Some(generation(step)), best.map(|best| generation(best.step))];
        for entry in fs::read_dir(self.root.join(TRAINING))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("step-") && !kept.contains(&Some(name)) {
                remove_folder(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Takes the lock of a folder, unless another process keeps it. A process that this one has just started holds what is open
/// here for the moment until it becomes another program.
fn is_locked(lock: &File) -> bool {
    const TRIES: usize = 20;
    (0..TRIES).any(|_| {
        lock.try_lock().is_ok() || {
            std::thread::sleep(Duration::from_millis(10));
            false
        }
    })
}

/// The name of the checkpoint folder of a step.
fn generation(step: u64) -> String {
    format!("step-{step:08}")
}

/// The name in the pointer file: that of a checkpoint folder, never a path that leads elsewhere.
fn current(training: &Path) -> Result<String> {
    let path = training.join(CURRENT);
    let name = String::from_utf8_lossy(&files::read(&path)?).trim().to_string();
    match name.strip_prefix("step-").and_then(|digits| digits.parse::<u64>().ok()) {
        Some(step) if generation(step) == name => Ok(name),
        _ => bail!("broken checkpoint: {} names no checkpoint", path.display()),
    }
}
