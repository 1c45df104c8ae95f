//! The settings of a run: every option, each with one value.
//!
//! They are merged once from layers, a higher one over a lower one: defaults, a recipe (a preset or the automatic choice), a `--config` file, the
//! command line. What comes out is saved whole and never completed again. Options are relative to one another (rates to
//! `lr`, lengths to `steps`, the width to heads), so that a change of one leaves the others sensible.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use candle_attention::model::{Architecture, DropoutRates, ModelConfig, ResidualInit};
use candle_attention::nn::LoraConfig;
use candle_attention::text::{TextOptions, TokenizerChoice};
use candle_attention::train::TrainOptions;
use toml::{Table, Value};

use super::options::{self, MODEL};
use super::texts::STANDARD_INPUT;

/// The built-in recipes by name.
pub const PRESETS: [(&str, &str); 5] = [
    ("gpt2", include_str!("presets/gpt2.toml")),
    ("llama", include_str!("presets/llama.toml")),
    ("qwen3", include_str!("presets/qwen3.toml")),
    ("quick", include_str!("presets/quick.toml")),
    ("best", include_str!("presets/best.toml")),
];

/// The options that a built-in recipe sets.
pub fn preset(name: &str) -> Result<Table> {
    let (_, text) = PRESETS.iter().find(|(preset, _)| *preset == name).context("expected the name of a preset")?;
    options::parse(text)
}

/// Every option of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings(Table);

impl Settings {
    /// Merges the layers above the defaults, the lowest first.
    pub fn merged(layers: &[&Table]) -> Result<Self> {
        let mut table = Table::try_from(TrainOptions::default())?;
        table.extend(options::parse(include_str!("presets/defaults.toml"))?);
        for layer in layers {
            overlay(&mut table, layer);
        }
        let mut settings = Self(table);
        if settings.init().is_some() {
            settings.0.retain(|name, _| !MODEL.iter().any(|option| option.name == name));
        }
        Ok(settings)
    }

