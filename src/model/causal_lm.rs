//! The causal language model.

use candle_core::{Device, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;

use super::block::{self, Block};
use super::config::ModelConfig;
use super::context::{ForwardContext, Pass, dropped};
use crate::cpu::few_rows::MAX_ROWS;
use crate::cpu::storage::{has_kernel, values};
use crate::nn::{KvCache, LayerNorm, Linear, LoraConfig, Projection, layer_norm};
use crate::ops::{self, CrossEntropyOptions, record};

/// A decoder: token embeddings, a stack of blocks, a norm and a projection to the vocabulary. Depending on the
/// [`Architecture`](super::Architecture), positions are learned embeddings or rotary.
///
/// ```text
/// x      = token_embedding[ids] (+ position_embedding[0..T])        (B, T, C)
/// x      = block_L( .. block_1(x))                                  (B, T, C)
/// logits = norm(x) W_head^T  (W_head = token_embedding if tied)     (B, T, V)
/// ```
///
/// ```
/// use candle_attention::{model::{CausalLm, ModelConfig}, nn::Parameters};
/// use candle_core::{DType, Device, Tensor};
///
/// let config = ModelConfig { context_len: 16, embed_dim: 8, num_heads: 2, ..ModelConfig::gpt2(11) };
/// let model = CausalLm::new(&config, Parameters::new(0).var_builder(DType::F32, &Device::Cpu))?;
/// let ids = Tensor::new(&[[1u32, 2, 3], [4, 5, 6]], &Device::Cpu)?;
/// assert_eq!(model.forward(&ids)?.dims(), [2, 3, 11]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct CausalLm {
    token_embedding: Tensor,
    position_embedding: Option<Tensor>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Tensor,
    config: ModelConfig,
}

/// What a forward pass computes on its way to the logits, without a graph.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Trace {
    /// The residual stream: the embeddings, then the output of each layer; each (B, T, C).
    pub residuals: Vec<Tensor>,
    /// The attention weights of each layer: (B, H, T, T).
    pub weights: Vec<Tensor>,
}

/// Buffers for [`CausalLm::decode`].
#[derive(Debug, Default)]
pub(super) struct Scratch {
    xs: Vec<f32>,
    normed: Vec<f32>,
    block: block::Scratch,
}

impl CausalLm {
    /// Reads or creates the tensors that [`ModelConfig::parameters`] lists.
    ///
    /// # Errors
    /// If the configuration is invalid, or the builder lacks a tensor or has it in another shape.
    pub fn new(config: &ModelConfig, vb: VarBuilder) -> Result<Self> {
        config.validate()?;
        let &ModelConfig { vocab_size, embed_dim, context_len, .. } = config;
        let matrix = |rows, name| vb.pp(name).get_with_hints((rows, embed_dim), "weight", config.init());
        let rotary = config.rotary(vb.dtype(), vb.device())?;
        let token_embedding = matrix(vocab_size, "token_embedding")?;
        let position_embedding = rotary.is_none().then(|| matrix(context_len, "position_embedding"));
        Ok(Self {
            position_embedding: position_embedding.transpose()?,
            blocks: (0..config.num_layers)
                .map(|i| Block::new(config, i, rotary.as_ref(), vb.pp(format!("blocks.{i}"))))
                .collect::<Result<_>>()?,
            norm: layer_norm(embed_dim, config.norm(), vb.pp("norm"))?,
            head: if config.tie_embeddings { token_embedding.clone() } else { matrix(vocab_size, "head")? },
            token_embedding,
            config: config.clone(),
        })
    }

    /// This model, which should be built without a graph, with an adapter on each linear layer of its blocks. Reads or
    /// creates the tensors that [`ModelConfig::lora_parameters`] lists.
    ///
    /// # Errors
    /// If the builder lacks a tensor or has it in another shape.
    pub fn with_lora(mut self, lora: &LoraConfig, vb: VarBuilder) -> Result<Self> {
        let blocks = self.blocks.into_iter().enumerate();
        let adapted = blocks.map(|(i, block)| block.with_lora(lora, vb.pp(format!("blocks.{i}"))));
        self.blocks = adapted.collect::<Result<_>>()?;
        Ok(self)
    }

    /// Sizes and options.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device of the weights.
    pub fn device(&self) -> &Device {
        self.head.device()
    }

