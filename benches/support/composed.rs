//! The same GPT composed from candle-nn's layers, loss and optimizer.
//!
//! Where candle-nn has two forms of an operation, this is the differentiable one. Gradients are not clipped, which
//! candle-nn leaves to its users, and every weight decays.

use candle_attention::model::ModelConfig;
use candle_core::{DType, Device, Module, Result, Tensor, bail};
use candle_nn::{AdamW, Embedding, LayerNorm, Linear, Optimizer, ParamsAdamW, VarBuilder, VarMap};

use super::composed_attention::{attention, causal_mask};

/// The model in training, with its only batch.
pub struct Composed {
    model: Gpt,
    optimizer: AdamW,
    ids: Tensor,
    targets: Tensor,
}

impl Composed {
    /// With random weights and an arbitrary batch.
    ///
    /// # Errors
    /// If a weight has no gradient, which candle-nn's optimizer would silently ignore.
    pub fn new(config: &ModelConfig, batch_size: usize) -> Result<Self> {
        let vars = VarMap::new();
        let model = Gpt::new(config, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
        let parameters = ParamsAdamW { lr: 1e-3, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };
        let some_ids = |factor: usize| {
            let tokens = batch_size * config.context_len;
            let ids: Vec<u32> = (0..tokens).map(|i| (i * i * factor % 9973 % config.vocab_size) as u32).collect();
            Tensor::from_vec(ids, (batch_size, config.context_len), &Device::Cpu)
        };
        let optimizer = AdamW::new(vars.all_vars(), parameters)?;
        let composed = Self { model, optimizer, ids: some_ids(1)?, targets: some_ids(3)? };
        let gradients = composed.loss()?.backward()?;
        if vars.all_vars().iter().any(|var| gradients.get(var).is_none()) {
            bail!("composed: expected a gradient for every weight");
        }
        Ok(composed)
    }

    /// Loss, gradients, update.
    pub fn train_step(&mut self) -> Result<()> {
        let gradients = self.loss()?.backward()?;
        self.optimizer.step(&gradients)
    }

    fn loss(&self) -> Result<Tensor> {
        let logits = self.model.forward(&self.ids)?; // (B, T, V)
        candle_nn::loss::cross_entropy(&logits.flatten(0, 1)?, &self.targets.flatten_all()?)
    }
}

struct Gpt {
    tokens: Embedding,
    positions: Embedding,
    position_ids: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
}

impl Gpt {
    fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let &ModelConfig { vocab_size, context_len, embed_dim, num_layers, .. } = config;
        let tokens = candle_nn::embedding(vocab_size, embed_dim, vb.pp("tokens"))?;
        Ok(Self {
            positions: candle_nn::embedding(context_len, embed_dim, vb.pp("positions"))?,
            position_ids: Tensor::arange(0, context_len as u32, &Device::Cpu)?,
            blocks: (0..num_layers).map(|i| Block::new(config, vb.pp(format!("blocks.{i}")))).collect::<Result<_>>()?,
            norm: candle_nn::layer_norm_no_bias(embed_dim, config.norm_eps, vb.pp("norm"))?,
            head: Linear::new(tokens.embeddings().clone(), None),
            tokens,
        })
    }
}

impl Module for Gpt {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let positions = self.positions.forward(&self.position_ids)?; // (T, C)
        let mut xs = self.tokens.forward(ids)?.broadcast_add(&positions)?; // (B, T, C)
        for block in &self.blocks {
            xs = block.forward(&xs)?;
        }
        self.head.forward(&self.norm.forward(&xs)?) // (B, T, V)
    }
}

struct Block {
    attention_norm: LayerNorm,
    qkv: Linear,
    out: Linear,
    mlp_norm: LayerNorm,
    up: Linear,
    down: Linear,
    /// (T, T): minus infinity where the key comes after the query.
    mask: Tensor,
    num_heads: usize,
}

impl Block {
    fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        let &ModelConfig { embed_dim: c, hidden_dim: f, context_len: t, norm_eps, num_heads, .. } = config;
        let linear = candle_nn::linear_no_bias;
        Ok(Self {
            attention_norm: candle_nn::layer_norm_no_bias(c, norm_eps, vb.pp("attention_norm"))?,
            qkv: linear(c, 3 * c, vb.pp("qkv"))?,
            out: linear(c, c, vb.pp("out"))?,
            mlp_norm: candle_nn::layer_norm_no_bias(c, norm_eps, vb.pp("mlp_norm"))?,
            up: linear(c, f, vb.pp("up"))?,
            down: linear(f, c, vb.pp("down"))?,
            mask: causal_mask(t)?,
            num_heads,
        })
    }

    fn attention(&self, xs: &Tensor) -> Result<Tensor> {
        let (b, t, c) = xs.dims3()?;
        let qkv = self.qkv.forward(xs)?.reshape((b, t, 3, self.num_heads, c / self.num_heads))?;
        let part = |i: usize| qkv.narrow(2, i, 1)?.squeeze(2); // (B, T, H, D)
        attention(&part(0)?, &part(1)?, &part(2)?, &self.mask)?.reshape((b, t, c))?.apply(&self.out)
    }
}

impl Module for Block {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = (xs + self.attention(&self.attention_norm.forward(xs)?)?)?; // (B, T, C)
        let hidden = self.up.forward(&self.mlp_norm.forward(&xs)?)?.gelu_erf()?; // (B, T, F)
        xs + self.down.forward(&hidden)?
    }
}
