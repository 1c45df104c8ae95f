//! `config.json` of a `gpt2`.

use serde::{Deserialize, Serialize};

use super::special_ids::{EndIds, is_known};
use super::{Activation, default_stdev, default_true, float32};
use crate::host::{Result, bail};
use crate::model::config::{DropoutRates, ModelConfig};

/// The id that begins and ends a text where the file has no such key.
const END_OF_TEXT: u32 = 50256;

/// Hugging Face's `config.json` of a GPT-2, with its defaults for absent keys.
#[derive(Serialize, Deserialize)]
pub(super) struct Gpt2Json {
    model_type: String,
    // Not read: a file may say null.
    #[serde(skip_deserializing)]
    architectures: Vec<String>,
    #[serde(default = "default_vocab")]
    vocab_size: usize,
    #[serde(default = "default_positions")]
    n_positions: usize,
    // What some readers look for instead.
    #[serde(skip_deserializing)]
    n_ctx: usize,
    #[serde(default = "default_embd")]
    n_embd: usize,
    #[serde(default = "default_layers")]
    n_layer: usize,
    #[serde(default = "default_layers")]
    n_head: usize,
    #[serde(default)]
    n_inner: Option<usize>,
    #[serde(default = "gelu_new")]
    activation_function: Activation,
    #[serde(default = "default_eps")]
    layer_norm_epsilon: f64,
    #[serde(default = "default_stdev")]
    initializer_range: f64,
    // Not a key of Hugging Face, whose GPT-2 always has biases. False keeps the zeros on disk untrained.
    #[serde(default = "default_true")]
    bias: bool,
    #[serde(default = "default_true")]
    tie_word_embeddings: bool,
    #[serde(default = "default_true")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default)]
    add_cross_attention: bool,
    #[serde(default = "default_dropout")]
    attn_pdrop: f64,
    #[serde(default = "default_dropout")]
    embd_pdrop: f64,
    #[serde(default = "default_dropout")]
    resid_pdrop: f64,
    #[serde(default = "default_begin")]
    bos_token_id: Option<u32>,
    #[serde(default = "default_end")]
    eos_token_id: Option<EndIds>,
    #[serde(skip_deserializing)]
    dtype: String,
}

fn default_vocab() -> usize {
    50257
}

fn default_positions() -> usize {
    1024
}

fn default_embd() -> usize {
    768
}

/// Of layers and of heads.
fn default_layers() -> usize {
    12
}

fn gelu_new() -> Activation {
    Activation::GeluTanh
}

fn default_eps() -> f64 {
    1e-5
}

fn default_dropout() -> f64 {
    0.1
}

fn default_begin() -> Option<u32> {
    Some(END_OF_TEXT)
}

fn default_end() -> Option<EndIds> {
    Some(EndIds::One(END_OF_TEXT))
}

impl From<&ModelConfig> for Gpt2Json {
    fn from(config: &ModelConfig) -> Self {
        Self {
            model_type: "gpt2".into(),
            architectures: vec![config.architecture.class_name().into()],
            vocab_size: config.vocab_size,
            n_positions: config.context_len,
            n_ctx: config.context_len,
            n_embd: config.embed_dim,
            n_layer: config.num_layers,
            n_head: config.num_heads,
            n_inner: Some(config.hidden_dim),
            activation_function: config.activation,
            layer_norm_epsilon: config.norm_eps,
            initializer_range: config.init_stdev,
            bias: config.bias,
            tie_word_embeddings: config.tie_embeddings,
            scale_attn_weights: config.scale_attn_weights,
            scale_attn_by_inverse_layer_idx: config.scale_attn_by_inverse_layer_idx,
            add_cross_attention: false,
            attn_pdrop: config.dropout.attention,
            embd_pdrop: config.dropout.embedding,
            resid_pdrop: config.dropout.residual,
            bos_token_id: config.begin_of_text_id,
            eos_token_id: EndIds::of(config),
            dtype: float32(),
        }
    }
}

impl Gpt2Json {
    pub(super) fn into_config(self) -> Result<ModelConfig> {
        if self.add_cross_attention {
            bail!("expected add_cross_attention false, got true");
        }
        let (end_of_text_id, other_end_ids) = EndIds::known(self.eos_token_id, self.vocab_size);
        Ok(ModelConfig {
            context_len: self.n_positions,
            embed_dim: self.n_embd,
            num_layers: self.n_layer,
            num_heads: self.n_head,
            hidden_dim: self.n_inner.unwrap_or(self.n_embd.saturating_mul(4)),
            activation: self.activation_function,
            norm_eps: self.layer_norm_epsilon,
            scale_attn_weights: self.scale_attn_weights,
            scale_attn_by_inverse_layer_idx: self.scale_attn_by_inverse_layer_idx,
            bias: self.bias,
            tie_embeddings: self.tie_word_embeddings,
            dropout: DropoutRates {
                embedding: self.embd_pdrop,
                attention: self.attn_pdrop,
                residual: self.resid_pdrop,
            },
            begin_of_text_id: self.bos_token_id.filter(|id| is_known(*id, self.vocab_size)),
            end_of_text_id,
            other_end_ids,
            init_stdev: self.initializer_range,
            ..ModelConfig::gpt2(self.vocab_size)
        })
    }
}
