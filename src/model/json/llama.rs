//! `config.json` of a `llama` or a `qwen3`, which differ in a few keys.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::special_ids::{EndIds, is_known};
use super::{Activation, default_stdev, float32, present};
use crate::host::{Result, bail};
use crate::model::Architecture;
use crate::model::config::{DropoutRates, ModelConfig, ROPE_THETA};

/// Hugging Face's values for keys that a qwen3's file lacks: heads of keys and values, and the width of a head.
const QWEN3_KV_HEADS: usize = 32;
const QWEN3_HEAD_DIM: usize = 128;

/// The ids that begin and end a text where a llama's file has no such keys. Qwen3 then has none.
const LLAMA_BEGIN: u32 = 1;
const LLAMA_END: u32 = 2;

/// Hugging Face's `config.json` of a llama or a qwen3, with its defaults for absent keys.
#[derive(Serialize, Deserialize)]
pub(super) struct LlamaJson {
    model_type: String,
    // Not read: a file may say null.
    #[serde(skip_deserializing)]
    architectures: Vec<String>,
    vocab_size: usize,
    max_position_embeddings: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    // In a qwen3, an absent key means something else than null.
    #[serde(default, deserialize_with = "present")]
    num_key_value_heads: Option<Option<usize>>,
    #[serde(default)]
    head_dim: Option<usize>,
    #[serde(default = "silu")]
    hidden_act: Activation,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default = "default_stdev")]
    initializer_range: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mlp_bias: Option<bool>,
    #[serde(default)]
    rope_parameters: Option<Rope>,
    // Where versions before transformers 5 look for the base of the angles.
    #[serde(default)]
    rope_theta: Option<f64>,
    #[serde(default, skip_serializing)]
    rope_scaling: Option<Rope>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    use_sliding_window: Option<bool>,
    #[serde(default, skip_serializing)]
    layer_types: Option<Vec<String>>,
    #[serde(default)]
    attention_dropout: Option<f64>,
    // Not keys of Hugging Face, which drops attention weights only.
    #[serde(default)]
    embd_pdrop: f64,
    #[serde(default)]
    resid_pdrop: f64,
    // In a llama, an absent key means something else than null.
    #[serde(default, deserialize_with = "present")]
    bos_token_id: Option<Option<u32>>,
    #[serde(default, deserialize_with = "present")]
    eos_token_id: Option<Option<EndIds>>,
    #[serde(skip_deserializing)]
    dtype: String,
}

/// How positions become angles.
#[derive(Serialize, Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    #[serde(rename = "type", skip_serializing)]
    old_type: Option<String>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

fn silu() -> Activation {
    Activation::Silu
}

fn default_eps() -> f64 {
    1e-6
}

impl From<&ModelConfig> for LlamaJson {
    fn from(config: &ModelConfig) -> Self {
        let is_llama = config.architecture == Architecture::Llama;
        Self {
            model_type: config.architecture.model_type().into(),
            architectures: vec![config.architecture.class_name().into()],
            vocab_size: config.vocab_size,
            max_position_embeddings: config.context_len,
            hidden_size: config.embed_dim,
            intermediate_size: config.hidden_dim,
            num_hidden_layers: config.num_layers,
            num_attention_heads: config.num_heads,
            num_key_value_heads: Some(Some(config.kv_heads())),
            head_dim: Some(config.head_channels()),
            hidden_act: config.activation,
            rms_norm_eps: config.norm_eps,
            initializer_range: config.init_stdev,
            tie_word_embeddings: config.tie_embeddings,
            attention_bias: config.bias,
            mlp_bias: is_llama.then_some(config.mlp_bias),
            rope_parameters: Some(Rope {
                rope_theta: Some(config.rope_theta),
                rope_type: Some("default".into()),
                old_type: None,
                others: Map::new(),
            }),
            rope_theta: Some(config.rope_theta),
            rope_scaling: None,
            use_sliding_window: (!is_llama).then_some(false),
            layer_types: None,
            attention_dropout: Some(config.dropout.attention),
            embd_pdrop: config.dropout.embedding,
            resid_pdrop: config.dropout.residual,
            bos_token_id: Some(config.begin_of_text_id),
            eos_token_id: Some(EndIds::of(config)),
            dtype: float32(),
        }
    }
}

impl LlamaJson {
    pub(super) fn into_llama(mut self) -> Result<ModelConfig> {
        let mlp_bias = self.mlp_bias.unwrap_or(false);
        self.bos_token_id.get_or_insert(Some(LLAMA_BEGIN));
        self.eos_token_id.get_or_insert(Some(EndIds::One(LLAMA_END)));
        Ok(ModelConfig { architecture: Architecture::Llama, mlp_bias, ..self.into_config()? })
    }

    pub(super) fn into_qwen3(mut self) -> Result<ModelConfig> {
        if self.use_sliding_window == Some(true) {
            bail!("expected use_sliding_window false, got true");
        }
        if let Some(other) = self.layer_types.iter().flatten().find(|kind| *kind != "full_attention") {
            bail!("expected only full_attention in layer_types, got {other}");
        }
        self.num_key_value_heads.get_or_insert(Some(QWEN3_KV_HEADS));
        self.head_dim.get_or_insert(QWEN3_HEAD_DIM);
        Ok(ModelConfig { architecture: Architecture::Qwen3, ..self.into_config()? })
    }

    /// What the two have in common.
    fn into_config(self) -> Result<ModelConfig> {
        let rope_theta = self.rope_theta()?;
        let (end_of_text_id, other_end_ids) = EndIds::known(self.eos_token_id.flatten(), self.vocab_size);
        let (h, c) = (self.num_attention_heads, self.hidden_size);
        Ok(ModelConfig {
            context_len: self.max_position_embeddings,
            embed_dim: c,
            num_layers: self.num_hidden_layers,
            num_heads: h,
            num_kv_heads: self.num_key_value_heads.flatten().filter(|&g| g != h),
            head_dim: self.head_dim.filter(|d| d.checked_mul(h) != Some(c)),
            hidden_dim: self.intermediate_size,
            activation: self.hidden_act,
            norm_eps: self.rms_norm_eps,
            rope_theta,
            bias: self.attention_bias,
            tie_embeddings: self.tie_word_embeddings,
            begin_of_text_id: self.bos_token_id.flatten().filter(|id| is_known(*id, self.vocab_size)),
            end_of_text_id,
            other_end_ids,
            dropout: DropoutRates {
                embedding: self.embd_pdrop,
                attention: self.attention_dropout.unwrap_or(0.0),
                residual: self.resid_pdrop,
            },
            init_stdev: self.initializer_range,
            ..ModelConfig::llama(self.vocab_size)
        })
    }

    /// The base of the angles; an error if they are of another kind than the original one.
    fn rope_theta(&self) -> Result<f64> {
        let rope = match (&self.rope_parameters, &self.rope_scaling) {
            (Some(_), Some(_)) => bail!("expected rope_parameters or rope_scaling, got both"),
            (Some(rope), None) | (None, Some(rope)) => rope,
            (None, None) => return Ok(self.rope_theta.unwrap_or(ROPE_THETA)),
        };
        match rope.rope_type.as_ref().or(rope.old_type.as_ref()) {
            Some(other) if other != "default" => bail!("expected rope_type default, got {other}"),
            _ => {}
        }
        if let Some((name, value)) = rope.others.iter().next() {
            bail!("expected only rope_theta and rope_type for angles of the default type, got {name} {value}");
        }
        Ok(rope.rope_theta.or(self.rope_theta).unwrap_or(ROPE_THETA))
    }
}
