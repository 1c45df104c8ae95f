//! The layers of options (recipe, file, command line), and the way from them to a trainer.

use anyhow::{Context, Result, bail};
use candle_attention::generate::Pipeline;
use candle_attention::model::load_weights;
use candle_attention::text::{
    Corpus, Document, IdsStore, Tokenizer, TokenizerChoice, Validation, encode, needed_chat_template, prepare,
};
use candle_attention::train::Trainer;
use candle_core::Device;
use toml::Table;

use super::automatic::TextSize;
use super::progress::text_progress;
use super::settings::Settings;
use super::terminal::note;
use super::{options, remarks, texts};

/// The options from all places, before they are merged.
pub struct OptionLayers {
    /// On the command line.
    pub given: Table,
    /// In the file of `--config`.
    pub config: Table,
    /// Those of `--preset`.
    pub preset: Option<Table>,
}

/// The texts of a run, and its settings as far as they do not depend on what is in them.
pub struct Source {
    pub settings: Settings,
    documents: Vec<Document>,
    validation: Validation,
}

/// All that a run starts from.
pub struct Prepared {
    pub trainer: Trainer,
    pub tokenizer: Tokenizer,
    pub settings: Settings,
}

impl OptionLayers {
    /// Sets an option that neither the command line nor `--config` sets.
    pub fn set_default(&mut self, name: &str, value: toml::Value) {
        if !self.config.contains_key(name) {
            self.given.entry(name).or_insert(value);
        }
    }

    /// The settings for a text of this size, or those that do not depend on it.
    fn settings(&self, size: Option<&TextSize>) -> Result<Settings> {
        let recipe = match (&self.preset, size) {
            (Some(preset), _) => preset.clone(),
            (None, Some(size)) => size.recipe()?,
            (None, None) => Table::new(),
        };
        Settings::merged(&[&recipe, &self.config, &self.given])
    }

    /// Checks settings, and that everything given has an effect.
    fn check(&self, settings: &Settings) -> Result<()> {
        options::check_effect(&self.given, &settings.absolute()?)?;
        if ["validation", "validation-fraction"].iter().all(|name| self.given.contains_key(*name)) {
            bail!("--validation-fraction cannot be given with --validation");
        }
        settings.check()
    }

    /// Opens the texts, and refuses options that no text could make valid.
    pub fn source(&self) -> Result<Source> {
        let settings = self.settings(None)?;
        let mut made = None;
        if let Some(init) = settings.init() {
            // Those of a file give way to an --init on the command line.
            let above = if self.given.contains_key("init") { &self.given } else { &self.config };
            let is_given =
                |option: &&options::Opt| self.given.contains_key(option.name) || above.contains_key(option.name);
            if let Some(option) = options::MODEL.iter().find(is_given) {
                bail!("--{} cannot be given with --init, whose model has its own", option.name);
            }
            made = Some(Pipeline::open_config(&init).context("init")?.1);
            self.check(&settings)?;
        }
        let (documents, validation) = texts::of(&settings)?;
        if settings.init().is_none() {
            let (tokenizer, bytes) = (settings.tokenizer()?, documents.iter().map(Document::len).sum());
            if let TokenizerChoice::File(path) = &tokenizer
                && !path.exists()
            {
                bail!("tokenizer: expected char, byte, bpe:N or the path of a tokenizer.json, got {}", path.display());
            }
            if let TokenizerChoice::File(path) = &tokenizer {
                made = Some(Tokenizer::open(path)?);
            }
            self.check(&self.settings(Some(&TextSize::expected(bytes, &tokenizer)))?)?;
        }
        let held_out: &[Document] = if let Validation::Documents(held_out) = &validation { held_out } else { &[] };
        needed_chat_template(documents.iter().chain(held_out), made.as_ref())?;
        Ok(Source { settings, documents, validation })
    }

    /// Reads the texts, settles the options and builds the trainer.
    pub fn prepare(&self, source: Source, store: IdsStore) -> Result<Prepared> {
        let Source { settings, documents, validation } = source;
        let (progress, device) = (&mut text_progress(), &Device::Cpu);
        if let Some(init) = settings.init() {
            let (mut config, tokenizer) = Pipeline::open_config(&init)?;
            config.dropout = settings.dropout().unwrap_or(config.dropout);
            let weights = load_weights(&init, &config, device)?;
            let corpus = encode(&tokenizer, &documents, &validation, settings.text_options(), store, progress)?;
            note_missing_separator(&documents, &corpus);
            let trainer = Trainer::from_weights(weights, &config, &settings.train_options()?, corpus, device)?;
            remarks::note_in_training(&trainer.corpus().remarks);
            return Ok(Prepared { trainer, tokenizer, settings });
        }
        let (choice, options) = (settings.tokenizer()?, settings.text_options());
        let (tokenizer, corpus) = prepare(&documents, &validation, &choice, options, store, progress)?;
        if tokenizer.vocab_size() < 2 {
            bail!("expected a text of at least two different tokens, got a single character, repeated");
        }
        note_missing_separator(&documents, &corpus);
        let settings = self.settings(Some(&TextSize::of(&corpus, &tokenizer)))?;
        self.check(&settings)?;
        let config = settings.model_config(tokenizer.vocab_size(), tokenizer.end_of_text_id())?;
        let trainer = Trainer::new(&config, &settings.train_options()?, corpus, device)?;
        remarks::note_in_training(&trainer.corpus().remarks);
        Ok(Prepared { trainer, tokenizer, settings })
    }
}

/// A note if several documents are joined because the tokenizer has no token to separate them with.
fn note_missing_separator(documents: &[Document], corpus: &Corpus) {
    if documents.len() > 1 && corpus.separator.is_none() {
        note("the tokenizer has no end-of-text token: the texts follow one another with nothing in between");
    }
}
