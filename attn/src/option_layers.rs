//! The layers of options (recipe, file, command line), and the way from them to a trainer.

use std::mem;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_attention::generate::Pipeline;
use candle_attention::model::{ModelConfig, load_weights};
use candle_attention::text::{
    Corpus, Document, IdsStore, Tokenizer, TokenizerChoice, Validation, encode, needed_chat_template, prepare,
};
use candle_attention::train::{FrozenBase, Trainer};
use candle_core::Device;
use toml::{Table, Value};

use super::automatic::{self, Machine, TextSize};
use super::progress::{rounded, text_progress};
use super::settings::Settings;
use super::terminal::note;
use super::{options, remarks, speed, texts};

/// The part of a run's time that is left to train, however long reading has taken.
pub const MIN_LEFT: f64 = 0.3;

/// The options from all places, before they are merged.
pub struct OptionLayers {
    /// On the command line.
    given: Table,
    /// In the file of `--config`.
    config: Table,
    /// Those of `--preset`.
    preset: Option<Table>,
}

/// The texts of a run, and its settings as far as they do not depend on what is in them.
pub struct Source {
    pub settings: Settings,
    documents: Vec<Document>,
    /// Those to validate on, if they are others.
    held_out: Vec<Document>,
    /// The model of --init.
    base: Option<Base>,
    /// The floating-point operations that fit into the time of the run.
    work: f64,
    /// The minutes of the run, if they decide on its length.
    minutes: Option<f64>,
}

/// A model to begin with.
struct Base {
    folder: PathBuf,
    config: ModelConfig,
    tokenizer: Tokenizer,
}

/// All that a run starts from.
pub struct Prepared {
    pub trainer: Trainer,
    pub tokenizer: Tokenizer,
    pub settings: Settings,
}

impl OptionLayers {
    /// Those of the command line, of the file of `--config` and of `--preset`.
    pub fn new(given: Table, config: Table, preset: Option<Table>) -> Self {
        let mut layers = Self { given, config, preset };
        // The rate that is chosen, or that of the preset or of the model of --init. In a saved file it is none.
        if layers.given.get("dropout").is_some_and(Value::is_str) {
            layers.unset("dropout");
        }
        layers
    }

    /// Sets an option that neither the command line nor `--config` sets.
    pub fn set_default(&mut self, name: &str, value: Value) {
        if !self.config.contains_key(name) {
            self.given.entry(name).or_insert(value);
        }
    }

    /// Unsets an option.
    pub fn unset(&mut self, name: &str) {
        self.given.remove(name);
        self.config.remove(name);
    }

    /// The settings for a text of this size and the work that can be done on it, or those that do not depend on these.
    fn settings(&self, text: Option<(&TextSize, f64)>) -> Result<Settings> {
        let merged = |recipe: &Table| {
            let mut settings = Settings::merged(&[recipe, &self.config, &self.given])?;
            // A length that is chosen is what `auto` asks for.
            if let (Some(context), None) = (recipe.get("context"), self.context()) {
                settings.set("context", context.clone());
            }
            anyhow::Ok(settings)
        };
        let mut settings = match (&self.preset, text) {
            (Some(preset), _) => merged(preset)?,
            (None, Some((size, work))) => {
                // Where the number of steps is given, no machine has a say.
                let machine = if self.sets_steps()? { Machine::ANY } else { Machine::this() };
                let context = self.context().and_then(Value::as_integer).map(|len| len as usize);
                let mut recipe = size.recipe(work, machine.memory, context, &merged)?;
                recipe.extend(size.shards(&merged(&recipe)?, machine)?);
                let sized = merged(&recipe)?;
                let steps = size.steps(&sized, work)?;
                recipe.extend(size.recipe_for_steps(&sized, steps)?);
                if self.minutes()?.is_none() && sized.needs_step_count() {
                    recipe.insert("minutes".into(), 0.0.into());
                    recipe.insert("steps".into(), (steps as i64).into());
                }
                merged(&recipe)?
            }
            (None, None) if self.minutes()?.is_some() => merged(&automatic::timed_schedule()?)?,
            (None, None) => merged(&Table::new())?,
        };
        if settings.init().is_some() {
            settings.set("context", self.context().cloned().unwrap_or("auto".into()));
        }
        Ok(settings)
    }

