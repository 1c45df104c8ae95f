//! Sizes and options of the model, stored as Hugging Face's `config.json`.

use candle_core::{DType, Device};
use candle_nn::{Init, LayerNormConfig};
use serde::{Deserialize, Serialize};

use super::Architecture;
use crate::nn::{MultiHeadAttentionConfig, RotaryEmbedding, RotaryEmbeddingConfig, RotaryScaling};
use crate::ops::{Mask, Scale};

/// The activation function of the feed-forward network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Activation {
    /// The exact GELU; `gelu` in Hugging Face's files.
    #[default]
    #[serde(rename = "gelu", alias = "gelu_python")]
    GeluErf,
    /// The tanh approximation; `gelu_new` in Hugging Face's files, which have four more names for it. OpenAI's choice for
    /// GPT-2.
    #[serde(
        rename = "gelu_new",
        alias = "gelu_pytorch_tanh",
        alias = "gelu_python_tanh",
        alias = "gelu_fast",
        alias = "gelu_accurate"
    )]
    GeluTanh,
    /// `x sigmoid(1.702 x)`, an older approximation; `quick_gelu` in Hugging Face's files.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// The sigmoid linear unit; `silu` in Hugging Face's files.
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    /// `max(x, 0)`.
    #[serde(rename = "relu")]
    Relu,
}

/// Layers that look back only a few positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    /// How many positions a position sees there, itself included; `sliding_window` in Hugging Face's files.
    pub len: usize,
    /// For each layer, whether it is one of them.
    pub layers: Vec<bool>,
}

impl SlidingWindow {
    /// A window of `len` positions in the layers for which `layers` says so.
    pub fn new(len: usize, layers: Vec<bool>) -> Self {
        Self { len, layers }
    }
}

/// Dropout rates in training, in the places where GPT-2 has dropout; 0 by default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DropoutRates {
    /// Of the embeddings; `embd_pdrop` in Hugging Face's files.
    pub embedding: f64,
    /// Of the attention weights; `attn_pdrop`.
    pub attention: f64,
    /// Of the outputs of attention and feed-forward network, before they are added to the residual stream;
    /// `resid_pdrop`.
    pub residual: f64,
}

impl DropoutRates {
    /// The same rate everywhere.
    pub fn all(rate: f64) -> Self {
        Self { embedding: rate, attention: rate, residual: rate }
    }
}

/// How the projections into the residual stream (`o_proj`, `down_proj`) are initialised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResidualInit {
    /// As the others, with a standard deviation divided by sqrt(2L), because 2L of them add up (GPT-2's rule).
    #[default]
    Scaled,
    /// To zero: each block starts as the identity.
    Zero,
}

/// Sizes and options of a [`CausalLm`](super::CausalLm).
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The kind of its parts, and their names on disk.
    pub architecture: Architecture,
    /// Tokens in the vocabulary (V).
    pub vocab_size: usize,
    /// The maximum of positions the model sees at once.
    pub context_len: usize,
    /// Channels of the residual stream (C).
    pub embed_dim: usize,
    /// Blocks (L).
    pub num_layers: usize,
    /// Attention heads (H).
    pub num_heads: usize,
    /// Heads of keys and values (G), which must divide `num_heads`; by default `num_heads`.
    pub num_kv_heads: Option<usize>,
    /// Channels of a head (D); by default `embed_dim / num_heads`.
    pub head_dim: Option<usize>,
    /// Channels inside the feed-forward network (F).
    pub hidden_dim: usize,
    /// The activation function of the feed-forward network.
    pub activation: Activation,
    /// The term that the norms add to the variance.
    pub norm_eps: f64,
    /// The base of the frequencies of rotary positions.
    pub rope_theta: f64,
    /// How these frequencies are scaled for a longer context.
    pub rope_scaling: RotaryScaling,
    /// The layers that look back only a few positions, in `qwen3`.
    pub sliding_window: Option<SlidingWindow>,
    /// Whether attention scores are divided by the square root of the head's width, as everywhere but in some `gpt2`.
    pub scale_attn_weights: bool,
    /// Whether the scores of layer i, from 1, are also divided by i, as in some `gpt2`.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the attention projections have trainable biases; in `gpt2`, also the feed-forward network and the norms.
    pub bias: bool,
    /// Whether the feed-forward network has trainable biases: a separate choice in `llama` only.
    pub mlp_bias: bool,
    /// Whether the output projection is the token embedding.
    pub tie_embeddings: bool,
    /// The id of the token that begins a text, if there is one; `bos_token_id` in Hugging Face's files.
    pub begin_of_text_id: Option<u32>,
    /// The id of the token that ends a text, if there is one; the first `eos_token_id` in Hugging Face's files.
    pub end_of_text_id: Option<u32>,
    /// Further ids that end a generated text, as chat models have: the rest of `eos_token_id`.
    pub other_end_ids: Vec<u32>,
    /// Dropout in training.
    pub dropout: DropoutRates,
    /// The standard deviation of initial weights.
    pub init_stdev: f64,
    /// How the projections into the residual stream of a new model are initialised; not stored on disk.
    pub residual_init: ResidualInit,
}

/// The standard deviation of initial weights, GPT-2's.
pub(super) const INIT_STDEV: f64 = 0.02;

/// The base of rotary positions in the original paper (Su et al. 2021, arXiv:2104.09864).
pub(super) const ROPE_THETA: f64 = 10_000.0;

