//! From options to texts, tokenizer, corpus and sizes: all that a run starts from.

use std::path::PathBuf;

use anyhow::{Result, bail};
use candle_attention::model::{ModelConfig, load_weights};
use candle_attention::run::check_vocabulary;
use candle_attention::text::{Corpus, CorpusOptions, Document, Spill, Tokenizer, TokenizerChoice, Validation, prepare};
use candle_attention::train::{Schedule, TrainOptions, Trainer};
use candle_core::Device;

use super::automatic::Text;
use super::options::Options;
use super::text_progress::text_progress;
use super::{counted, document, grouped};

/// The part of a text that is held out to validate on unless told otherwise.
const VALIDATION_FRACTION: f64 = 0.1;

/// All that a run starts from.
pub struct Prepared {
    /// The options that were given, and those that were chosen for the others.
    pub options: Options,
    pub tokenizer: Tokenizer,
    /// How the tokenizer was chosen, unless it came with `init`.
    pub choice: TokenizerChoice,
    pub corpus: Corpus,
    pub config: ModelConfig,
    /// The model folder to start from.
    init: Option<PathBuf>,
}

impl Prepared {
    /// Chooses what is not given, makes or opens the tokenizer and reads the texts, whose ids go to `spill` where they are
    /// many.
    pub fn new(given: &Options, spill: Spill) -> Result<Self> {
        if given.init.is_some() {
            return Self::from_folder(given, spill);
        }
        // What is given is checked by itself first, but for what goes with a length or a batch that is still to be chosen.
        TrainOptions { schedule: Schedule::Constant, accumulate: 1, ..given.train_options() }.validate()?;
        let choice = given.tokenizer.as_deref().unwrap_or("char").parse()?;
        let documents = documents(given)?;
        // What the text's length alone leads to is checked before it is read through, with the smallest vocabulary.
        let expected = given.completed(&Text::expected(documents.iter().map(Document::len).sum(), &choice))?;
        expected.check()?;
        expected.model_config(2, None).validate()?;
        let validation = validation(&expected)?;
        let corpus_options = CorpusOptions { context_len: 1, spill: Some(spill) };
        let (tokenizer, corpus) = prepare(&documents, &validation, &choice, &corpus_options, &mut text_progress())?;
        if tokenizer.vocab_size() < 2 {
            bail!("expected a text of several kinds of tokens, got one of a single character, again and again");
        }
        let validation_fraction = match validation {
            Validation::Fraction(fraction) => Some(fraction),
            Validation::Documents(_) => None,
        };
        let divided = Options { validation_fraction, ..given.clone() };
        let options = divided.completed(&Text::of(&corpus, &tokenizer))?;
        options.check()?;
        // A tokenizer from a file may have an end of text that no text here ends with.
        let end_of_text_id = match tokenizer.end_of_text_id() {
            Some(id) if corpus.train.contains(id)? || corpus.validation.contains(id)? => Some(id),
            _ => None,
        };
        let config = options.model_config(tokenizer.vocab_size(), end_of_text_id);
        config.validate()?;
        corpus.check_context(config.context_len)?;
        options.train_options().validate_for(&config, &corpus)?;
        document::note_missing_separator(&corpus);
        Ok(Self { options, tokenizer, choice, corpus, config, init: None })
    }

    /// The same with the sizes and the tokenizer of the model folder that is given.
    fn from_folder(given: &Options, spill: Spill) -> Result<Self> {
        let init = given.init.clone().unwrap_or_default();
        given.check_init()?;
        given.check()?;
        let config = given.init_config(&init)?;
        let tokenizer = Tokenizer::from_file(&init)?;
        check_vocabulary(&init, &config, &tokenizer)?;
        let corpus = encode(&tokenizer, given, config.context_len, spill)?;
        given.train_options().validate_for(&config, &corpus)?;
        document::note_missing_separator(&corpus);
        let choice = TokenizerChoice::Characters;
        Ok(Self { options: given.clone(), tokenizer, choice, corpus, config, init: Some(init) })
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

    /// Sizes of model and data, for people.
    pub fn description(&self) -> String {
        describe(&self.config, &self.tokenizer, &self.corpus)
    }
}

/// The ids of the texts that the options name, by a tokenizer that is there already.
pub fn encode(tokenizer: &Tokenizer, options: &Options, context_len: usize, spill: Spill) -> Result<Corpus> {
    let (documents, validation) = (documents(options)?, validation(options)?);
    let corpus_options = CorpusOptions { context_len, spill: Some(spill) };
    Ok(Corpus::new(tokenizer, &documents, &validation, &corpus_options, &mut text_progress())?)
}

/// The documents to train on, and to cut those to validate on from where none are given.
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

/// Sizes of model and data, for people.
fn describe(config: &ModelConfig, tokenizer: &Tokenizer, corpus: &Corpus) -> String {
    format!(
        "{}, {} parameters: {}, {}{}, {} channels, context {}; {} tokens to train on, {} to validate on, \
         vocabulary of {} ({})",
        config.architecture.model_type(),
        grouped(config.parameter_count()),
        counted(config.num_layers, "layer"),
        counted(config.num_heads, "head"),
        if config.kv_heads() == config.num_heads {
            String::new()
        } else {
            format!(" ({} of keys and values)", config.kv_heads())
        },
        config.embed_dim,
        config.context_len,
        grouped(corpus.train.len()),
        grouped(corpus.validation.len()),
        grouped(config.vocab_size),
        tokenizer.kind_name(),
    )
}
