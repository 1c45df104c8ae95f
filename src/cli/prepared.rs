//! From options to texts, tokenizer, corpus and sizes.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use candle_attention::model::{ModelConfig, load_weights};
use candle_attention::run::check_vocabulary;
use candle_attention::text::{Corpus, CorpusOptions, Document, Spill, Tokenizer, TokenizerChoice, Validation, prepare};
use candle_attention::train::{Schedule, TrainOptions, Trainer};
use candle_core::Device;

use super::automatic::{TextSize, VALIDATION_FRACTION};
use super::options::Options;
use super::text_progress::text_progress;
use super::{counted, document, grouped};

/// All that a run starts from.
pub struct Prepared {
    /// The options given, completed.
    pub options: Options,
    pub tokenizer: Tokenizer,
    pub corpus: Corpus,
    pub config: ModelConfig,
    /// How the tokenizer was chosen; `None` for that of `init`.
    choice: Option<TokenizerChoice>,
    /// The model folder to start from.
    init: Option<PathBuf>,
}

impl Prepared {
    /// Completes the options, makes or opens the tokenizer and reads the texts. The ids of large ones go to `spill`.
    pub fn new(given: &Options, spill: Spill) -> Result<Self> {
        match &given.init {
            Some(init) => Self::from_folder(given, init, spill),
            None => Self::from_texts(given, spill),
        }
    }

    fn from_texts(given: &Options, spill: Spill) -> Result<Self> {
        // The options given are checked first, except those that depend on a length or a batch still to be chosen.
        TrainOptions { schedule: Schedule::Constant, accumulate: 1, ..given.train_options() }.validate()?;
        let choice = given.tokenizer.as_deref().unwrap_or("char").parse()?;
        let documents = documents(given)?;
        // What follows from the text's length alone is checked before it is read, with the smallest vocabulary.
        let expected = given.completed(&TextSize::expected(documents.iter().map(Document::len).sum(), &choice))?;
        expected.check()?;
        expected.model_config(2, None).validate()?;
        let validation = validation(&expected)?;
        let corpus_options = CorpusOptions { context_len: 1, spill: Some(spill) };
        let (tokenizer, corpus) = prepare(&documents, &validation, &choice, &corpus_options, &mut text_progress())?;
        if tokenizer.vocab_size() < 2 {
            bail!("expected a text of at least two different tokens, got a single character, repeated");
        }
        let validation_fraction = match validation {
            Validation::Fraction(fraction) => Some(fraction),
            Validation::Documents(_) => None,
        };
        let divided = Options { validation_fraction, ..given.clone() };
        let options = divided.completed(&TextSize::of(&corpus, &tokenizer))?;
        options.check()?;
        // A tokenizer from a file may have an end-of-text token that does not occur here.
        let end_of_text_id = match tokenizer.end_of_text_id() {
            Some(id) if corpus.train.contains(id)? || corpus.validation.contains(id)? => Some(id),
            _ => None,
        };
        let config = options.model_config(tokenizer.vocab_size(), end_of_text_id);
        config.validate()?;
        corpus.check_context(config.context_len)?;
        options.train_options().validate_for(&config, &corpus)?;
        document::note_missing_separator(&corpus);
        Ok(Self { options, tokenizer, corpus, config, choice: Some(choice), init: None })
    }

    /// With sizes and tokenizer from the model folder `init`.
    fn from_folder(given: &Options, init: &Path, spill: Spill) -> Result<Self> {
        given.check_init()?;
        given.check()?;
        let config = given.init_config(init)?;
        let tokenizer = Tokenizer::from_file(init)?;
        check_vocabulary(init, &config, &tokenizer)?;
        let corpus = encode(&tokenizer, given, config.context_len, spill)?;
        given.train_options().validate_for(&config, &corpus)?;
        document::note_missing_separator(&corpus);
        let (options, init) = (given.clone(), Some(init.to_path_buf()));
        Ok(Self { options, tokenizer, corpus, config, choice: None, init })
    }

    /// The trainer of a new run.
    pub fn trainer(&self, options: &TrainOptions) -> Result<Trainer> {
        let (config, corpus) = (&self.config, self.corpus.clone());
        Ok(match &self.init {
            Some(init) => {
                let weights = load_weights(&init.join("model.safetensors"), config, &Device::Cpu)?;
                Trainer::from_weights(weights, config, options, corpus, &Device::Cpu)?
            }
            None => Trainer::new(config, options, corpus, &Device::Cpu)?,
        })
    }

    /// The settings that are saved with the run.
    pub fn settings(&self, options: &TrainOptions) -> Result<String> {
        self.options.as_saved(self.choice.as_ref(), &self.config, options)?.to_toml()
    }

    /// Model and data, on a line each.
    pub fn description(&self) -> String {
        let Self { config, corpus, tokenizer, .. } = self;
        let kv_heads = match config.kv_heads() {
            n if n == config.num_heads => String::new(),
            n => format!(" ({n} for keys and values)"),
        };
        format!(
            "model: {}, {} parameters: {}, {}{kv_heads}, {} channels, context {}\n\
             data: {} tokens for training, {} for validation; vocabulary of {} ({})",
            config.architecture.model_type(),
            grouped(config.parameter_count()),
            counted(config.num_layers, "layer"),
            counted(config.num_heads, "head"),
            config.embed_dim,
            config.context_len,
            grouped(corpus.train.len()),
            grouped(corpus.validation.len()),
            grouped(config.vocab_size),
            tokenizer.kind_name(),
        )
    }
}

/// The ids of the texts that the options name, by an existing tokenizer.
pub fn encode(tokenizer: &Tokenizer, options: &Options, context_len: usize, spill: Spill) -> Result<Corpus> {
    let (documents, validation) = (documents(options)?, validation(options)?);
    let corpus_options = CorpusOptions { context_len, spill: Some(spill) };
    Ok(Corpus::new(tokenizer, &documents, &validation, &corpus_options, &mut text_progress())?)
}

/// The documents to train on; without validation texts, their end is held out.
fn documents(options: &Options) -> Result<Vec<Document>> {
    match options.texts.is_empty() {
        true => Ok(vec![document::built_in().0]),
        false => document::open_to_train_on(&options.texts, &options.validation),
    }
}

fn validation(options: &Options) -> Result<Validation> {
    if !options.validation.is_empty() {
        return Ok(Validation::Documents(document::open_all(&options.validation)?));
    }
    match options.validation_fraction {
        None if options.texts.is_empty() => Ok(Validation::Documents(vec![document::built_in().1])),
        fraction => Ok(Validation::Fraction(fraction.unwrap_or(VALIDATION_FRACTION))),
    }
}
