//! One block of the decoder: attention and a feed-forward network, each after a norm and with a residual connection.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::{Activation, ModelConfig};
use super::context::{BlockPass, dropped};
use crate::nn::{
    AttentionInputs, AttentionScratch, KvCache, LayerNorm, LoraConfig, MultiHeadAttention, Projection, RotaryEmbedding,
    layer_norm, linear_with,
};
use crate::ops::activation::{OnSlices, on_slices};
use crate::ops::{self, Mask, record};

/// `x + attention(norm(x))`, then `x + mlp(norm(x))` (pre-norm, as in GPT-2 and llama).
#[derive(Clone, Debug)]
pub(super) struct Block {
    attention_norm: LayerNorm,
    attention: MultiHeadAttention,
    mlp_norm: LayerNorm,
    mlp: Mlp,
}

impl Block {
    /// Block `i`.
    pub(super) fn new(
        config: &ModelConfig,
        i: usize,
        rotary: Option<&RotaryEmbedding>,
        vb: VarBuilder,
    ) -> Result<Self> {
        let norm = |name| layer_norm(config.embed_dim, config.norm(), vb.pp(name));
        Ok(Self {
            attention_norm: norm("attention_norm")?,
            attention: MultiHeadAttention::new(&config.attention(i, rotary), vb.pp("attention"))?,
            mlp_norm: norm("mlp_norm")?,
            mlp: Mlp::new(config, vb.pp("mlp"))?,
        })
    }

    /// This block with an adapter on each linear layer.
    pub(super) fn with_lora(self, lora: &LoraConfig, vb: VarBuilder) -> Result<Self> {
        let attention = self.attention.with_lora(lora, vb.pp("attention"))?;
        Ok(Self { attention, mlp: self.mlp.with_lora(lora, vb.pp("mlp"))?, ..self })
    }

    pub(super) fn forward(&self, xs: &Tensor, pass: &BlockPass) -> Result<Tensor> {
        let inside = |documents: &Tensor| Mask { documents: Some(documents.clone()), ..self.attention.mask().clone() };
        let mask = pass.documents.map(inside);
        let inputs = AttentionInputs { mask: mask.as_ref(), dropout: pass.attention, ..Default::default() };
        self.residual(xs, pass, |xs| self.attention.forward_with(xs, &inputs))
    }

    /// The output, and the attention weights (B, H, T, T).
    pub(super) fn forward_with_weights(&self, xs: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut weights = None;
        let ys = self.residual(xs, &BlockPass::default(), |xs| {
            let (ys, seen) = self.attention.forward_with_weights(xs, &AttentionInputs::default())?;
            weights = Some(seen);
            Ok(ys)
        })?;
        Ok((ys, weights.ok_or_else(|| candle_core::Error::msg("block: no attention weights"))?))
    }

    /// The output at the next positions of a text, whose earlier ones the cache holds.
    pub(super) fn forward_cached(&self, xs: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        self.residual(xs, &BlockPass::default(), |xs| self.attention.forward_cached(xs, cache))
    }

    /// As [`forward_cached`](Self::forward_cached), in place, of the next position of each sequence: (B, C) in `f32` on
    /// the CPU.
    pub(super) fn decode(&self, xs: &mut [f32], cache: &mut KvCache, scratch: &mut Scratch) -> Result<()> {
        let Scratch { attention, normed, hidden, activated } = scratch;
        normed.resize(xs.len(), 0.0);
        self.attention_norm.forward_rows(normed, xs)?;
        self.attention.decode(xs, normed, cache, attention)?;
        self.mlp_norm.forward_rows(normed, xs)?;
        self.mlp.decode(xs, normed, [hidden, activated])
    }

