//! A trained model and its tokenizer, opened from a Hugging Face model folder.

use std::path::Path;

use candle_core::{DType, Device};

use crate::host::{Result, bail};
use crate::model::{CausalLm, ModelConfig, load_weights};
use crate::nn::Parameters;
use crate::text::Tokenizer;

/// A model folder opened for evaluation or generation: its weights carry no graph.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// The model, in `f32`.
    pub model: CausalLm,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

impl Pipeline {
    /// Opens a folder with `config.json`, `model.safetensors` and `tokenizer.json`; `generation_config.json` is
    /// optional.
    ///
    /// # Errors
    /// If the folder or a file is missing or malformed, links out of the folder or needs more memory than there is, or
    /// the files do not fit together.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let (config, tokenizer) = Self::open_config(path)?;
        let weights = load_weights(path, &config, device)?;
        let model = CausalLm::new(&config, Parameters::restored(weights)?.frozen(DType::F32, device))?;
        Ok(Self { model, tokenizer })
    }

    /// The configuration and the tokenizer of a model folder, which agree on the token that ends a text: the model's own, if
    /// it names one, else the tokenizer's.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the tokenizer has more tokens than the model.
    pub fn open_config(path: &Path) -> Result<(ModelConfig, Tokenizer)> {
        let mut config = ModelConfig::open(path)?;
        let tokenizer = Tokenizer::open(path)?;
        let (got, max) = (tokenizer.vocab_size(), config.vocab_size);
        if got > max {
            bail!("{}: expected a tokenizer of at most {max} tokens, as config.json has, got {got}", path.display());
        }
        config.end_of_text_id = config.end_of_text_id.or(tokenizer.end_of_text_id());
        let tokenizer = tokenizer.with_end_of_text(config.end_of_text_id);
        Ok((config, tokenizer))
    }
}
