//! The folder of a new run, which grows beside its place.

use std::fs;
use std::path::Path;

use candle_core::{Result, bail};

use super::folder::TRAINING;
use super::inputs::{IDS, SETTINGS};
use super::{RunFolder, Trainer, checkpoint, lock, space};
use crate::errors::bare;
use crate::files;
use crate::text::Tokenizer;

impl RunFolder {
    /// Creates the folder `root`, and those around it, with a first checkpoint of `trainer`; it appears complete or not at all.
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
        files::create_folders(files::parent(root))?;
        let staging = files::staging_folder(root)?;
        let written = Self::write_new(&staging, tokenizer, trainer, settings).and_then(|folder| folder.move_to(root));
        if let Err(error) = &written {
            // Best effort: the error that counts is the one that is returned.
            let _ = files::remove_folder(&staging);
            if fs::symlink_metadata(root).is_ok() {
                bail!("{} already exists: it has come meanwhile", root.display());
            }
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
}
