//! Sizes and options of the model, and their form on disk, Hugging Face's `config.json`.

use std::path::Path;

use candle_core::{Result, bail};
use candle_nn::{Init, LayerNormConfig};
use serde::{Deserialize, Serialize};

use super::gpt2_json;
use crate::errors::bare;
use crate::nn::CausalSelfAttentionConfig;
use crate::ops::Scale;
use crate::{input, memory};

/// The nonlinearity of the feed-forward network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// The exact GELU; `gelu` in Hugging Face's files.
    #[default]
    #[serde(rename = "gelu")]
    GeluErf,
    /// The tanh approximation; `gelu_new` in Hugging Face's files, OpenAI's choice for GPT-2.
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh")]
    GeluTanh,
}

/// The shares of elements that are dropped in training, where GPT-2 does so; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DropoutRates {
    /// Of the embeddings; `embd_pdrop` in Hugging Face's files.
    pub embedding: f64,
    /// Of the attention weights; `attn_pdrop`.
    pub attention: f64,
    /// Of what attention and feed-forward network add to the residual stream; `resid_pdrop`.
    pub residual: f64,
}

impl DropoutRates {
    /// One rate everywhere.
    pub fn all(rate: f64) -> Self {
        Self { embedding: rate, attention: rate, residual: rate }
    }
}

/// Sizes and options of a [`CausalLm`](super::CausalLm).
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Tokens of the vocabulary (V).
    pub vocab_size: usize,
    /// The most positions the model sees at once.
    pub context_len: usize,
    /// Channels of the residual stream (C).
    pub embed_dim: usize,
    /// Blocks (L).
    pub num_layers: usize,
    /// Attention heads (H); they divide `embed_dim`.
    pub num_heads: usize,
    /// Channels inside the feed-forward network (F).
    pub hidden_dim: usize,
    /// The nonlinearity of the feed-forward network.
    pub activation: Activation,
    /// What the norms add to the variance.
    pub norm_eps: f64,
    /// Whether projections and norms have trainable biases.
    pub bias: bool,
    /// Whether the output projection is the token embedding.
    pub tie_embeddings: bool,
    /// The id of the end-of-text token, where the vocabulary has one.
    pub end_of_text_id: Option<u32>,
    /// What training drops.
    pub dropout: DropoutRates,
}

/// The standard deviation of initial weights, GPT-2's.
pub(super) const INIT_STDEV: f64 = 0.02;

impl ModelConfig {
    /// nanoGPT's default, a GPT-2 without biases and with the exact GELU, at the sizes of its recipe for the CPU:
    /// 4 layers, 4 heads, 128 channels, 64 positions.
    pub fn gpt2(vocab_size: usize) -> Self {
        Self {
            vocab_size,
            context_len: 64,
            embed_dim: 128,
            num_layers: 4,
            num_heads: 4,
            hidden_dim: 512,
            activation: Activation::GeluErf,
            norm_eps: 1e-5,
            bias: false,
            tie_embeddings: true,
            end_of_text_id: None,
            dropout: DropoutRates::default(),
        }
    }

    /// Refuses sizes that make no model.
    ///
    /// # Errors
    /// Naming the sizes that are 0 or do not go together.
    pub fn validate(&self) -> Result<()> {
        // The limits lie far above any model, and low enough that a count of parameters stays within 64 bits.
        // With one token there is nothing to predict, and the norm of one channel is zero.
        for (name, size, least, most) in [
            ("vocab_size", self.vocab_size, 2, 1 << 24),
            ("context_len", self.context_len, 1, 1 << 24),
            ("embed_dim", self.embed_dim, 2, 1 << 24),
            ("num_layers", self.num_layers, 1, 1 << 12),
            ("num_heads", self.num_heads, 1, 1 << 24),
            ("hidden_dim", self.hidden_dim, 1, 1 << 24),
        ] {
            if size < least || size > most {
                bail!("model config: expected {name} between {least} and {most}, got {size}");
            }
        }
        if !self.embed_dim.is_multiple_of(self.num_heads) {
            bail!(
                "model config: expected num_heads to divide embed_dim, got num_heads {} and embed_dim {}",
                self.num_heads,
                self.embed_dim
            );
        }
        // Of the numbers that `f32` holds, in which the model computes.
        let norm_eps = self.norm_eps as f32;
        if !(norm_eps.is_finite() && norm_eps > 0.0) {
            bail!("model config: expected norm_eps above 0, got {}", self.norm_eps);
        }
        let DropoutRates { embedding, attention, residual } = self.dropout;
        for (name, rate) in [("embedding", embedding), ("attention", attention), ("residual", residual)] {
            if !(0.0..1.0).contains(&rate) {
                bail!("model config: expected {name} dropout from 0 to below 1, got {rate}");
            }
        }
        match self.end_of_text_id {
            Some(id) if id as usize >= self.vocab_size => {
                bail!("model config: expected an end-of-text id below vocab_size {}, got {id}", self.vocab_size)
            }
            _ => Ok(()),
        }
    }

