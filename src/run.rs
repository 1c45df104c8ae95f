//! A trained model and its tokenizer, opened from a Hugging Face model folder.

use std::path::Path;

use candle_core::{DType, Device, Result, bail};

use crate::model::{CausalLm, ModelConfig, load_weights};
use crate::nn::Parameters;
use crate::text::Tokenizer;

/// A model folder opened for evaluation or generation: its weights carry no graph.
#[derive(Clone, Debug)]
pub struct Run {
    /// The model, in `f32`.
    pub model: CausalLm,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

impl Run {
    /// Opens a folder with `config.json`, `model.safetensors` and `tokenizer.json`; `generation_config.json` is
    /// optional.
    ///
    /// # Errors
    /// If the folder or a file is missing or malformed, links out of the folder or needs more memory than there is, or
    /// the files do not fit together.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        if !folder.is_dir() {
            bail!("{} is not a folder", folder.display());
        }
        let config = ModelConfig::open(folder)?;
        let tokenizer = Tokenizer::from_file(folder)?;
        check_vocabulary(folder, &config, &tokenizer)?;
        let weights = load_weights(&folder.join("model.safetensors"), &config, device)?;
        let parameters = Parameters::restored(weights)?;
        let model = CausalLm::new(&config, parameters.frozen(DType::F32, device))?;
        Ok(Self { model, tokenizer })
    }
}

/// Refuses a tokenizer with ids beyond the model's vocabulary.
///
/// # Errors
/// Naming both sizes and the folder.
pub fn check_vocabulary(folder: &Path, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<()> {
    let (got, most) = (tokenizer.vocab_size(), config.vocab_size);
    if got > most {
        bail!("{}: expected a tokenizer of at most {most} tokens, as config.json has, got {got}", folder.display());
    }
    Ok(())
}
