//! Multi-head attention.

mod cached;
mod cross;
mod inputs;
mod multi_head_config;

use candle_core::{Module, ModuleT, Result, Tensor, bail};
use candle_nn::VarBuilder;

use self::multi_head_config::Sizes;
use super::{Dropout, Linear, LoraConfig, LoraLinear, Projection, RmsNorm, RotaryEmbedding, linear_with, rms_norm};
use crate::ops::{self, AttentionOptions, Mask, record};

pub use inputs::{AttentionInputs, KeysValues};
pub use multi_head_config::MultiHeadAttentionConfig;

/// Multi-head attention with learnable W^Q, W^K and W^V (Vaswani et al. 2017, arXiv:1706.03762).
///
/// For the rows `x[t]` of the input and `m[s]` of the memory (in self-attention, the input itself),
///
/// ```text
/// q = x W^Q    k = m W^K    v = m W^V
/// y[t] = sum over all s that t may see of softmax(scale * q[t] . k[s]) * v[s]
/// ```
///
/// in each of H heads; with an output projection, the result is `y W^O`. See
/// [`ops::attention`](mod@crate::ops::attention) for masks and grouped heads, and [`MultiHeadAttentionConfig`] for the
/// other options.
///
/// | tensor | shape |
/// |---|---|
/// | input | (B, T, C) or (T, C) |
/// | memory | (B, S, M), or (S, M) for an input (T, C) |
/// | output | (B, T, C) or (T, C); without an output projection, H * E channels |
/// | weights | (B, H, T, S), or (H, T, S) for an input (T, C) |
///
/// [`forward`](Self::forward) is self-attention and `forward_t` (of [`ModuleT`]) the same with dropout in training;
/// [`forward_cross`](Self::forward_cross) takes keys and values from another sequence, and
/// [`forward_cached`](Self::forward_cached) reads a text piece by piece.
///
/// ```
/// use candle_attention::nn::{KvCache, MultiHeadAttention, MultiHeadAttentionConfig, Parameters};
/// use candle_attention::ops::Mask;
/// use candle_core::{DType, Device, Tensor};
///
/// let vb = Parameters::new(42).var_builder(DType::F32, &Device::Cpu);
/// let config = MultiHeadAttentionConfig {
///     num_kv_heads: Some(2),
///     mask: Mask::causal(),
///     ..MultiHeadAttentionConfig::new(24, 4)
/// };
/// let layer = MultiHeadAttention::new(&config, vb)?;
/// let xs = Tensor::ones((3, 5, 24), DType::F32, &Device::Cpu)?;
/// assert_eq!(layer.forward(&xs)?.dims(), [3, 5, 24]);
///
/// // The same, position by position.
/// let mut cache = KvCache::new(5);
/// for t in 0..5 {
///     let ys = layer.forward_cached(&xs.narrow(1, t, 1)?, &mut cache)?;
///     assert_eq!(ys.dims(), [3, 1, 24]);
/// }
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct MultiHeadAttention {
    q_proj: Projection,
    k_proj: Projection,
    v_proj: Projection,
    o_proj: Option<Projection>,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    rotary: Option<RotaryEmbedding>,
    dropout: Dropout,
    sizes: Sizes,
    options: AttentionOptions,
}

impl MultiHeadAttention {
    /// Reads or creates `q_proj` (H * D, C), `k_proj` (G * D, M), `v_proj` (G * E, M) and, with an output projection,
    /// `o_proj` (C, H * E). Each has a `weight`, stored as (out, in), and optionally a `bias` (out). With normalised
    /// queries and keys there are also `q_norm` and `k_norm`, each with a `weight` (D).
    ///
    /// # Errors
    /// If the sizes do not fit together, or the builder lacks a tensor or has it in another shape.
    pub fn new(config: &MultiHeadAttentionConfig, vb: VarBuilder) -> Result<Self> {
        let sizes = config.sizes()?;
        let Sizes { c, m, h, g, d, e } = sizes;
        let input = |name, from, to| linear_with(from, to, config.bias, config.init, vb.pp(name)).map(Projection::from);
        let output =
            || linear_with(h * e, c, config.output_bias, config.output_init, vb.pp("o_proj")).map(Projection::from);
        let norm = |name| config.qk_norm.map(|eps| rms_norm(d, eps, vb.pp(name))).transpose();
        Ok(Self {
            q_proj: input("q_proj", c, h * d)?,
            k_proj: input("k_proj", m, g * d)?,
            v_proj: input("v_proj", m, g * e)?,
            o_proj: config.output_projection.then(output).transpose()?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
            rotary: config.rotary.clone(),
            dropout: Dropout::new(config.dropout),
            sizes,
            options: AttentionOptions {
                scale: config.scale,
                mask: config.mask.clone(),
                softcap: config.softcap,
                ..AttentionOptions::default()
            },
        })
    }

