//! `config.json` of a `llama` or a `qwen3`, which differ in a few keys.

use serde::{Deserialize, Serialize};

use super::rope::{Outside, Rope};
use super::special_ids::{EndIds, is_known};
use super::{Activation, default_stdev, float32, present};
use crate::host::{Result, bail};
use crate::model::Architecture;
use crate::model::SlidingWindow;
use crate::model::config::{DropoutRates, ModelConfig};
use crate::nn::RotaryScaling;

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
    #[serde(default)]
    vocab_size: Option<usize>,
    #[serde(default)]
    max_position_embeddings: Option<usize>,
    #[serde(default = "default_hidden")]
    hidden_size: usize,
    #[serde(default)]
    intermediate_size: Option<usize>,
    #[serde(default = "default_layers")]
    num_hidden_layers: usize,
    #[serde(default = "default_layers")]
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope_scaling: Option<Rope>,
    #[serde(default, skip_serializing)]
    original_max_position_embeddings: Option<usize>,
    #[serde(default, skip_serializing)]
    partial_rotary_factor: Option<f64>,
    #[serde(flatten, skip_deserializing)]
    windows: Option<Windows>,
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

/// Which layers of a qwen3 look back only a few positions.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Windows {
    use_sliding_window: bool,
    // An absent key means something else than null.
    #[serde(deserialize_with = "present")]
    sliding_window: Option<Option<usize>>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
}

impl Windows {
    const FULL: &str = "full_attention";
    const SLIDING: &str = "sliding_attention";

    fn of(config: &ModelConfig) -> Self {
        let window = config.sliding_window.as_ref();
        let kind = |i| if config.window(i).is_some() { Self::SLIDING } else { Self::FULL };
        Self {
            use_sliding_window: window.is_some(),
            sliding_window: Some(window.map(|window| window.len)),
            // The layers before the first that slides, as far as a number can say.
            max_window_layers: Some((0..config.num_layers).take_while(|i| config.window(*i).is_none()).count()),
            layer_types: Some((0..config.num_layers).map(|i| kind(i).to_string()).collect()),
        }
    }

    fn read(self, num_layers: usize) -> Result<Option<SlidingWindow>> {
        const WINDOW: usize = 4096;
        const FIRST_FULL: usize = 28;
        let len = if self.use_sliding_window { self.sliding_window.unwrap_or(Some(WINDOW)) } else { None };
        let first = self.max_window_layers.unwrap_or(FIRST_FULL);
        let Some(types) = self.layer_types else {
            // Not more layers than a model may have.
            let layers = (0..num_layers.min(ModelConfig::MAX_LAYERS)).map(|i| i >= first).collect::<Vec<_>>();
            return Ok(len.filter(|_| layers.contains(&true)).map(|len| SlidingWindow::new(len, layers)));
        };
        if types.len() != num_layers {
            bail!("expected as many layer_types as num_hidden_layers {num_layers}, got {}", types.len());
        }
        if let Some(other) = types.iter().find(|kind| ![Self::FULL, Self::SLIDING].contains(&kind.as_str())) {
            bail!("expected only {} and {} in layer_types, got {other}", Self::FULL, Self::SLIDING);
        }
        let layers: Vec<bool> = types.iter().map(|kind| kind == Self::SLIDING).collect();
        match (layers.contains(&true), len) {
            (true, None) => bail!("expected use_sliding_window true with {} in layer_types, got false", Self::SLIDING),
            (true, Some(len)) => Ok(Some(SlidingWindow::new(len, layers))),
            (false, _) => Ok(None),
        }
    }
}

fn default_hidden() -> usize {
    4096
}

/// Of layers and of heads.
fn default_layers() -> usize {
    32
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
            vocab_size: Some(config.vocab_size),
            max_position_embeddings: Some(config.context_len),
            hidden_size: config.embed_dim,
            intermediate_size: Some(config.hidden_dim),
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
            rope_parameters: Some(Rope::of(config)),
            rope_theta: Some(config.rope_theta),
            // Where versions before transformers 5 look for it.
            rope_scaling: (config.rope_scaling != RotaryScaling::None).then(|| Rope::of(config)),
            original_max_position_embeddings: None,
            partial_rotary_factor: None,
            windows: (!is_llama).then(|| Windows::of(config)),
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
        self.vocab_size.get_or_insert(32_000);
        self.max_position_embeddings.get_or_insert(2048);
        self.intermediate_size.get_or_insert(11_008);
        self.bos_token_id.get_or_insert(Some(LLAMA_BEGIN));
        self.eos_token_id.get_or_insert(Some(EndIds::One(LLAMA_END)));
        Ok(ModelConfig { architecture: Architecture::Llama, mlp_bias, ..self.into_config()? })
    }

    pub(super) fn into_qwen3(mut self, windows: Windows) -> Result<ModelConfig> {
        let sliding_window = windows.read(self.num_hidden_layers)?;
        self.vocab_size.get_or_insert(151_936);
        self.max_position_embeddings.get_or_insert(32_768);
        self.intermediate_size.get_or_insert(22_016);
        self.num_key_value_heads.get_or_insert(Some(QWEN3_KV_HEADS));
        self.head_dim.get_or_insert(QWEN3_HEAD_DIM);
        Ok(ModelConfig { architecture: Architecture::Qwen3, sliding_window, ..self.into_config()? })
    }

    /// What the two have in common.
    fn into_config(self) -> Result<ModelConfig> {
        let [vocab_size, context_len, hidden_dim] =
            [self.vocab_size, self.max_position_embeddings, self.intermediate_size].map(Option::unwrap_or_default);
        let outside = Outside {
            rope_theta: self.rope_theta,
            max_position_embeddings: context_len,
            original_max_position_embeddings: self.original_max_position_embeddings,
            partial_rotary_factor: self.partial_rotary_factor,
        };
        let (rope_theta, rope_scaling) =
            self.rope_scaling.or(self.rope_parameters).unwrap_or_default().read(&outside)?;
        let (end_of_text_id, other_end_ids) = EndIds::known(self.eos_token_id.flatten(), vocab_size);
        let (h, c) = (self.num_attention_heads, self.hidden_size);
        Ok(ModelConfig {
            context_len,
            embed_dim: c,
            num_layers: self.num_hidden_layers,
            num_heads: h,
            num_kv_heads: self.num_key_value_heads.flatten().filter(|&g| g != h),
            head_dim: self.head_dim.filter(|d| d.checked_mul(h) != Some(c)),
            hidden_dim,
            activation: self.hidden_act,
            norm_eps: self.rms_norm_eps,
            rope_theta,
            rope_scaling,
            bias: self.attention_bias,
            tie_embeddings: self.tie_word_embeddings,
            begin_of_text_id: self.bos_token_id.flatten().filter(|id| is_known(*id, vocab_size)),
            end_of_text_id,
            other_end_ids,
            dropout: DropoutRates {
                embedding: self.embd_pdrop,
                attention: self.attention_dropout.unwrap_or(0.0),
                residual: self.resid_pdrop,
            },
            init_stdev: self.initializer_range,
            ..ModelConfig::llama(vocab_size)
        })
    }
}
