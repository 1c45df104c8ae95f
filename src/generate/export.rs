//! A model and its tokenizer in the forms in which other programs take them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::Tensor;
use candle_core::quantized::gguf_file::Value;

use crate::host::file_names::WEIGHTS;
use crate::host::{Error, Result, bail, disk};
use crate::model::{GgufType, ModelConfig, base_files, save_gguf, save_weights};
use crate::text::{GgufTokens, Tokenizer};

/// Writes a model, given its weights by their names in the model, and its tokenizer to the new file `path`. Returns what a
/// user should know about the file, if anything.
///
/// # Errors
/// Where there is something, if the format has no form for the model or its tokenizer, or if the file
/// cannot be written.
pub fn export_gguf(
    path: &Path,
    (config, tokenizer): (&ModelConfig, &Tokenizer),
    weights: &BTreeMap<String, Tensor>,
    kind: GgufType,
) -> Result<Vec<String>> {
    if fs::symlink_metadata(path).is_ok() {
        bail!("{} exists: choose another name, or remove it first", path.display());
    }
    let (mut metadata, mut notes) = tokenizer.to_gguf(&GgufTokens {
        vocab_size: config.vocab_size,
        begin_of_text: config.begin_of_text_id,
        end_of_text: config.end_ids().collect(),
    })?;
    if let Some(name) = path.file_stem() {
        metadata.push(("general.name".into(), Value::String(name.to_string_lossy().into_owned())));
    }
    disk::create_parents(path)?;
    notes.extend(save_gguf(path, config, weights, metadata, kind)?);
    Ok(notes)
}

/// Writes the model that was opened from `source`, given its weights by their names in the model, and its tokenizer to the
/// new folder `root`, in Hugging Face's layout, with what stands beside them there. The weights come last: a folder that has
/// them is complete.
///
/// # Errors
/// [`Error::Exists`] where there is something, and if a file cannot be written.
pub fn export_folder(
    root: &Path,
    source: &Path,
    (config, tokenizer): (&ModelConfig, &Tokenizer),
    weights: &BTreeMap<String, Tensor>,
) -> Result<()> {
    disk::create_parents(root)?;
    let is_empty = || fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_none());
    if !disk::create_folder(root)? && !is_empty() {
        return Err(Error::Exists(root.to_path_buf()));
    }
    config.save(root)?;
    tokenizer.save(root, config.context_len)?;
    base_files::keep(source, root)?;
    save_weights(&root.join(WEIGHTS), config, weights)
}
