//! From options to texts, tokenizer, corpus and sizes: all that a run starts from.

use std::path::{Path, PathBuf};

use anyhow::Result;
use candle_attention::model::{ModelConfig, load_weights};
use candle_attention::run::check_vocabulary;
use candle_attention::text::{Corpus, CorpusOptions, Document, Tokenizer, TokenizerChoice, Validation, prepare};
use candle_attention::train::{TrainOptions, Trainer};
use candle_core::Device;

use super::options::Options;
use super::text_progress::text_progress;
use super::{document, grouped};

/// The part of a text that is held out to validate on unless told otherwise.
const VALIDATION_FRACTION: f64 = 0.1;

/// All that a run starts from.
pub struct Prepared {
    tokenizer: Tokenizer,
    /// How the tokenizer was chosen, unless it came with `init`.
    pub choice: TokenizerChoice,
    pub corpus: Corpus,
    pub config: ModelConfig,
    /// The model folder to start from.
    init: Option<PathBuf>,
}

impl Prepared {
    /// Makes or opens the tokenizer and reads the texts, whose ids will be part of the run in `root`.
    pub fn new(options: &Options, root: &Path) -> Result<Self> {
        options.check_meaning()?;
        options.train_options().validate()?;
        if let Some(init) = &options.init {
            options.check_init()?;
            let config = options.init_config(init)?;
            let tokenizer = Tokenizer::from_file(init)?;
            check_vocabulary(init, &config, &tokenizer)?;
            let corpus = encode(&tokenizer, options, config.context_len, root)?;
            let init = Some(init.clone());
            return Ok(Self { tokenizer, choice: TokenizerChoice::Characters, corpus, config, init });
        }
        options.check_preset()?;
        // The sizes are checked before the text is read through, with the smallest vocabulary.
        let sizes = options.model_config(2, None);
        sizes.validate()?;
        let choice = options.tokenizer.as_deref().unwrap_or("char").parse()?;
        let (documents, validation) = texts(options)?;
        let in_run = corpus_options(sizes.context_len, root);
        let (tokenizer, corpus) = prepare(&documents, &validation, &choice, &in_run, &mut text_progress())?;
        // A tokenizer from a file may have an end of text that no text here ends with.
        let end_of_text_id = match tokenizer.end_of_text_id() {
            Some(id) if corpus.train.contains(id)? || corpus.validation.contains(id)? => Some(id),
            _ => None,
        };
        let config = options.model_config(tokenizer.vocab_size(), end_of_text_id);
        config.validate()?;
        Ok(Self { tokenizer, choice, corpus, config, init: None })
    }

    /// The trainer of a new run, and its tokenizer.
    pub fn trainer(self, options: &TrainOptions) -> Result<(Trainer, Tokenizer)> {
        let Self { tokenizer, corpus, config, init, .. } = self;
        let trainer = match init {
            Some(init) => {
                let weights = load_weights(&init.join("model.safetensors"), &config, &Device::Cpu)?;
                Trainer::from_weights(weights, &config, options, corpus, &Device::Cpu)?
            }
            None => Trainer::new(&config, options, corpus, &Device::Cpu)?,
        };
        Ok((trainer, tokenizer))
    }

    /// Sizes of model and data, for people.
    pub fn description(&self) -> String {
        describe(&self.config, &self.tokenizer, &self.corpus)
    }
}

/// The ids of the texts that the options name, by a tokenizer that is there already.
pub fn encode(tokenizer: &Tokenizer, options: &Options, context_len: usize, root: &Path) -> Result<Corpus> {
    let (documents, validation) = texts(options)?;
    let in_run = corpus_options(context_len, root);
    Ok(Corpus::new(tokenizer, &documents, &validation, &in_run, &mut text_progress())?)
}

fn corpus_options(context_len: usize, root: &Path) -> CorpusOptions {
    CorpusOptions { context_len, spill: Some(document::spill_beside(root)) }
}

/// The documents to train on, and what to validate on.
fn texts(options: &Options) -> Result<(Vec<Document>, Validation)> {
    if options.texts.is_empty() && options.validation.is_empty() && options.validation_fraction.is_none() {
        let (training, validation) = document::built_in();
        return Ok((vec![training], Validation::Documents(vec![validation])));
    }
    let documents = match options.texts.is_empty() {
        true => vec![document::built_in().0],
        false => document::open_all(&options.texts)?,
    };
    let validation = match options.validation.is_empty() {
        true => Validation::Fraction(options.validation_fraction.unwrap_or(VALIDATION_FRACTION)),
        false => Validation::Documents(document::open_all(&options.validation)?),
    };
    Ok((documents, validation))
}

/// Sizes of model and data, for people.
pub fn describe(config: &ModelConfig, tokenizer: &Tokenizer, corpus: &Corpus) -> String {
    format!(
        "{} parameters: {} layers, {} heads, {} channels, context {}; {} tokens to train on, {} to validate on, \
         vocabulary of {} ({})",
        grouped(config.parameter_count()),
        config.num_layers,
        config.num_heads,
        config.embed_dim,
        config.context_len,
        grouped(corpus.train.len()),
        grouped(corpus.validation.len()),
        grouped(config.vocab_size),
        tokenizer.kind_name(),
    )
}