    /// The minutes that are set, if these decide on the length of the run.
    fn minutes(&self) -> Result<Option<f64>> {
        Ok(Settings::merged(&[&self.config, &self.given])?.minutes())
    }

    /// Whether the number of steps is set, and decides.
    fn sets_steps(&self) -> Result<bool> {
        let sets = |name| self.given.contains_key(name) || self.config.contains_key(name);
        Ok((sets("steps") || sets("minutes")) && self.minutes()?.is_none())
    }

    /// The context length that is asked for; that of a file gives way to an --init on the command line.
    fn context(&self) -> Option<&Value> {
        let of_file = self.config.get("context").filter(|_| !self.given.contains_key("init"));
        self.given.get("context").or(of_file).filter(|context| context.is_integer())
    }

    /// Shortens a context that nobody asked for where the text has no sequence of its length, and says so; `max` is that of
    /// the model of --init.
    fn fit_context(&self, settings: &mut Settings, corpus: &Corpus, max: usize) -> Result<Option<String>> {
        let parts = [corpus.train.len(), corpus.validation.len()];
        let shortest = parts.into_iter().filter(|len| *len > 1).min().unwrap_or_default();
        let context = settings.train_options()?.context.unwrap_or(max);
        if self.context().is_none() && (1..=context).contains(&shortest) {
            let fitting = TextSize::new(corpus, 0).max_context().min(shortest - 1);
            settings.set("context", fitting as i64);
            return Ok(Some(format!(
                "this text is short: sequences of {fitting} tokens instead of {context} (--context)"
            )));
        }
        Ok(None)
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
        settings.check_fractions()?;
        let (mut base, mut made) = (None, None);
        if let Some(init) = settings.init() {
            // Those of a file give way to an --init on the command line.
            let above = if self.given.contains_key("init") { &self.given } else { &self.config };
            let is_given =
                |option: &&options::Opt| self.given.contains_key(option.name) || above.contains_key(option.name);
            if let Some(option) = options::MODEL.iter().find(is_given) {
                bail!("--{} cannot be given with --init, whose model has its own", option.name);
            }
            let (config, tokenizer) = Pipeline::open_config(&init).context("--init")?;
            base = Some(Base { folder: init, config, tokenizer });
            self.check(&settings)?;
        }
        let [documents, held_out] = texts::of(&settings)?;
        let is_chosen = self.preset.is_none() && settings.init().is_none() && !self.sets_steps()?;
        let minutes = settings.minutes().or(Some(automatic::MINUTES).filter(|_| is_chosen));
        let work = minutes.map_or(Ok(automatic::USUAL_WORK), |minutes| anyhow::Ok(60.0 * minutes * speed::flops()?))?;
        if settings.init().is_none() {
            let tokenizer = tokenizer(&settings, &documents, work)?;
            if let TokenizerChoice::File(path) = &tokenizer {
                if !path.exists() {
                    bail!(
                        "--tokenizer: expected auto, char, byte, bpe:N or the path of a tokenizer.json, got {}",
                        path.display()
                    );
                }
                made = Some(Tokenizer::open(path)?);
            }
            let size = TextSize::expected(documents.iter().map(Document::len).sum(), &tokenizer);
            self.check(&self.settings(Some((&size, work)))?)?;
        }
        let tokenizer = base.as_ref().map(|base| &base.tokenizer).or(made.as_ref());
        needed_chat_template(documents.iter().chain(&held_out), tokenizer)?;
        Ok(Source { settings, documents, held_out, base, work, minutes })
    }

    /// Reads the texts, settles the options and builds the trainer.
    pub fn prepare(&self, mut source: Source, store: IdsStore) -> Result<Prepared> {
        let (prepared, shortened) = match source.base.take() {
            Some(base) => self.prepare_init(base, source, store),
            None => self.prepare_new(source, store),
        }?;
        // Only now, as an error is all that is said.
        shortened.iter().for_each(|line| note(line));
        Ok(prepared)
    }

