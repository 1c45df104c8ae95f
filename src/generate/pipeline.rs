//! A trained model and its tokenizer, opened from a Hugging Face model folder.

use std::path::Path;

use candle_core::{DType, Device};

use crate::host::Result;
use crate::model::{CausalLm, ModelConfig, load_weights};
use crate::nn::Parameters;
use crate::text::Tokenizer;

/// A model folder opened for evaluation or generation: its weights carry no graph.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Pipeline {
    /// The model, in `f32`.
    pub model: CausalLm,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

impl Pipeline {
    /// A model and its tokenizer from elsewhere.
    pub fn new(model: CausalLm, tokenizer: Tokenizer) -> Self {
        Self { model, tokenizer }
    }

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
        Ok(Self::new(model, tokenizer))
    }

    /// The configuration and the tokenizer of a model folder, which agree on the token that ends a text: the model's own, if
    /// it names one, else the tokenizer's.
    ///
    /// # Errors
    /// If a file is missing or malformed, or what the tokenizer puts around any text is beyond the model's tokens.
    pub fn open_config(path: &Path) -> Result<(ModelConfig, Tokenizer)> {
        let mut config = ModelConfig::open(path)?;
        let rows = config.vocab_size;
        let tokenizer = Tokenizer::open(path)?.with_rows(rows).map_err(|error| error.at(path.display()))?;
        let known = tokenizer.end_of_text_id().filter(|id| (*id as usize) < rows);
        config.end_of_text_id = config.end_of_text_id.or(known);
        let tokenizer = tokenizer.with_end_of_text(config.end_of_text_id);
        Ok((config, tokenizer))
    }

    /// The ids of a prompt, never none: those of [`Tokenizer::encode_prompt`]. An empty prompt is what the tokenizer puts in
    /// front of a text or, if that is nothing, the model's beginning-of-text token; its end-of-text token if it has none;
    /// else a line break; else id 0.
    ///
    /// # Errors
    /// If the tokenizer cannot encode it.
    pub fn prompt_ids(&self, prompt: &[u8], accept_unknown: bool) -> Result<Vec<u32>> {
        let Self { model, tokenizer } = self;
        if !prompt.is_empty() {
            return tokenizer.encode_prompt(prompt, accept_unknown).map_err(|error| error.at("the prompt"));
        }
        let front = tokenizer.template().0;
        if !front.is_empty() {
            return Ok(front.to_vec());
        }
        let line_break = || tokenizer.encode_plain("\n").ok().filter(|ids| !ids.is_empty());
        let config = model.config();
        let begin = config.begin_of_text_id.or(config.end_of_text_id);
        Ok(begin.map(|id| vec![id]).or_else(line_break).unwrap_or_else(|| vec![0]))
    }
}