    /// The initial values of weights that do not write into the residual stream.
    pub(super) fn init(&self) -> Init {
        Init::Randn { mean: 0.0, stdev: INIT_STDEV }
    }

    /// The initial values of weights that do: 2L of them add up, so each is smaller by sqrt(2L) (GPT-2's rule).
    pub(super) fn residual_init(&self) -> Init {
        Init::Randn { mean: 0.0, stdev: INIT_STDEV / (2.0 * self.num_layers as f64).sqrt() }
    }

    /// The norms in front of attention, MLP and head.
    pub(super) fn norm(&self) -> LayerNormConfig {
        LayerNormConfig { affine: self.bias, ..self.norm_eps.into() }
    }

    /// The attention inside each block.
    pub(super) fn attention(&self) -> CausalSelfAttentionConfig {
        CausalSelfAttentionConfig {
            bias: self.bias,
            scale: Scale::InverseSqrt,
            init: self.init(),
            output_init: self.residual_init(),
            ..CausalSelfAttentionConfig::new(self.embed_dim, self.num_heads)
        }
    }

    /// Names and shapes of all trainable tensors, in the order of a pass through the model.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let &Self { vocab_size: v, context_len, embed_dim: c, hidden_dim: f, .. } = self;
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize]| {
            all.push((format!("{name}.weight"), shape.to_vec()));
            let has_bias = self.bias && !name.ends_with("embedding") && name != "head";
            if has_bias {
                all.push((format!("{name}.bias"), vec![shape[0]]));
            }
        };
        add("token_embedding".into(), &[v, c]);
        add("position_embedding".into(), &[context_len, c]);
        for i in 0..self.num_layers {
            add(format!("blocks.{i}.attention_norm"), &[c]);
            for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                add(format!("blocks.{i}.attention.{name}"), &[c, c]);
            }
            add(format!("blocks.{i}.mlp_norm"), &[c]);
            add(format!("blocks.{i}.mlp.up_proj"), &[f, c]);
            add(format!("blocks.{i}.mlp.down_proj"), &[c, f]);
        }
        add("norm".into(), &[c]);
        if !self.tie_embeddings {
            add("head".into(), &[v, c]);
        }
        all
    }

    /// The number of trainable scalars.
    pub fn parameter_count(&self) -> usize {
        self.parameters().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Bytes of the trainable scalars in `f32`, unless there are more than a number holds.
    pub(super) fn parameter_bytes(&self) -> Option<usize> {
        let bytes = |(_, shape): &(String, Vec<usize>)| memory::tensor_bytes(shape, size_of::<f32>());
        self.parameters().iter().try_fold(0, |sum: usize, tensor| sum.checked_add(bytes(tensor)?))
    }

    /// The parameters whose gradient is zero whatever the data, with the reason.
    pub fn zero_gradient_parameters(&self) -> Vec<(String, &'static str)> {
        const KEY_BIAS: &str =
            "without rotary positions it adds the same to all scores of a query, and the softmax does not change";
        const ONE_POSITION: &str = "with one position there is one weight, always 1";
        self.parameters()
            .into_iter()
            .filter_map(|(name, _)| match name.rsplit_once(".attention.")?.1 {
                "q_proj.weight" | "q_proj.bias" | "k_proj.weight" if self.context_len == 1 => {
                    Some((name, ONE_POSITION))
                }
                "k_proj.bias" => Some((name, KEY_BIAS)),
                _ => None,
            })
            .collect()
    }

    /// From the `config.json` in a model folder.
    ///
    /// # Errors
    /// If there is none, and those of [`ModelConfig::from_json`].
    pub fn open(folder: &Path) -> Result<Self> {
        let path = input::inside(folder, "config.json")?;
        match Self::from_json(&input::read(&path, input::MOST_CONFIG_BYTES)?) {
            Err(error) => bail!("{}: {}", path.display(), bare(&error)),
            config => config,
        }
    }

    /// From the text of a `config.json`.
    ///
    /// # Errors
    /// If it is not JSON of `model_type` `gpt2`, or asks for what this crate does not compute.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        gpt2_json::parse(json)
    }

    /// The text of the `config.json` of this model.
    ///
    /// # Errors
    /// If a number has no form in JSON.
    pub fn to_json(&self) -> Result<String> {
        gpt2_json::print(self)
    }

    /// The text of the `generation_config.json` of this model.
    ///
    /// # Errors
    /// None in practice: the ids have a form in JSON.
    pub fn generation_json(&self) -> Result<String> {
        gpt2_json::print_generation(self)
    }
}