    /// This layer with an adapter on each projection, all of which are frozen. Reads or creates `lora_A.weight` and
    /// `lora_B.weight` in `q_proj`, `k_proj`, `v_proj` and `o_proj`; where one product gives queries, keys and values,
    /// these share `qkv_proj.lora_A.weight`, as GPT-2's packed projection does in PEFT.
    ///
    /// # Errors
    /// Those of [`LoraLinear::new`].
    pub fn with_lora(self, config: &LoraConfig, vb: VarBuilder) -> Result<Self> {
        let shared = self.is_packable().then(|| config.down(self.sizes.c, &vb.pp("qkv_proj"))).transpose()?;
        let adapted = |projection: &Projection, name| match &shared {
            None => projection.with_lora(config, vb.pp(name)),
            Some(a) => {
                let (base, b) = (projection.base().clone(), config.up(self.sizes.h * self.sizes.d, &vb.pp(name))?);
                LoraLinear::from_tensors(base, a.clone(), b, config.scale()).map(Projection::Adapted)
            }
        };
        let output = |o_proj: &Projection| o_proj.with_lora(config, vb.pp("o_proj"));
        Ok(Self {
            q_proj: adapted(&self.q_proj, "q_proj")?,
            k_proj: adapted(&self.k_proj, "k_proj")?,
            v_proj: adapted(&self.v_proj, "v_proj")?,
            o_proj: self.o_proj.as_ref().map(output).transpose()?,
            ..self
        })
    }

    /// The projection to queries, W^Q.
    pub fn q_proj(&self) -> &Linear {
        self.q_proj.base()
    }

    /// The projection to keys, W^K.
    pub fn k_proj(&self) -> &Linear {
        self.k_proj.base()
    }

    /// The projection to values, W^V.
    pub fn v_proj(&self) -> &Linear {
        self.v_proj.base()
    }

    /// The output projection, W^O, if there is one.
    pub fn o_proj(&self) -> Option<&Linear> {
        self.o_proj.as_ref().map(Projection::base)
    }

    /// The layer's own mask.
    pub fn mask(&self) -> &Mask {
        &self.options.mask
    }

