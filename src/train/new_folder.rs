//! Creating the folder of a new run, which is built beside its place.

use std::io;
use std::path::Path;

use candle_core::{Error, Result, bail};

use super::folder::TRAINING;
use super::inputs::{IDS, SETTINGS};
use super::{RunFolder, Trainer, checkpoint, lock, space};
use crate::errors::bare;
use crate::files::{self, Staging};
use crate::text::Tokenizer;

impl RunFolder {
    /// Creates the folder `root`, and its missing parents, with a first checkpoint of `trainer`; it appears complete or
    /// not at all.
    ///
    /// `settings` is kept unchanged for later sessions; see [`RunFolder::settings`].
    ///
    /// # Errors
    /// If `root` exists, which is an [`Error::Io`] of [`io::ErrorKind::AlreadyExists`], or if it cannot be written, or
    /// the disk has no room for everything that the run will keep.
    pub fn create(root: &Path, tokenizer: &Tokenizer, trainer: &Trainer, settings: &str) -> Result<Self> {
        if files::is_there(root) {
            return Err(exists(root));
        }
        lock::remove_dead_staging_folders(root);
        files::check_space(files::parent(root), "the run", space::of_run(trainer))?;
        files::create_folders(files::parent(root))?;
        let (staging, written) = loop {
            let staging = Staging::create(root)?;
            let written = Self::write_new(staging.path(), tokenizer, trainer, settings);
            // Otherwise another process took the folder for abandoned before it was locked; see `lock::take`.
            if written.is_ok() || files::is_there(staging.path()) {
                break (staging, written);
            }
        };
        match written.and_then(|folder| folder.move_to(&staging, root)) {
            Ok(folder) => {
                trainer.corpus().forget_temporary();
                Ok(folder)
            }
            // Renaming failed: another process has created a run there in the meantime.
            Err(_) if files::is_there(staging.path()) && files::is_there(root) => Err(exists(root)),
            Err(error) => {
                if !files::is_there(staging.path()) {
                    // Renamed, but not made permanent. Best effort: the first error is the one to report.
                    let _ = files::remove_folder(root);
                }
                bail!("cannot create {}: {}", root.display(), bare(&error))
            }
        }
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
}

/// Removes the incomplete folders of runs that this process is creating, for a process that is about to exit at once:
/// from here on none can be completed.
pub fn remove_unfinished_runs() {
    files::remove_all_staging();
}

fn exists(root: &Path) -> Error {
    Error::Io(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} already exists", root.display())))
}
