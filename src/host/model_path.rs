//! What the path of a model leads to.

use std::path::{Path, PathBuf};

use super::{Result, bail};

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

/// The configuration of an adapter.
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";

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

fn kind(path: &Path) -> &'static str {
    if path.exists() { "another file" } else { "nothing" }
}