    /// Self-attention with the layer's own mask, without dropout.
    ///
    /// # Errors
    /// Those of [`forward_with`](Self::forward_with).
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.forward_with(xs, &AttentionInputs::default())
    }

    /// Attention with other [`AttentionInputs`].
    ///
    /// # Errors
    /// If a shape, dtype or device does not match the layer.
    pub fn forward_with(&self, xs: &Tensor, inputs: &AttentionInputs) -> Result<Tensor> {
        check("an input", xs, &self.q_proj)?;
        if xs.rank() == 2 {
            return self.forward_with(&xs.unsqueeze(0)?, inputs)?.squeeze(0);
        }
        let options = self.options(inputs);
        if inputs.memory.is_none() && self.is_packable() {
            let qkv = self.project_qkv(xs)?; // (B, T, 3 * H * D)
            return self.project_output(ops::self_attention(&qkv, self.sizes.h, &options)?);
        }
        let [q, k, v] = self.project(xs, inputs)?;
        self.merge_heads(ops::attention(&q, &k, &v, &options)?)
    }

    /// The output of [`forward_with`](Self::forward_with), and the attention weights (B, H, T, S), or (H, T, S) for an
    /// input (T, C). Both are differentiable.
    ///
    /// # Errors
    /// Those of [`forward_with`](Self::forward_with).
    pub fn forward_with_weights(&self, xs: &Tensor, inputs: &AttentionInputs) -> Result<(Tensor, Tensor)> {
        check("an input", xs, &self.q_proj)?;
        if xs.rank() == 2 {
            let (ys, weights) = self.forward_with_weights(&xs.unsqueeze(0)?, inputs)?;
            return Ok((ys.squeeze(0)?, weights.squeeze(0)?));
        }
        let [q, k, v] = self.project(xs, inputs)?;
        let (ys, weights) = ops::attention_with_weights(&q, &k, &v, &self.options(inputs))?;
        Ok((self.merge_heads(ys)?, weights))
    }

    /// The queries, keys and values of a call.
    fn project(&self, xs: &Tensor, inputs: &AttentionInputs) -> Result<[Tensor; 3]> {
        let q = self.project_queries(xs, 0)?;
        let (k, v) = match inputs.memory {
            Some(KeysValues { k, v }) => (k.clone(), v.clone()),
            None => self.project_keys_values(xs, 0)?,
        };
        Ok([q, k, v])
    }

    /// The queries of positions from `offset` on.
    fn project_queries(&self, xs: &Tensor, offset: usize) -> Result<Tensor> {
        let Sizes { h, d, .. } = self.sizes;
        let q = heads(&self.q_proj, xs, h, d)?; // (B, T, H, D)
        self.normalise_and_rotate(q, self.q_norm.as_ref(), offset)
    }

    /// The keys and values of positions from `offset` on.
    fn project_keys_values(&self, memory: &Tensor, offset: usize) -> Result<(Tensor, Tensor)> {
        let Sizes { m, g, d, e, .. } = self.sizes;
        if memory.dim(2)? != m {
            bail!("multi-head-attention: expected a memory of {m} channels, got {}", memory.dim(2)?);
        }
        let k = heads(&self.k_proj, memory, g, d)?; // (B, S, G, D)
        Ok((self.normalise_and_rotate(k, self.k_norm.as_ref(), offset)?, heads(&self.v_proj, memory, g, e)?))
    }

    /// Queries or keys, normalised and rotated if the layer does so.
    fn normalise_and_rotate(&self, mut heads: Tensor, norm: Option<&RmsNorm>, offset: usize) -> Result<Tensor> {
        if let Some(norm) = norm {
            heads = norm.forward(&heads)?;
        }
        match &self.rotary {
            Some(rotary) => rotary.forward(&heads, offset),
            None => Ok(heads),
        }
    }

    fn merge_heads(&self, ys: Tensor) -> Result<Tensor> {
        let (b, t, h, e) = ys.dims4()?;
        self.project_output(record::reshape(&ys, (b, t, h * e))?)
    }

    fn project_output(&self, ys: Tensor) -> Result<Tensor> {
        match &self.o_proj {
            Some(o_proj) => o_proj.forward(&ys),
            None => Ok(ys),
        }
    }

    /// Whether one product can give queries, keys and values in the packed form that attention takes.
    fn is_packable(&self) -> bool {
        let Sizes { c, m, h, g, d, e } = self.sizes;
        c == m && h == g && d == e && self.q_norm.is_none() && self.rotary.is_none()
    }

    /// Queries, keys and values from one product, (B, T, 3 * H * D), which reads the input once.
    fn project_qkv(&self, xs: &Tensor) -> Result<Tensor> {
        Projection::stacked([&self.q_proj, &self.k_proj, &self.v_proj])?.forward(xs)
    }

    fn options(&self, inputs: &AttentionInputs) -> AttentionOptions {
        let mask = inputs.mask.unwrap_or(&self.options.mask).clone();
        AttentionOptions { mask, dropout: inputs.dropout, ..self.options.clone() }
    }
}

/// There is no [`Module`] implementation, because candle would derive a `ModuleT` from it that ignores training.
impl ModuleT for MultiHeadAttention {
    /// In training, attention weights are dropped at the layer's rate, with random numbers as in [`Dropout::new`].
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let dropout = self.dropout.next_call(train);
        self.forward_with(xs, &AttentionInputs { dropout, ..Default::default() })
    }
}

/// A projection split into heads: (B, T, n, channels).
fn heads(projection: &Projection, xs: &Tensor, n: usize, channels: usize) -> Result<Tensor> {
    let (b, t, _) = xs.dims3()?;
    record::reshape(&projection.forward(xs)?, (b, t, n, channels))
}

/// Refuses an input that the projection cannot take.
fn check(what: &str, xs: &Tensor, projection: &Projection) -> Result<()> {
    let weight = projection.base().weight();
    let channels = weight.dim(1)?;
    if !matches!(xs.dims(), [_, c] | [_, _, c] if *c == channels) {
        bail!(
            "multi-head-attention: expected {what} of shape (B, T, {channels}) or (T, {channels}), got {:?}",
            xs.shape()
        );
    }
    if xs.dtype() != weight.dtype() {
        let (expected, got) = (weight.dtype(), xs.dtype());
        bail!("multi-head-attention: expected {what} of the weights' dtype {expected:?}, got {got:?}");
    }
    if !xs.device().same_device(weight.device()) {
        let (expected, got) = (weight.device().location(), xs.device().location());
        bail!("multi-head-attention: expected {what} on the weights' device {expected:?}, got {got:?}");
    }
    Ok(())
}