    /// `x + attention(norm(x))`, then `x + mlp(norm(x))`, whatever computes the attention.
    fn residual(
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

/// `activation(x W_up) W_down`, or with a gate `(activation(x W_gate) * x W_up) W_down`.
#[derive(Clone, Debug)]
struct Mlp {
    gate_proj: Option<Projection>,
    up_proj: Projection,
    down_proj: Projection,
    activation: Activation,
}

impl Mlp {
    fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let &ModelConfig { embed_dim: c, hidden_dim: f, activation, .. } = config;
        let bias = config.has_mlp_biases();
        let into_hidden = |name| linear_with(c, f, bias, config.init(), vb.pp(name)).map(Projection::from);
        Ok(Self {
            gate_proj: config.architecture.is_gated().then(|| into_hidden("gate_proj")).transpose()?,
            up_proj: into_hidden("up_proj")?,
            down_proj: linear_with(f, c, bias, config.residual_init(), vb.pp("down_proj"))?.into(),
            activation,
        })
    }

    fn with_lora(self, lora: &LoraConfig, vb: VarBuilder) -> Result<Self> {
        let adapted = |projection: &Projection, name| projection.with_lora(lora, vb.pp(name));
        Ok(Self {
            gate_proj: self.gate_proj.as_ref().map(|gate_proj| adapted(gate_proj, "gate_proj")).transpose()?,
            up_proj: adapted(&self.up_proj, "up_proj")?,
            down_proj: adapted(&self.down_proj, "down_proj")?,
            ..self
        })
    }
}

/// Buffers for [`Block::decode`].
#[derive(Debug, Default)]
pub(super) struct Scratch {
    attention: AttentionScratch,
    normed: Vec<f32>,
    hidden: Vec<f32>,
    activated: Vec<f32>,
}

impl Mlp {
    /// Adds the output for each row of `xs` (B, C) to `out`.
    fn decode(&self, out: &mut [f32], xs: &[f32], [hidden, activated]: [&mut Vec<f32>; 2]) -> Result<()> {
        let (f, c) = self.up_proj.base().weight().dims2()?;
        let (b, activation) = (xs.len() / c, self.activation.on_slices());
        activated.resize(b * f, 0.0);
        let both = [self.gate_proj.as_ref().unwrap_or(&self.up_proj), &self.up_proj];
        let into_hidden = if self.gate_proj.is_some() { &both[..] } else { &both[1..] };
        let width = into_hidden.len() * f;
        hidden.resize(b * width, 0.0);
        Projection::forward_rows(into_hidden, hidden, false, xs, b)?; // (B, F) or (B, 2 F)
        for (ys, hidden) in activated.chunks_exact_mut(f).zip(hidden.chunks_exact(width)) {
            let (xs, up) = hidden.split_at(f);
            activation(ys, xs, self.gate_proj.is_some().then_some(up));
        }
        Projection::forward_rows(&[&self.down_proj], out, true, activated, b)
    }
}

impl Module for Mlp {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let up = self.up_proj.forward(xs)?; // (B, T, F)
        let hidden = match &self.gate_proj {
            Some(gate_proj) => self.activation.gated(&gate_proj.forward(xs)?, &up)?,
            None => self.activation.of(&up)?,
        };
        self.down_proj.forward(&hidden) // (B, T, C)
    }
}

impl Activation {
    fn of(self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::GeluErf => ops::gelu_erf(xs),
            Self::GeluTanh => ops::gelu_tanh(xs),
            Self::Silu => ops::silu(xs),
            Self::Relu => ops::relu(xs),
            Self::QuickGelu => ops::quick_gelu(xs),
        }
    }

    /// The same on slices, also with a factor.
    fn on_slices(self) -> OnSlices {
        match self {
            Self::GeluErf => on_slices::GELU_ERF,
            Self::GeluTanh => on_slices::GELU_TANH,
            Self::Silu => on_slices::SILU,
            Self::Relu => on_slices::RELU,
            Self::QuickGelu => on_slices::QUICK_GELU,
        }
    }

    /// `activation(gate) * xs`.
    fn gated(self, gate: &Tensor, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::GeluErf => ops::geglu_erf(gate, xs),
            Self::GeluTanh => ops::geglu_tanh(gate, xs),
            Self::Silu => ops::swiglu(gate, xs),
            Self::Relu => ops::reglu(gate, xs),
            Self::QuickGelu => ops::quick_geglu(gate, xs),
        }
    }
}
