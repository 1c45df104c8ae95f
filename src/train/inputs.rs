//! The inputs of a run: the token ids of its text, and its settings.

use std::path::Path;

use candle_core::{Result, bail};

use super::RunFolder;
use super::folder::TRAINING;
use crate::files;
use crate::text::{Corpus, TextProgress};

pub(super) const SETTINGS: &str = "settings.toml";
pub(super) const IDS: &str = "ids.safetensors";

impl RunFolder {
    /// The ids that the run is trained on, if they still exist; see [`Corpus::open`].
    ///
    /// # Errors
    /// If they are damaged.
    pub fn ids(&self, progress: &mut dyn FnMut(TextProgress)) -> Result<Option<Corpus>> {
        let path = self.root().join(TRAINING).join(IDS);
        path.exists().then(|| Corpus::open(&path, progress)).transpose()
    }

    /// Replaces ids that have been lost or damaged by those of `corpus`.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write_ids(&self, corpus: &Corpus) -> Result<()> {
        let path = self.root().join(TRAINING).join(IDS);
        let growing = files::sibling(&path);
        files::remove_file(&growing)?;
        corpus.save(&growing)?;
        files::rename_file(&growing, &path)?;
        corpus.forget_temporary();
        Ok(())
    }

    /// The settings of the last session of the run in `root`.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn settings(root: &Path) -> Result<String> {
        let path = root.join(TRAINING).join(SETTINGS);
        match String::from_utf8(files::read(&path)?) {
            Ok(settings) => Ok(settings),
            Err(error) => bail!("{}: {error}", path.display()),
        }
    }

    /// Replaces the settings, for later sessions.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write_settings(&self, settings: &str) -> Result<()> {
        files::replace_with(&self.root().join(TRAINING).join(SETTINGS), settings.as_bytes())
    }
}
