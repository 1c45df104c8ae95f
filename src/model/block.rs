//! One block of the decoder: attention and a feed-forward network, each behind a norm and beside a shortcut.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::{Activation, ModelConfig};
use crate::nn::{CausalSelfAttention, KvCache, LayerNorm, Linear, layer_norm, linear_with};
use crate::ops::{self, record};

/// `x + attention(norm(x))`, then `x + mlp(norm(x))` (the pre-norm order of GPT-2).
#[derive(Clone, Debug)]
pub(super) struct Block {
    attention_norm: LayerNorm,
    attention: CausalSelfAttention,
    mlp_norm: LayerNorm,
    mlp: Mlp,
}

impl Block {
    pub(super) fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let norm = |name| layer_norm(config.embed_dim, config.norm(), vb.pp(name));
        Ok(Self {
            attention_norm: norm("attention_norm")?,
            attention: CausalSelfAttention::new(&config.attention(), vb.pp("attention"))?,
            mlp_norm: norm("mlp_norm")?,
            mlp: Mlp::new(config, vb.pp("mlp"))?,
        })
    }

    /// The output at the next positions of a text, of which the cache knows the ones before.
    pub(super) fn forward_cached(&self, xs: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        self.around(xs, |xs| self.attention.forward_cached(xs, cache))
    }

    fn around(&self, xs: &Tensor, attention: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let xs = record::add(xs, &attention(&self.attention_norm.forward(xs)?)?)?; // (B, T, C)
        let ys = self.mlp.forward(&self.mlp_norm.forward(&xs)?)?; // (B, T, C)
        record::add(&xs, &ys)
    }
}

impl Module for Block {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.around(xs, |xs| self.attention.forward(xs))
    }
}

/// `activation(x W_up) W_down`.
#[derive(Clone, Debug)]
struct Mlp {
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

impl Mlp {
    fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let &ModelConfig { embed_dim: c, hidden_dim: f, bias, activation, .. } = config;
        Ok(Self {
            up_proj: linear_with(c, f, bias, config.init(), vb.pp("up_proj"))?,
            down_proj: linear_with(f, c, bias, config.residual_init(), vb.pp("down_proj"))?,
            activation,
        })
    }
}

impl Module for Mlp {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let hidden = self.up_proj.forward(xs)?; // (B, T, F)
        let hidden = match self.activation {
            Activation::GeluErf => ops::gelu_erf(&hidden)?,
            Activation::GeluTanh => ops::gelu_tanh(&hidden)?,
        };
        self.down_proj.forward(&hidden) // (B, T, C)
    }
}