impl ModelConfig {
    /// nanoGPT's default, a GPT-2 without biases and with the exact GELU, in the sizes of its CPU recipe: 4 layers, 4
    /// heads, 128 channels, 64 positions.
    pub fn gpt2(vocab_size: usize) -> Self {
        Self {
            architecture: Architecture::Gpt2,
            vocab_size,
            context_len: 64,
            embed_dim: 128,
            num_layers: 4,
            num_heads: 4,
            num_kv_heads: None,
            head_dim: None,
            hidden_dim: 512,
            activation: Activation::GeluErf,
            norm_eps: 1e-5,
            rope_theta: ROPE_THETA,
            rope_scaling: RotaryScaling::None,
            sliding_window: None,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            bias: false,
            mlp_bias: false,
            tie_embeddings: true,
            begin_of_text_id: None,
            end_of_text_id: None,
            other_end_ids: Vec::new(),
            dropout: DropoutRates::default(),
            init_stdev: INIT_STDEV,
            residual_init: ResidualInit::Scaled,
        }
    }

    /// A llama of about the size of [`ModelConfig::gpt2`]: the gated feed-forward network is narrower.
    pub fn llama(vocab_size: usize) -> Self {
        let (gpt2, architecture) = (Self::gpt2(vocab_size), Architecture::Llama);
        Self {
            architecture,
            hidden_dim: architecture.usual_hidden_dim(gpt2.embed_dim),
            activation: Activation::Silu,
            norm_eps: 1e-6,
            ..gpt2
        }
    }

    /// A Qwen3 with the sizes of [`ModelConfig::llama`].
    pub fn qwen3(vocab_size: usize) -> Self {
        Self { architecture: Architecture::Qwen3, ..Self::llama(vocab_size) }
    }

    /// [`ModelConfig::gpt2`], [`ModelConfig::llama`] or [`ModelConfig::qwen3`].
    pub fn of(architecture: Architecture, vocab_size: usize) -> Self {
        match architecture {
            Architecture::Gpt2 => Self::gpt2(vocab_size),
            Architecture::Llama => Self::llama(vocab_size),
            Architecture::Qwen3 => Self::qwen3(vocab_size),
        }
    }

    /// Whether this id ends a generated text.
    pub fn ends_text(&self, id: u32) -> bool {
        self.end_ids().any(|end| end == id)
    }

    /// All ids that end a generated text.
    pub fn end_ids(&self) -> impl Iterator<Item = u32> {
        self.end_of_text_id.iter().chain(&self.other_end_ids).copied()
    }

    /// Heads of keys and values (G).
    pub fn kv_heads(&self) -> usize {
        self.num_kv_heads.unwrap_or(self.num_heads)
    }

    /// Channels of a head (D).
    pub fn head_channels(&self) -> usize {
        self.head_dim.unwrap_or(self.embed_dim / self.num_heads.max(1))
    }

    /// The initialisation of weights that do not project into the residual stream.
    pub(super) fn init(&self) -> Init {
        Init::Randn { mean: 0.0, stdev: self.init_stdev }
    }

    /// The initialisation of weights that do.
    pub(super) fn residual_init(&self) -> Init {
        match self.residual_init {
            ResidualInit::Scaled => {
                Init::Randn { mean: 0.0, stdev: self.init_stdev / (2.0 * self.num_layers as f64).sqrt() }
            }
            ResidualInit::Zero => Init::Const(0.0),
        }
    }

    /// The norms before attention, MLP and head.
    pub(super) fn norm(&self) -> LayerNormConfig {
        let is_gpt2 = self.architecture == Architecture::Gpt2;
        LayerNormConfig { remove_mean: is_gpt2, affine: is_gpt2 && self.bias, eps: self.norm_eps }
    }

    /// Whether the projections of the feed-forward network have biases.
    pub(super) fn has_mlp_biases(&self) -> bool {
        if self.architecture == Architecture::Gpt2 { self.bias } else { self.mlp_bias }
    }

    /// Rotary positions for heads of this size, if the architecture has them.
    pub(super) fn rotary(&self, dtype: DType, device: &Device) -> candle_core::Result<Option<RotaryEmbedding>> {
        if !self.architecture.is_rotary() {
            return Ok(None);
        }
        let config = RotaryEmbeddingConfig {
            theta: self.rope_theta,
            scaling: self.rope_scaling,
            ..RotaryEmbeddingConfig::new(self.head_channels(), self.context_len)
        };
        RotaryEmbedding::new(&config, dtype, device).map(Some)
    }

    /// The positions that a position of layer `i` sees, itself included, if not all.
    pub(super) fn window(&self, i: usize) -> Option<usize> {
        let SlidingWindow { len, layers } = self.sliding_window.as_ref()?;
        layers.get(i).is_some_and(|slides| *slides).then_some(*len)
    }

    /// The factor on the dot products of queries and keys in block `i`.
    pub(crate) fn attention_scale(&self, i: usize) -> f64 {
        let root = if self.scale_attn_weights { (self.head_channels() as f64).sqrt() } else { 1.0 };
        let layer = if self.scale_attn_by_inverse_layer_idx { (i + 1) as f64 } else { 1.0 };
        1.0 / (root * layer)
    }

    /// The attention of block `i`; all share one `rotary`.
    pub(super) fn attention(&self, i: usize, rotary: Option<&RotaryEmbedding>) -> MultiHeadAttentionConfig {
        MultiHeadAttentionConfig {
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            bias: self.bias,
            output_bias: self.bias,
            scale: Scale::Value(self.attention_scale(i)),
            mask: self.window(i).map_or_else(Mask::causal, Mask::window),
            rotary: rotary.cloned(),
            qk_norm_eps: self.architecture.has_qk_norm().then_some(self.norm_eps),
            init: Some(self.init()),
            output_init: Some(self.residual_init()),
            ..MultiHeadAttentionConfig::new(self.embed_dim, self.num_heads)
        }
    }
}
