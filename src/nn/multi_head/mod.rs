//! Multi-head attention.

mod cached;
mod cross;
#[cfg(feature = "lm")]
mod decode;
mod forward;
mod inputs;
mod multi_head_config;

use std::sync::Arc;

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

use self::multi_head_config::Sizes;
use super::parameters::name_hash;
use super::{Dropout, Linear, LoraConfig, LoraLinear, Projection, RmsNorm, RotaryEmbedding, linear_with, rms_norm};
use crate::ops::{AttentionOptions, Mask, QkvLayout};

#[cfg(feature = "lm")]
pub(crate) use decode::Scratch;
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
/// [`forward`](Self::forward) is self-attention and [`forward_t`](Self::forward_t) the same with dropout in training;
/// [`forward_cross`](Self::forward_cross) takes keys and values from another sequence, and
/// [`forward_cached`](Self::forward_cached) reads a text piece by piece.
///
/// It is a candle [`Module`](candle_core::Module), and by candle's own rule a [`ModuleT`](candle_core::ModuleT) that
/// ignores whether it is trained. So that this drops no dropout in silence, the trait's `forward` refuses a layer with
/// dropout. The methods of the same names on the layer itself know what they do, and Rust prefers them.
///
/// ```
/// use candle_attention::nn::{KvCache, MultiHeadAttention, MultiHeadAttentionConfig, Parameters};
/// use candle_core::{DType, Device, Tensor};
///
/// let vb = Parameters::new(42).var_builder(DType::F32, &Device::Cpu);
/// let config = MultiHeadAttentionConfig { num_kv_heads: Some(2), ..MultiHeadAttentionConfig::new(24, 4) };
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
    dropout: Option<Dropout>,
    sizes: Sizes,
    options: AttentionOptions,
    /// Tells apart layers whose keys and values are not the same; clones share it.
    identity: Arc<()>,
}

impl MultiHeadAttention {
    /// Reads or creates `q_proj` (H * D, C), `k_proj` (G * D, M), `v_proj` (G * E, M) and, with an output projection,
    /// `o_proj` (C, H * E). Each has a `weight`, stored as (out, in), and optionally a `bias` (out). With normalised
    /// queries and keys there are also `q_norm` and `k_norm`, each with a `weight` (D), and with sinks `sinks` (H).
    ///
    /// # Errors
    /// If the sizes do not fit together, or the builder lacks a tensor or has it in another shape.
    pub fn new(config: &MultiHeadAttentionConfig, vb: VarBuilder) -> Result<Self> {
        let sizes = config.sizes()?;
        let Sizes { c, m, h, g, d, e } = sizes;
        let projection = |name, from, to, bias, init: Option<Init>| {
            let init = init.unwrap_or_else(|| uniform(from));
            linear_with(from, to, bias, init, vb.pp(name)).map(Projection::from)
        };
        let input = |name, from, to| projection(name, from, to, config.bias, config.init);
        let output = || projection("o_proj", h * e, c, config.output_bias, config.output_init);
        let norm = |name| config.qk_norm_eps.map(|eps| rms_norm(d, eps, vb.pp(name))).transpose();
        let sinks = || vb.get_with_hints(h, "sinks", candle_nn::init::ZERO);
        let dropout = || Dropout::at(config.dropout, config.dropout_seed, name_hash(&vb.prefix()));
        Ok(Self {
            q_proj: input("q_proj", c, h * d)?,
            k_proj: input("k_proj", m, g * d)?,
            v_proj: input("v_proj", m, g * e)?,
            o_proj: config.output_projection.then(output).transpose()?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
            rotary: config.rotary.clone(),
            dropout: (config.dropout > 0.0).then(dropout),
            sizes,
            options: AttentionOptions {
                scale: config.scale,
                mask: config.mask.clone(),
                softcap: config.softcap,
                sinks: config.sinks.then(sinks).transpose()?,
                dropout: None,
                layout: QkvLayout::Bthd,
            },
            identity: Arc::default(),
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
            identity: Arc::default(),
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

    /// The learned logits of the heads' sinks (H), if there are any.
    pub fn sinks(&self) -> Option<&Tensor> {
        self.options.sinks.as_ref()
    }

    /// The dropout of the attention weights, if there is any: it counts the calls in training, which a run that is
    /// resumed must [set](Dropout::set_calls).
    pub fn dropout(&self) -> Option<&Dropout> {
        self.dropout.as_ref()
    }
}

/// Uniform in `±1 / sqrt(from)`.
fn uniform(from: usize) -> Init {
    let bound = 1.0 / (from as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}
