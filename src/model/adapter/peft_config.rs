//! `adapter_config.json`.

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use regex_automata::meta::Regex;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::sites;
use crate::host::file_names::ADAPTER_CONFIG;
use crate::host::{Error, Result, bail, input};
use crate::model::{Architecture, ModelConfig};
use crate::nn::LoraConfig;

/// What an adapter adds, and with which factor.
pub(super) struct PeftConfig {
    default: LoraConfig,
    use_rslora: bool,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

/// The keys that are read.
#[derive(Deserialize)]
struct Json {
    #[serde(default = "eight")]
    r: usize,
    #[serde(default = "eight")]
    lora_alpha: f64,
    use_rslora: Option<bool>,
    rank_pattern: Option<Pairs<usize>>,
    alpha_pattern: Option<Pairs<f64>>,
}

/// A JSON object in the order of the file: of several patterns that match, the first counts.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Vec<(String, T)>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of patterns")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                std::iter::from_fn(|| map.next_entry().transpose()).collect()
            }
        }

        deserializer.deserialize_map(InOrder(PhantomData)).map(Self)
    }
}

impl<T> Pairs<T> {
    fn compiled(self) -> Result<Vec<(Regex, T)>> {
        self.0.into_iter().map(|(name, value)| Ok((pattern(&name)?, value))).collect()
    }
}

/// PEFT's default of both.
fn eight<T: From<u8>>() -> T {
    8.into()
}

/// Keys that are read elsewhere or change nothing: which layers have an adapter follows from the tensors, as does the
/// orientation of weights from the architecture.
const WITHOUT_EFFECT: [&str; 24] = [
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    // Of the start of training.
    "eva_config",
    "init_lora_weights",
    "loftq_config",
    "corda_config",
    "lora_ga_config",
    // Of the backward pass.
    "velora_config",
];

impl PeftConfig {
    /// Reads that of a folder.
    ///
    /// # Errors
    /// If it is malformed, or asks for more than low-rank matrices on linear layers.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let path = input::inside(folder, ADAPTER_CONFIG)?;
        Self::parse(&input::read(&path, input::MAX_CONFIG_BYTES)?).map_err(|error| error.at(path.display()))
    }

    fn parse(json: &[u8]) -> Result<Self> {
        let malformed =
            |error: serde_json::Error| Error::Input(format!("not the configuration of an adapter: {error}"));
        let all: Map<String, Value> = serde_json::from_slice(json).map_err(malformed)?;
        check(&all)?;
        let json: Json = serde_json::from_slice(json).map_err(malformed)?;
        let ranks = json.rank_pattern.map_or(Ok(vec![]), Pairs::compiled)?;
        let alphas = json.alpha_pattern.map_or(Ok(vec![]), Pairs::compiled)?;
        if json.r == 0 || ranks.iter().any(|(_, rank)| *rank == 0) {
            bail!("expected a rank (r, rank_pattern) of at least 1, got 0");
        }
        let default = LoraConfig { rank: json.r, alpha: json.lora_alpha };
        Ok(Self { default, use_rslora: json.use_rslora.unwrap_or_default(), ranks, alphas })
    }

    /// The rank of the adapter of a layer, by the layer's name on disk, and the factor on its product.
    pub(super) fn of(&self, layer: &str) -> (usize, f64) {
        let rank = first(&self.ranks, layer).unwrap_or(self.default.rank);
        let alpha = first(&self.alphas, layer).unwrap_or(self.default.alpha);
        match self.use_rslora {
            true => (rank, alpha / (rank as f64).sqrt()),
            false => (rank, LoraConfig { rank, alpha }.scale()),
        }
    }
}

/// The value of the first pattern that matches.
fn first<T: Copy>(patterns: &[(Regex, T)], layer: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(layer)).map(|(_, value)| *value)
}