    /// Sets an option.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.into(), value.into());
    }

    /// The minutes that the run is to take, if these decide on its length.
    pub fn minutes(&self) -> Option<f64> {
        self.0.get("minutes").and_then(Value::as_float).filter(|minutes| *minutes != 0.0)
    }

    /// Whether something has to know the number of steps from the start: a schedule, or patience.
    pub fn needs_step_count(&self) -> bool {
        self.string("schedule") != "warmup-stable-decay" || self.count("patience").is_some_and(|patience| patience > 0)
    }

    /// Checks what can be checked before the text is known.
    pub fn check(&self) -> Result<()> {
        self.check_fractions()?;
        self.train_options()?.validate()?;
        self.check_lora()?;
        if self.init().is_none() {
            self.model_config(2, None)?;
        }
        Ok(())
    }

    /// Checks the fractions that are not options of training.
    pub fn check_fractions(&self) -> Result<()> {
        for name in ["dropout", "validation-fraction"] {
            let fraction = self.0.get(name).and_then(Value::as_float);
            if let Some(fraction) = fraction.filter(|fraction| !(0.0..1.0).contains(fraction)) {
                bail!("--{name}: expected a number from 0 to below 1, got {fraction:?}");
            }
        }
        Ok(())
    }

    fn check_lora(&self) -> Result<()> {
        if let Some(LoraConfig { rank, alpha, .. }) = self.lora() {
            if self.init().is_none() {
                bail!("--lora: expected --init with the model that gets adapters, got none");
            }
            if self.string("optimizer") != "adamw" {
                bail!("--lora: expected --optimizer adamw, got {}", self.string("optimizer"));
            }
            if rank > ModelConfig::MAX_SIZE {
                bail!("--lora: expected at most {}, got {rank}", ModelConfig::MAX_SIZE);
            }
            if !(alpha > 0.0 && (alpha as f32).is_finite()) {
                bail!("--lora-alpha: expected a number above 0, got {alpha:?}");
            }
        }
        Ok(())
    }

    /// All settings, with absolute paths.
    pub fn absolute(&self) -> Result<Table> {
        let absolute = |path: &str| -> Result<Value> {
            if path == STANDARD_INPUT {
                return Ok(path.into());
            }
            Ok(std::path::absolute(path)?.to_str().context("expected paths in UTF-8")?.into())
        };
        let mut table = self.0.clone();
        for (name, value) in &mut table {
            match (name.as_str(), &*value) {
                ("texts" | "validation", _) => {
                    *value = self.strings(name).map(absolute).collect::<Result<Vec<Value>>>()?.into();
                }
                ("init", Value::String(path)) if !path.is_empty() => *value = absolute(path)?,
                ("tokenizer", Value::String(choice)) if choice != "auto" => {
                    if let TokenizerChoice::File(path) = choice.parse()? {
                        *value = absolute(path.to_str().context("expected paths in UTF-8")?)?;
                    }
                }
                _ => {}
            }
        }
        Ok(table)
    }

    /// The texts to train on, and those to validate on; without any, those of the built-in corpus.
    pub fn texts(&self) -> [Vec<PathBuf>; 2] {
        ["texts", "validation"].map(|name| self.strings(name).map(PathBuf::from).collect())
    }

    /// The fraction of the text that is held out; `None` where that follows from the text.
    pub fn validation_fraction(&self) -> Option<f64> {
        self.0.get("validation-fraction").and_then(Value::as_float)
    }

    /// How the texts are read.
    pub fn text_options(&self) -> TextOptions {
        let switch = |name: &str| self.0.get(name).and_then(Value::as_bool).unwrap_or_default();
        TextOptions { split_at_end_of_text: switch("split-at-end-of-text"), accept_unknown: switch("accept-unknown") }
    }

    /// How the tokenizer is made; `None` where that follows from the text.
    pub fn tokenizer(&self) -> Result<Option<TokenizerChoice>> {
        match self.string("tokenizer") {
            "auto" => Ok(None),
            choice => Ok(Some(choice.parse()?)),
        }
    }

    /// The model folder to start from.
    pub fn init(&self) -> Option<PathBuf> {
        Some(self.string("init")).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// The size of the adapters, if these are what is trained.
    pub fn lora(&self) -> Option<LoraConfig> {
        let rank = self.count("lora").filter(|rank| *rank > 0)?;
        let default = LoraConfig::new(rank);
        let alpha = self.0.get("lora-alpha").and_then(Value::as_float).unwrap_or(default.alpha);
        Some(LoraConfig { alpha, ..default })
    }

    /// The training options.
    pub fn train_options(&self) -> Result<TrainOptions> {
        Ok(self.0.clone().try_into()?)
    }

    /// The dropout rate, if it is given.
    pub fn dropout(&self) -> Option<DropoutRates> {
        self.0.get("dropout").and_then(Value::as_float).map(DropoutRates::all)
    }

    /// The model, for a vocabulary of this size.
    pub fn model_config(&self, vocab_size: usize, end_of_text_id: Option<u32>) -> Result<ModelConfig> {
        let switch = |name: &str| self.0.get(name).and_then(Value::as_bool).unwrap_or_default();
        let architecture: Architecture = self.0.get("architecture").cloned().context("architecture")?.try_into()?;
        let (heads, head_dim, dim) = self.widths()?;
        let kv_heads = self.count("kv-heads");
        let is_whole = heads.checked_mul(head_dim) == Some(dim);
        if let Some(kv_heads) = kv_heads.filter(|kv_heads| !heads.is_multiple_of(*kv_heads)) {
            bail!("--kv-heads: expected a divisor of --heads {heads}, got {kv_heads}");
        }
        if !is_whole && architecture != Architecture::Qwen3 {
            bail!(
                "--dim: expected --heads {heads} times --head-dim {head_dim}, got {dim}; only qwen3 has heads of any width"
            );
        }
        if architecture.is_rotary() && !head_dim.is_multiple_of(2) {
            bail!("--head-dim: expected an even number for rotary positions, got {head_dim}");
        }
        let default = ModelConfig::of(architecture, vocab_size);
        let rope_theta = self.0.get("rope-theta").and_then(Value::as_float).unwrap_or(default.rope_theta);
        for (name, is_set) in [("kv-heads", kv_heads.is_some()), ("rope-theta", rope_theta != default.rope_theta)] {
            if is_set && !architecture.is_rotary() {
                bail!("--{name}: expected --architecture llama or qwen3, got {}", architecture.model_type());
            }
        }
        if !(rope_theta.is_finite() && rope_theta > 0.0) {
            bail!("--rope-theta: expected a number above 0, got {rope_theta:?}");
        }
        let config = ModelConfig {
            context_len: self.count("context").unwrap_or(default.context_len),
            embed_dim: dim,
            num_layers: self.count("layers").unwrap_or(default.num_layers),
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim: Some(head_dim).filter(|_| !is_whole),
            hidden_dim: self.count("hidden").unwrap_or(architecture.usual_hidden_dim(dim)),
            rope_theta,
            bias: switch("bias"),
            mlp_bias: switch("bias") && architecture == Architecture::Llama,
            tie_embeddings: switch("tie"),
            // A text begins where the one before it has ended.
            begin_of_text_id: end_of_text_id,
            end_of_text_id,
            dropout: self.dropout().unwrap_or_default(),
            residual_init: if switch("zero-residual") { ResidualInit::Zero } else { ResidualInit::Scaled },
            ..default
        };
        for (name, size, max) in [
            ("layers", config.num_layers, ModelConfig::MAX_LAYERS),
            ("heads times --head-dim", heads.saturating_mul(head_dim), ModelConfig::MAX_SIZE),
            ("dim", dim, ModelConfig::MAX_SIZE),
            ("hidden", config.hidden_dim, ModelConfig::MAX_SIZE),
            ("context", config.context_len, ModelConfig::MAX_SIZE),
        ] {
            if size > max {
                bail!("--{name}: expected at most {max}, got {size}");
            }
        }
        config.validate().map_err(candle_attention::Error::from)?;
        Ok(config)
    }

    /// Heads, the width of one, and channels: two of them give the third.
    fn widths(&self) -> Result<(usize, usize, usize)> {
        Ok(match (self.count("heads"), self.count("head-dim"), self.count("dim")) {
            (Some(heads), Some(head_dim), None) => (heads, head_dim, heads.saturating_mul(head_dim)),
            (None, Some(head_dim), Some(dim)) if dim.is_multiple_of(head_dim) => (dim / head_dim, head_dim, dim),
            (None, Some(head_dim), Some(dim)) => {
                bail!("--dim: expected a multiple of --head-dim {head_dim}, got {dim}; set --heads or --head-dim too")
            }
            (Some(heads), None, Some(dim)) if dim.is_multiple_of(heads) => (heads, dim / heads, dim),
            (Some(heads), None, Some(dim)) => {
                bail!("--heads: expected a divisor of --dim {dim}, got {heads}; set --head-dim too")
            }
            (Some(heads), Some(head_dim), Some(dim)) => (heads, head_dim, dim),
            _ => bail!("--heads, --head-dim, --dim: expected at least two of them, got auto for the others"),
        })
    }

    /// A whole number, if it is given.
    fn count(&self, name: &str) -> Option<usize> {
        self.0.get(name).and_then(Value::as_integer).map(|n| n as usize)
    }

    fn string(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// The elements of a list, which may be a single one without brackets.
    fn strings(&self, name: &str) -> impl Iterator<Item = &str> {
        let one = self.0.get(name).and_then(Value::as_str);
        let many = self.0.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        one.into_iter().chain(many)
    }
}

/// Lays the options of a higher layer over those of a lower one. Two of width, heads and head width define the third: where
/// none of those that are not set follows from the others yet, the first does now. A fraction to validate on takes the
/// place of texts, and a number of steps that of minutes.
fn overlay(lower: &mut Table, upper: &Table) {
    let unset = || ["dim", "heads", "head-dim"].into_iter().filter(|name| !upper.contains_key(*name));
    let follows = |name: &str| lower.get(name).and_then(Value::as_str) == Some("auto");
    let next = unset().next().filter(|_| unset().count() < 3 && !unset().any(follows));
    lower.extend(next.map(|name| (name.to_string(), "auto".into())));
    if upper.contains_key("validation-fraction") {
        lower.insert("validation".into(), Value::Array(vec![]));
    }
    if upper.contains_key("steps") {
        lower.insert("minutes".into(), 0.0.into());
    }
    lower.extend(upper.clone());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use candle_attention::optim::Schedule;
    use candle_attention::train::{OptimizerKind, Precision};

    use super::*;

    /// The settings of these layers, each the text of a file.
    fn settings(layers: &[&str]) -> Settings {
        let layers: Vec<Table> = layers.iter().map(|toml| options::parse(toml).unwrap()).collect();
        let settings = Settings::merged(&layers.iter().collect::<Vec<_>>()).unwrap();
        settings.check().unwrap();
        settings
    }

    /// The names of the options that differ.
    fn differing(one: &Settings, other: &Settings) -> BTreeSet<String> {
        let names = one.0.keys().chain(other.0.keys());
        names.filter(|name| one.0.get(*name) != other.0.get(*name)).cloned().collect()
    }

    fn set(names: &str) -> BTreeSet<String> {
        names.split(' ').map(String::from).collect()
    }

    /// Every option, and a value that is not its default.
    const EVERY_OPTION: &str = r#"
        texts = ["/a.txt", "/b.txt"]
        validation = ["/c.txt"]
        validation-fraction = 0.3
        tokenizer = "bpe:300"
        init = ""
        architecture = "llama"
        layers = 3
        heads = 6
        head-dim = 12
        dim = 72
        kv-heads = 2
        hidden = 77
        context = 33
        rope-theta = 500.0
        bias = true
        tie = false
        zero-residual = true
        lora = 0
        lora-alpha = 32.0
        dropout = 0.1
        steps = 77
        minutes = 0.0
        batch = 7
        shards = 3
        accumulate = 2
        precision = "bf16"
        isolate-documents = true
        lr = 0.011
        min-lr = 0.2
        warmup = 0.1
        schedule = "warmup-stable-decay"
        decay = 0.4
        optimizer = "muon"
        matrix-lr = 4.0
        matrix-weight-decay = 0.2
        momentum = 0.9
        embedding-lr = 5.0
        beta1 = 0.8
        beta2 = 0.98
        weight-decay = 0.3
        clip = 0.7
        label-smoothing = 0.05
        average = 0.25
        eval-every = 11
        patience = 6
        save-every = 2.5
        keep = 5
        watch = "gato"
        statistics-every = 10
        split-at-end-of-text = true
        accept-unknown = true
        seed = 42
    "#;

    /// A new option that is forgotten in one of the places is missed here.
    #[test]
    fn every_option_has_a_place_in_the_settings_and_an_effect() {
        let (defaults, all) = (settings(&[]), settings(&[EVERY_OPTION]));
        let names: BTreeSet<String> = options::all().map(|option| option.name.to_string()).collect();
        assert_eq!(all.0.keys().cloned().collect::<BTreeSet<_>>(), names);
        assert_eq!(defaults.0.keys().cloned().collect::<BTreeSet<_>>(), names);
        let mut expected = names.clone();
        expected.remove("init");
        expected.remove("lora");
        // It cannot be given with patience.
        expected.remove("minutes");
        assert_eq!(differing(&defaults, &all), expected);

        // Without `..`, so that a new one is missed here.
        let options = TrainOptions {
            steps: 77,
            minutes: 0.0,
            batch: 7,
            context: Some(33),
            shards: 3,
            accumulate: 2,
            precision: Precision::Bf16,
            lr: 0.011,
            min_lr: 0.2,
            warmup: 0.1,
            schedule: Schedule::WarmupStableDecay,
            decay: 0.4,
            optimizer: OptimizerKind::Muon,
            beta1: 0.8,
            beta2: 0.98,
            weight_decay: 0.3,
            matrix_lr: 4.0,
            matrix_weight_decay: 0.2,
            momentum: 0.9,
            embedding_lr: 5.0,
            clip: 0.7,
            label_smoothing: 0.05,
            average: 0.25,
            isolate_documents: true,
            eval_every: Some(11),
            patience: 6,
            statistics_every: 10,
            save_every: 2.5,
            keep: 5,
            watch: "gato".into(),
            seed: 42,
        };
        assert_eq!(all.train_options().unwrap(), options);
        let defaults = defaults.train_options().unwrap();
        assert_eq!(defaults, TrainOptions { context: Some(64), ..Default::default() });
        let config = ModelConfig {
            num_layers: 3,
            num_heads: 6,
            embed_dim: 72,
            num_kv_heads: Some(2),
            rope_theta: 500.0,
            hidden_dim: 77,
            context_len: 33,
            bias: true,
            mlp_bias: true,
            tie_embeddings: false,
            residual_init: ResidualInit::Zero,
            dropout: DropoutRates::all(0.1),
            ..ModelConfig::llama(65)
        };
        assert_eq!(all.model_config(65, None).unwrap(), config);
        assert_eq!(all.texts(), [vec!["/a.txt".into(), "/b.txt".into()], vec![PathBuf::from("/c.txt")]]);
        assert_eq!((all.validation_fraction(), all.tokenizer().unwrap()), (Some(0.3), Some(TokenizerChoice::Bpe(300))));
    }

    /// What was saved is a layer over any recipe, and is never completed again.
    #[test]
    fn saved_settings_give_themselves() {
        let quick = preset("quick").unwrap().to_string();
        for given in [
            "",
            "dim = 64",
            "dim = 64\nheads = 4",
            "heads = 4",
            "head-dim = 16\nheads = 1",
            "validation = '/v.txt'",
            "validation-fraction = 0.2\nlr = 0.1",
            "architecture = 'gpt2'\noptimizer = 'adamw'\nschedule = 'cosine'",
            "init = '/model'\ndropout = 0.2",
            "init = '/model'\nlora = 8\noptimizer = 'adamw'",
            EVERY_OPTION,
        ] {
            let first = settings(&[&quick, given]);
            let saved = first.absolute().unwrap().to_string();
            for recipe in PRESETS.map(|(name, _)| preset(name).unwrap().to_string()) {
                let again = settings(&[&recipe, &saved]);
                assert_eq!(again.absolute().unwrap().to_string(), saved, "{given}");
                assert_eq!(again.train_options().unwrap(), first.train_options().unwrap(), "{given}");
            }
        }
    }

    /// One option over settings changes itself, and of width, heads and head width what would contradict it.
    #[test]
    fn one_option_over_settings_changes_itself_alone() {
        let quick = preset("quick").unwrap().to_string();
        let saved = settings(&[&quick, "texts = '/a.txt'"]).absolute().unwrap().to_string();
        let below = settings(&[&saved]);
        for (name, value) in options::parse(EVERY_OPTION).unwrap() {
            let above = match name.as_str() {
                "init" | "lora" | "minutes" => continue,
                // Muon and decay are the recipe's already.
                "optimizer" => "adamw".into(),
                "schedule" => "linear".into(),
                "tie" => true.into(),
                "layers" => 5.into(),
                "warmup" | "decay" => 0.15.into(),
                "kv-heads" => 1.into(),
                "dim" => 96.into(),
                _ => value,
            };
            let above = Table::from_iter([(name.clone(), above)]);
            let changed = differing(&settings(&[&saved, &above.to_string()]), &below);
            let expected = if name == "dim" { set("dim heads") } else { set(&name) };
            assert_eq!(changed, expected, "{above}");
        }
    }

    #[test]
    fn width_heads_and_head_width_follow_one_another() {
        let of = |layers: &[&str]| {
            let config = settings(layers).model_config(65, None).unwrap();
            (config.embed_dim, config.num_heads, config.head_channels())
        };
        let quick = preset("quick").unwrap().to_string();
        for (given, expected) in [
            ("", (64, 2, 32)),
            ("dim = 128", (128, 4, 32)),
            ("heads = 3", (96, 3, 32)),
            ("head-dim = 16", (32, 2, 16)),
            ("dim = 90\nheads = 3", (90, 3, 30)),
            ("dim = 90\nhead-dim = 10", (90, 9, 10)),
            ("heads = 5\nhead-dim = 8", (40, 5, 8)),
            // Heads of any width.
            ("dim = 90\nheads = 3\nhead-dim = 8", (90, 3, 8)),
        ] {
            assert_eq!(of(&[&quick, given]), expected, "{given}");
        }
        // Each layer sees what the one below has left.
        assert_eq!(of(&[&quick, "dim = 128", "heads = 2"]), (64, 2, 32));
        assert_eq!(of(&[&quick, "dim = 128\nheads = 2", "dim = 96"]), (96, 2, 48));
        assert_eq!(of(&[&quick, "dim = 128\nheads = 2", "heads = 4"]), (128, 4, 32));
        assert_eq!(of(&[&quick, "dim = 128", "head-dim = 16"]), (128, 8, 16));
        assert_eq!(of(&[&quick, "dim = 90\nheads = 3\nhead-dim = 8", "heads = 5"]), (40, 5, 8));
        for (given, expected) in [
            ("dim = 90", "--dim: expected a multiple of --head-dim 32, got 90; set --heads or --head-dim too"),
            ("dim = 90\nheads = 4", "--heads: expected a divisor of --dim 90, got 4; set --head-dim too"),
            ("kv-heads = 3", "--kv-heads: expected a divisor of --heads 2, got 3"),
            ("head-dim = 7", "--head-dim: expected an even number for rotary positions, got 7"),
            (
                "dim = 90\nheads = 3\nhead-dim = 8\narchitecture = 'llama'",
                "--dim: expected --heads 3 times --head-dim 8, got 90; only qwen3 has heads of any width",
            ),
            (
                "heads = 'auto'\nhead-dim = 'auto'",
                "--heads, --head-dim, --dim: expected at least two of them, got auto for the others",
            ),
            ("layers = 5000", "--layers: expected at most 4096, got 5000"),
            ("dim = 16777216\nheads = 2", "--hidden: expected at most 16777216, got "),
        ] {
            let layers = [preset("quick").unwrap(), options::parse(given).unwrap()];
            let settings = Settings::merged(&layers.iter().collect::<Vec<_>>()).unwrap();
            let error = settings.check().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{given}: {error}");
        }
    }

    #[test]
    fn every_preset_is_valid_and_relative() {
        for (name, _) in PRESETS {
            let preset = preset(name).unwrap();
            let recipe = preset.to_string();
            settings(&[&recipe]).model_config(65, None).unwrap();
            for given in ["steps = 1", "steps = 100000", "lr = 1e-5", "heads = 8", "architecture = 'qwen3'\ntie = true"]
            {
                settings(&[&recipe, given]);
            }
            assert!(!preset.contains_key("dim") && !preset.contains_key("hidden"), "{name}");
        }
        for name in ["llama", "qwen3"] {
            let config = settings(&[&preset(name).unwrap().to_string()]).model_config(65, None).unwrap();
            assert_eq!((config.num_heads, config.kv_heads()), (4, 2), "{name}");
        }
    }

    #[test]
    fn paths_are_saved_as_absolute_ones() {
        let given = "texts = 'a.txt'\nvalidation = ['b', '/c']\ntokenizer = 'd.json'";
        let saved = settings(&[given]).absolute().unwrap();
        let here = std::env::current_dir().unwrap().to_str().unwrap().to_string();
        let at = |name: &str| Value::from(format!("{here}/{name}"));
        assert_eq!(saved["texts"], vec![at("a.txt")].into());
        assert_eq!(saved["validation"], vec![at("b"), "/c".into()].into());
        assert_eq!((&saved["tokenizer"], &saved["init"]), (&at("d.json"), &"".into()));
        let saved = settings(&["init = 'model'\ntexts = []"]).absolute().unwrap();
        assert_eq!((&saved["init"], &saved["texts"]), (&at("model"), &Value::Array(vec![])));
        // These only look like names of files.
        for choice in ["char", "byte", "bpe:300"] {
            assert_eq!(settings(&[&format!("tokenizer = '{choice}'")]).absolute().unwrap()["tokenizer"], choice.into());
        }
    }
}