    /// For a model that begins with the weights of another one, or with adapters on it; with what to say of a shortened context.
    fn prepare_init(&self, base: Base, mut source: Source, store: IdsStore) -> Result<(Prepared, Option<String>)> {
        let (started, device) = (Instant::now(), &Device::Cpu);
        let Base { folder, mut config, tokenizer } = base;
        config.dropout = source.settings.dropout().unwrap_or(config.dropout);
        let lora = source.settings.lora();
        let frozen = lora.map(|lora| FrozenBase::open(&folder, &lora, &config, device)).transpose()?;
        let weights = frozen.is_none().then(|| load_weights(&folder, &config, device)).transpose()?;
        let validation = source.read()?;
        let (options, progress) = (source.settings.text_options(), &mut text_progress());
        let corpus = encode(&tokenizer, &source.documents, &validation, options, store, progress)?;
        source.note_remarks(&corpus);
        let work = source.work_left(started);
        let mut settings = source.settings;
        let shortened = self.fit_context(&mut settings, &corpus, config.context_len)?;
        expect_steps(&mut settings, &config, &corpus, work)?;
        let options = settings.train_options()?;
        let trainer = match frozen {
            Some(base) => Trainer::with_lora(base, &config, &options, corpus, device)?,
            None => Trainer::from_weights(weights.unwrap_or_default(), &config, &options, corpus, device)?,
        };
        Ok((Prepared { trainer, tokenizer, settings }, shortened))
    }

    /// For a model that begins with random weights; with what to say of a shortened context.
    fn prepare_new(&self, mut source: Source, store: IdsStore) -> Result<(Prepared, Option<String>)> {
        let started = Instant::now();
        let validation = source.read()?;
        let choice = tokenizer(&source.settings, &source.documents, source.work)?;
        let (options, progress) = (source.settings.text_options(), &mut text_progress());
        let (tokenizer, corpus) = prepare(&source.documents, &validation, &choice, options, store, progress)?;
        if tokenizer.vocab_size() < 2 {
            bail!(
                "expected a text of at least two different tokens, got a single character, repeated; --tokenizer byte takes it"
            );
        }
        source.note_remarks(&corpus);
        let work = source.work_left(started);
        let mut settings = self.settings(Some((&TextSize::new(&corpus, tokenizer.vocab_size()), work)))?;
        settings.set("tokenizer", choice.to_string());
        let shortened = self.fit_context(&mut settings, &corpus, 0)?;
        self.check(&settings)?;
        let config = settings.model_config(tokenizer.vocab_size(), tokenizer.end_of_text_id())?;
        expect_steps(&mut settings, &config, &corpus, work)?;
        let trainer = Trainer::new(&config, &settings.train_options()?, corpus, &Device::Cpu)?;
        Ok((Prepared { trainer, tokenizer, settings }, shortened))
    }
}

impl Source {
    /// Reads what was left for later, and gives what to validate on.
    fn read(&mut self) -> Result<Validation> {
        texts::complete(&self.settings, &mut self.documents, mem::take(&mut self.held_out))
    }

    /// What the command should say of these documents.
    fn note_remarks(&self, corpus: &Corpus) {
        if self.documents.len() > 1 && corpus.separator.is_none() {
            note("the tokenizer has no end-of-text token: the texts follow one another with nothing in between");
        }
        remarks::note_in_training(&corpus.remarks);
    }

    /// What is left of the work once the text has been read, which began then, with a note if it is too little.
    fn work_left(&self, reading_began: Instant) -> f64 {
        let Some(minutes) = self.minutes else { return self.work };
        let seconds = reading_began.elapsed().as_secs_f64();
        let left = 1.0 - seconds / (60.0 * minutes);
        if left < MIN_LEFT {
            note(&format!("reading the text took {}, which leaves little time to train (--minutes)", rounded(seconds)));
        }
        self.work * left.max(MIN_LEFT)
    }
}

/// How the tokenizer is made.
fn tokenizer(settings: &Settings, documents: &[Document], work: f64) -> Result<TokenizerChoice> {
    Ok(settings.tokenizer()?.unwrap_or_else(|| automatic::tokenizer(documents, work)))
}

/// Sets the number of steps to the one expected, where the time decides on it.
fn expect_steps(settings: &mut Settings, config: &ModelConfig, corpus: &Corpus, work: f64) -> Result<()> {
    if settings.minutes().is_none() {
        return Ok(());
    }
    let steps = automatic::affordable_steps(config, &settings.train_options()?, corpus.validation.len(), work);
    settings.set("steps", steps as i64);
    Ok(())
}
