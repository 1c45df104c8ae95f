//! One block of the decoder: attention and a feed-forward network, each behind a norm and beside a shortcut.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::{Activation, ModelConfig};
use super::context::{BlockPass, dropped};
use crate::nn::{AttentionInputs, CausalSelfAttention, KvCache, LayerNorm, Linear, layer_norm, linear_with};
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

    pub(super) fn forward(&self, xs: &Tensor, pass: &BlockPass) -> Result<Tensor> {
        let inputs = AttentionInputs { mask: pass.mask, dropout: pass.attention, ..Default::default() };
        self.around(xs, pass, |xs| self.attention.multi_head().forward_with(xs, &inputs))
    }

    /// The output at the next positions of a text, of which the cache knows the ones before.
    pub(super) fn forward_cached(&self, xs: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        self.around(xs, &BlockPass::default(), |xs| self.attention.forward_cached(xs, cache))
    }

    fn around(
        &self,
        xs: &Tensor,
        pass: &BlockPass,
        attention: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let ys = dropped(attention(&self.attention_norm.forward(xs)?)?, pass.after_attention.as_ref())?;
        let xs = record::add(xs, &ys)?; // (B, T, C)
        let ys = dropped(self.mlp.forward(&self.mlp_norm.forward(&xs)?)?, pass.after_mlp.as_ref())?;
        record::add(&xs, &ys) // (B, T, C)
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