    /// The logits (B, T, V) of the token after each position, from `ids` (B, T) of dtype `u32`.
    ///
    /// # Errors
    /// If T is 0 or exceeds the context length, or an id is V or more.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.forward_with(ids, &ForwardContext::default())
    }

    /// As [`CausalLm::forward`], with dropout, or several documents in a sequence.
    ///
    /// # Errors
    /// Those of [`CausalLm::forward`], and if the context's documents are not (B, T) of `u32`.
    pub fn forward_with(&self, ids: &Tensor, context: &ForwardContext) -> Result<Tensor> {
        ops::linear(&self.hidden(ids, context)?, &self.head, None) // (B, T, V)
    }

    /// What [`CausalLm::forward`] computes on its way.
    ///
    /// # Errors
    /// Those of [`CausalLm::forward`].
    pub fn trace(&self, ids: &Tensor) -> Result<Trace> {
        let mut trace = Trace { residuals: vec![self.embed(0, ids)?.detach()], weights: vec![] };
        for (block, i) in self.blocks.iter().zip(0..) {
            let (ys, weights) = block.forward_with_weights(&trace.residuals[i])?;
            trace.residuals.push(ys.detach());
            trace.weights.push(weights.detach());
        }
        Ok(trace)
    }

    /// The logits (B, T, V) from the residual stream (B, T, C) after the last layer or, as the "logit lens" has it
    /// (nostalgebraist, "interpreting GPT: the logit lens", 2020), after any other.
    ///
    /// # Errors
    /// If it has another shape, dtype or device than [`Trace::residuals`].
    pub fn read_out(&self, residual: &Tensor) -> Result<Tensor> {
        ops::linear(&self.norm.forward(residual)?, &self.head, None)
    }

    /// The input of the head: (B, T, C).
    fn hidden(&self, ids: &Tensor, context: &ForwardContext) -> Result<Tensor> {
        let pass = Pass::new(self.config.dropout, context);
        let mut xs = dropped(self.embed(0, ids)?, pass.embedding().as_ref())?;
        for (i, block) in self.blocks.iter().enumerate() {
            xs = block.forward(&xs, &pass.block(i))?;
        }
        self.norm.forward(&xs)
    }

    /// The embeddings of tokens and, if learned, of positions from `start` on: (B, T, C).
    fn embed(&self, start: usize, ids: &Tensor) -> Result<Tensor> {
        let (_, t) = ids.dims2()?;
        let max = self.config.context_len - if self.position_embedding.is_some() { start } else { 0 };
        if t == 0 || t > max {
            bail!("causal-lm: expected 1 to {max} positions, got {t}");
        }
        let tokens = ops::embedding(ids, &self.token_embedding)?; // (B, T, C)
        match &self.position_embedding {
            Some(table) => record::add_positions(&tokens, table, start),
            None => Ok(tokens),
        }
    }

    /// The mean cross-entropy, in nats per token, of predicting `targets` (B, T) from `ids` (B, T): a scalar.
    ///
    /// # Errors
    /// Those of [`CausalLm::forward`] and of [`ops::linear_cross_entropy`].
    pub fn loss(&self, ids: &Tensor, targets: &Tensor) -> Result<Tensor> {
        self.loss_with(ids, targets, &CrossEntropyOptions::default(), &ForwardContext::default())
    }

    /// As [`CausalLm::loss`], with other options, dropout, or several documents in a sequence. For a shard of a batch,
    /// set `normalizer` to the number of targets in the whole batch: the losses of the shards then add up to its mean.
    ///
    /// # Errors
    /// Those of [`CausalLm::loss`] and [`CausalLm::forward_with`].
    pub fn loss_with(
        &self,
        ids: &Tensor,
        targets: &Tensor,
        options: &CrossEntropyOptions,
        context: &ForwardContext,
    ) -> Result<Tensor> {
        ops::linear_cross_entropy(&self.hidden(ids, context)?, &self.head, None, targets, options)
    }

    /// The logits (B, V) of the token after the last position of `ids` (B, T).
    ///
    /// # Errors
    /// Those of [`CausalLm::forward`].
    pub fn next_token_logits(&self, ids: &Tensor) -> Result<Tensor> {
        self.last_logits(&self.hidden(ids, &ForwardContext::default())?)
    }

    /// The same after the next positions of a text, whose earlier ones `caches` hold, one for each block.
    pub(super) fn next_token_logits_cached(&self, ids: &Tensor, caches: &mut [KvCache]) -> Result<Tensor> {
        let start = caches.first().map_or(0, KvCache::next_position);
        let mut xs = self.embed(start, ids)?;
        for (block, cache) in self.blocks.iter().zip(caches) {
            // Without the graph of the blocks before, which would keep what they have computed.
            xs = block.forward_cached(&xs.detach(), cache)?;
        }
        Ok(self.last_logits(&self.norm.forward(&xs)?)?.detach())
    }

    /// As [`next_token_logits_cached`](Self::next_token_logits_cached) of one position of each sequence, on slices: for
    /// a small model, tensors would take longer than the arithmetic. `None` if there are no kernels for this, or ids or
    /// position are none of the model's.
    pub(super) fn decode(&self, ids: &[u32], caches: &mut [KvCache], scratch: &mut Scratch) -> Result<Option<Tensor>> {
        let &ModelConfig { embed_dim: c, vocab_size, context_len, .. } = &self.config;
        let start = caches.first().map_or(0, KvCache::next_position);
        let tables: Vec<&Tensor> = [&self.token_embedding].into_iter().chain(&self.position_embedding).collect();
        let are_slices = has_kernel(&tables) && tables.iter().all(|table| table.is_contiguous());
        let are_known = ids.iter().all(|id| (*id as usize) < vocab_size) && (tables.len() == 1 || start < context_len);
        if !are_slices || !are_known || !(1..=MAX_ROWS).contains(&ids.len()) {
            return Ok(None);
        }
        let Scratch { xs, normed, block } = scratch;
        xs.resize(ids.len() * c, 0.0);
        for (x, id) in xs.chunks_exact_mut(c).zip(ids) {
            x.copy_from_slice(&values(&self.token_embedding)?[*id as usize * c..][..c]);
            if let Some(positions) = &self.position_embedding {
                x.iter_mut().zip(&values(positions)?[start * c..]).for_each(|(x, position)| *x += position);
            }
        }
        for (layer, cache) in self.blocks.iter().zip(caches) {
            layer.decode(xs, cache, block)?;
        }
        normed.resize(xs.len(), 0.0);
        self.norm.forward_rows(normed, xs)?;
        let mut logits = vec![0.0; ids.len() * vocab_size];
        let head = Projection::from(Linear::new(self.head.clone(), None));
        Projection::forward_rows(&[&head], &mut logits, false, normed, ids.len())?;
        Tensor::from_vec(logits, (ids.len(), vocab_size), &Device::Cpu).map(Some)
    }

    fn last_logits(&self, xs: &Tensor) -> Result<Tensor> {
        let last = xs.narrow(1, xs.dim(1)? - 1, 1)?.squeeze(1)?; // (B, C)
        ops::linear(&last, &self.head, None) // (B, V)
    }
}
