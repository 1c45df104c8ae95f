//! The configuration of a model on disk: Hugging Face's `config.json` and `generation_config.json`, or a GGUF file.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::{ModelConfig, gguf, json};
use crate::host::file_names::{CONFIG, GENERATION_CONFIG};
use crate::host::{ModelPath, Result, adapter_base, disk, input};

impl ModelConfig {
    /// Reads the `config.json` of a model folder and, where there is one, the `eos_token_id` of its
    /// `generation_config.json`, which then replaces its own.
    ///
    /// # Errors
    /// If there is no `config.json`, `generation_config.json` is malformed, and those of [`ModelConfig::from_json`].
    pub fn open(path: &Path) -> Result<Self> {
        match ModelPath::of(path)? {
            ModelPath::Folder(folder) => Self::open_folder(&folder),
            ModelPath::Gguf(file) => gguf::open_config(&file),
            ModelPath::Adapter(folder) => Self::open(&adapter_base(&folder)?),
        }
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let path = input::inside(folder, CONFIG)?;
        let config = in_file(&path, Self::from_json(&input::read(&path, input::MAX_CONFIG_BYTES)?))?;
        if fs::symlink_metadata(folder.join(GENERATION_CONFIG)).is_err_and(|error| error.kind() == ErrorKind::NotFound)
        {
            return Ok(config);
        }
        let path = input::inside(folder, GENERATION_CONFIG)?;
        in_file(&path, json::with_generation(config, &input::read(&path, input::MAX_CONFIG_BYTES)?))
    }

    /// Parses the text of a `config.json`.
    ///
    /// # Errors
    /// If it is not JSON, its `model_type` is not an [`Architecture`](super::Architecture), or it asks for something this crate does not
    /// compute.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        json::parse(json)
    }

    /// The text of this model's `config.json`.
    ///
    /// # Errors
    /// If a number cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        json::print(self)
    }

    /// The text of this model's `generation_config.json`.
    ///
    /// # Errors
    /// None in practice: ids can always be written as JSON.
    pub fn generation_json(&self) -> Result<String> {
        json::print_generation(self)
    }

    /// Writes `config.json` and `generation_config.json` into a folder. Each file appears complete or not at all.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        disk::replace_with(&folder.join(CONFIG), self.to_json()?.as_bytes())?;
        disk::replace_with(&folder.join(GENERATION_CONFIG), self.generation_json()?.as_bytes())
    }
}

fn in_file<T>(path: &Path, result: Result<T>) -> Result<T> {
    result.map_err(|error| error.at(path.display()))
}