/// PEFT's rule: a pattern matches a name, or the end of one after a dot.
fn pattern(name: &str) -> Result<Regex> {
    match Regex::new(&format!(r"^(?:.*\.)?(?:{name})$")) {
        Ok(regex) => Ok(regex),
        Err(_) => bail!("rank_pattern, alpha_pattern: expected a regular expression, got {name:?}"),
    }
}

/// Refuses whatever changes the result beside the keys that are read.
fn check(all: &Map<String, Value>) -> Result<()> {
    let text = |name: &str| all.get(name).and_then(Value::as_str);
    if let Some(other) = text("peft_type").filter(|kind| *kind != "LORA") {
        bail!("expected an adapter of peft_type LORA, got {other}");
    }
    if let Some(bias) = text("bias").filter(|bias| *bias != "none") {
        bail!("bias {bias:?} is not supported: of an adapter (LoRA), only its matrices are read");
    }
    // These change the weights of the base model when the adapter is loaded.
    let init = text("init_lora_weights").filter(|init| !["gaussian", "eva", "orthogonal"].contains(init));
    if let Some(init) = init {
        bail!("init_lora_weights {init:?} is not supported: convert the adapter to plain LoRA with PEFT");
    }
    let read = ["r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"];
    let is_set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(all) => !all.is_empty(),
        Value::Object(all) => !all.is_empty(),
        _ => true,
    };
    let mut others = all.iter().filter(|(name, _)| !read.contains(&&***name) && !WITHOUT_EFFECT.contains(&&***name));
    match others.find(|(_, value)| is_set(value)) {
        Some((name, _)) => bail!("{name} is not supported: of an adapter (LoRA), only its matrices are read"),
        None => Ok(()),
    }
}

/// The size of the adapter of a run in this folder.
///
/// # Errors
/// Those of opening any adapter.
pub(crate) fn own_adapter(folder: &Path) -> Result<LoraConfig> {
    Ok(PeftConfig::open(folder)?.default)
}

/// The text of the `adapter_config.json` of adapters on all linear layers of the blocks of the model `base`, with the keys
/// that all versions of PEFT know.
///
/// # Errors
/// If the path is not UTF-8.
pub(crate) fn adapter_json(config: &ModelConfig, lora: &LoraConfig, base: &Path) -> Result<String> {
    let Some(base) = base.to_str() else { bail!("expected a path in UTF-8, got {}", base.display()) };
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_string();
    let mut targets: Vec<String> = sites(config).iter().map(|site| last(&site.on_disk)).collect();
    targets.sort_unstable();
    targets.dedup();
    let is_whole = lora.alpha.fract() == 0.0 && lora.alpha.abs() < i64::MAX as f64;
    let json = json!({
        "alpha_pattern": {},
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": config.architecture == Architecture::Gpt2,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": if is_whole { json!(lora.alpha as i64) } else { json!(lora.alpha) },
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {},
        "revision": null,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_rslora": false,
    });
    serde_json::to_string_pretty(&json).map_err(|error| Error::Input(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As PEFT, which takes the first pattern of the file that matches.
    #[test]
    fn of_several_patterns_the_first_in_the_file_counts() {
        let of = |patterns: &str| {
            let json = format!(r#"{{ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": {patterns} }}"#);
            PeftConfig::parse(json.as_bytes()).unwrap().of("model.layers.0.self_attn.q_proj")
        };
        assert_eq!(of(r#"{ "q_proj": 1, "layers.0.self_attn.q_proj": 400 }"#), (4, 0.25));
        assert_eq!(of(r#"{ "layers.0.self_attn.q_proj": 400, "q_proj": 1 }"#), (4, 100.0));
        assert_eq!(of(r#"{ "k_proj": 1 }"#), (4, 2.0));
    }

    #[test]
    fn a_rank_of_zero_is_refused() {
        for json in [r#"{ "r": 0 }"#, r#"{ "r": 4, "rank_pattern": { "q_proj": 0 } }"#] {
            let error = PeftConfig::parse(json.as_bytes()).err().unwrap().to_string();
            assert!(error.contains("at least 1, got 0"), "{error}");
        }
    }
}
