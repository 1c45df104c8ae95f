//! What the path of a model leads to.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::file_names::ADAPTER_CONFIG;
use super::{Result, bail, input};

/// A model on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModelPath {
    /// A folder in Hugging Face's layout.
    Folder(PathBuf),
    /// A GGUF file, which has the configuration and the tokenizer in it.
    Gguf(PathBuf),
    /// A folder of an adapter in PEFT's layout.
    Adapter(PathBuf),
}

impl ModelPath {
    /// Looks at what is there.
    ///
    /// # Errors
    /// If it is neither a folder nor a GGUF file.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let is_adapter = path.join(ADAPTER_CONFIG).exists();
            return Ok(if is_adapter { Self::Adapter(path.into()) } else { Self::Folder(path.into()) });
        }
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            return Ok(Self::Gguf(path.into()));
        }
        bail!("{}: expected the folder of a model or a .gguf file, got {}", path.display(), kind(path))
    }
}

/// The path of the model that an adapter changes: its `base_model_name_or_path`, as it is, from the adapter's folder or from
/// here.
///
/// # Errors
/// If there is no model of that name on disk, or it is an adapter too.
pub(crate) fn adapter_base(folder: &Path) -> Result<PathBuf> {
    const KEY: &str = "base_model_name_or_path";
    let path = input::inside(folder, ADAPTER_CONFIG)?;
    let json: Option<Value> = serde_json::from_slice(&input::read(&path, input::MAX_CONFIG_BYTES)?).ok();
    let Some(name) = json.as_ref().and_then(|json| json.get(KEY)?.as_str()).filter(|name| !name.is_empty()) else {
        bail!("{}: the adapter (LoRA) names no base model: expected the path of one as {KEY}", path.display())
    };
    let Some(base) = [folder.join(name), name.into()].into_iter().find(|base| base.exists()) else {
        bail!(
            "{}: the base model {name} of the adapter (LoRA) is not here: download it, and write the path of its folder as \
             {KEY}",
            path.display()
        )
    };
    match ModelPath::of(&base)? {
        ModelPath::Adapter(_) => {
            bail!("{}: expected a whole model as the base of an adapter, got another adapter", base.display())
        }
        _ => Ok(base),
    }
}

/// The folder in Hugging Face's layout that a model is in, if it is in one: of an adapter, its base's.
///
/// # Errors
/// Those of [`ModelPath::of`] and [`adapter_base`].
pub(crate) fn folder_of(path: &Path) -> Result<Option<PathBuf>> {
    Ok(match ModelPath::of(path)? {
        ModelPath::Folder(folder) => Some(folder),
        ModelPath::Gguf(_) => None,
        ModelPath::Adapter(folder) => folder_of(&adapter_base(&folder)?)?,
    })
}

fn kind(path: &Path) -> &'static str {
    if path.exists() { "another file" } else { "nothing" }
}
