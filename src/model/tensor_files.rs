//! The weights of a folder: one safetensors file, or several with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::tensor::TensorInfo;
use serde::Deserialize;

use super::tensor_file::TensorFile;
use crate::host::file_names::{WEIGHTS, WEIGHTS_INDEX as INDEX};
use crate::host::{Error, Result, bail, input};

/// The safetensors files that a model's weights are in, with their headers read.
pub(super) struct TensorFiles {
    /// The file, or the index.
    path: PathBuf,
    files: Vec<TensorFile>,
    /// For each tensor, which file it is in.
    places: BTreeMap<String, usize>,
}

impl TensorFiles {
    /// Those of a folder.
    ///
    /// # Errors
    /// If there are none, or a file that the index names is missing, outside of the folder or malformed.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let exists = |name: &str| fs::symlink_metadata(folder.join(name)).is_ok();
        if !exists(WEIGHTS) && exists(INDEX) {
            return Self::indexed(folder);
        }
        if exists(WEIGHTS) {
            return Self::open(&folder.join(WEIGHTS));
        }
        let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
        if let Some(pickle) = pickles.into_iter().find(|name| exists(name)) {
            bail!(
                "{}: expected {WEIGHTS}, got only {pickle}, a format that can run code; convert it with transformers: \
                 AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)",
                folder.display()
            );
        }
        bail!("{}: expected {WEIGHTS} or {INDEX}, got neither", folder.display())
    }

    /// A single file.
    ///
    /// # Errors
    /// If it is missing, leads out of its folder or is malformed.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let (folder, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        Self::new(path, vec![TensorFile::open(&input::inside(folder, name)?)?])
    }

    fn indexed(folder: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let path = folder.join(INDEX);
        let json = input::read(&input::inside(folder, INDEX)?, input::MAX_CONFIG_BYTES)?;
        let index: Index =
            serde_json::from_slice(&json).map_err(|error| Error::Input(format!("{}: {error}", path.display())))?;
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        let mut files = vec![];
        for name in names {
            if Path::new(name).file_name() != Some(name.as_ref()) {
                bail!("{}: expected the names of files in this folder, got {name}", path.display());
            }
            if fs::symlink_metadata(folder.join(name)).is_err() {
                bail!("{}: {name} is missing: a shard that {INDEX} names", folder.display());
            }
            files.push(TensorFile::open(&input::inside(folder, name)?)?);
        }
        let files = Self::new(&path, files)?;
        match index.weight_map.keys().find(|name| !files.places.contains_key(*name)) {
            Some(name) => bail!("{}: {name} is in none of the shards", path.display()),
            None => Ok(files),
        }
    }

    fn new(path: &Path, files: Vec<TensorFile>) -> Result<Self> {
        let mut places = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.tensors().into_keys() {
                if let Some(name) = places.insert(name.clone(), i).map(|_| name) {
                    bail!("{}: {name} is in two shards", path.display());
                }
            }
        }
        Ok(Self { path: path.to_path_buf(), files, places })
    }

    /// The file, or the index.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The dtype and shape of each tensor, by name.
    pub(super) fn tensors(&self) -> BTreeMap<String, TensorInfo> {
        self.files.iter().flat_map(TensorFile::tensors).collect()
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// Those of [`TensorFile::read`].
    pub(super) fn read(&mut self, name: &str, device: &Device) -> Result<Tensor> {
        match self.places.get(name) {
            Some(&file) => self.files[file].read(name, device),
            None => bail!("{}: {name} is missing", self.path.display()),
        }
    }
}
