//! Sizes and options of multi-head attention.

use candle_core::{Result, bail};
use candle_nn::Init;

use crate::cpu::checks::check_softcap;
use crate::nn::RotaryEmbedding;
use crate::ops::{Mask, QkvLayout, Scale};

/// Sizes and options of a [`MultiHeadAttention`](super::MultiHeadAttention).
///
/// ```
/// use candle_attention::nn::MultiHeadAttentionConfig;
///
/// // As in Qwen3: grouped heads with a width of their own, and normalised queries and keys.
/// let config = MultiHeadAttentionConfig {
///     num_kv_heads: Some(2),
///     head_dim: Some(16),
///     qk_norm_eps: Some(1e-6),
///     ..MultiHeadAttentionConfig::new(64, 8)
/// };
/// # let _ = config;
/// ```
#[derive(Clone, Debug)]
pub struct MultiHeadAttentionConfig {
    /// Channels of the input and, with an output projection, of the output (C).
    pub embed_dim: usize,
    /// Channels of the sequence that keys and values come from (M); by default `embed_dim`.
    pub memory_dim: Option<usize>,
    /// Heads of queries (H).
    pub num_heads: usize,
    /// Heads of keys and values (G), which must divide `num_heads`; by default `num_heads`. 1 gives multi-query
    /// attention (Shazeer 2019, arXiv:1911.02150).
    pub num_kv_heads: Option<usize>,
    /// Channels of a query and of a key (D); by default `embed_dim / num_heads`.
    pub head_dim: Option<usize>,
    /// Channels of a value (E); by default `head_dim`.
    pub value_dim: Option<usize>,
    /// Whether the projections to queries, keys and values have biases.
    pub bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Whether the outputs of the heads go through a learnable projection W^O.
    pub output_projection: bool,
    /// The factor on the dot products.
    pub scale: Scale,
    /// Which positions see which; a call may override it.
    pub mask: Mask,
    /// A bound on the scores: `score` becomes `softcap * tanh(score / softcap)`.
    pub softcap: Option<f64>,
    /// Whether each head has a sink: a learned logit in the denominator of its softmax, as if of one more key whose
    /// value is 0, so that a head may look at nothing (as in gpt-oss). 0 at first.
    pub sinks: bool,
    /// The dropout rate of the attention weights in training.
    pub dropout: f32,
    /// The seed of the random numbers of dropout. Layers of one seed draw different ones if their names differ, that is
    /// the prefixes of their `VarBuilder`s.
    pub dropout_seed: u64,
    /// Rotary position embedding of queries and keys. Only for self-attention.
    pub rotary: Option<RotaryEmbedding>,
    /// If set, the heads of queries and of keys are RMS-normalised with this `eps`, each with a learnable weight (D),
    /// before they are rotated.
    pub qk_norm_eps: Option<f64>,
    /// Initialisation of W^Q, W^K and W^V; by default uniform in `±1 / sqrt(n)`, where n is the channels that the
    /// projection takes: C for W^Q, M for W^K and W^V.
    pub init: Option<Init>,
    /// Initialisation of W^O; by default uniform in `±1 / sqrt(H * E)`.
    pub output_init: Option<Init>,
}

impl MultiHeadAttentionConfig {
    /// Causal attention, scaled by `1 / sqrt(D)`, with an output projection, and without biases. Cross-attention needs
    /// `mask: Mask::full()`.
    pub fn new(embed_dim: usize, num_heads: usize) -> Self {
        Self {
            embed_dim,
            memory_dim: None,
            num_heads,
            num_kv_heads: None,
            head_dim: None,
            value_dim: None,
            bias: false,
            output_bias: false,
            output_projection: true,
            scale: Scale::InverseSqrt,
            mask: Mask::causal(),
            softcap: None,
            sinks: false,
            dropout: 0.0,
            dropout_seed: 0,
            rotary: None,
            qk_norm_eps: None,
            init: None,
            output_init: None,
        }
    }

    /// The sizes, with defaults filled in.
    pub(super) fn sizes(&self) -> Result<Sizes> {
        let &Self { embed_dim: c, num_heads: h, .. } = self;
        if self.head_dim.is_none() && (h == 0 || !c.is_multiple_of(h)) {
            bail!("multi-head-attention: expected num_heads to divide embed_dim, got num_heads {h} and embed_dim {c}");
        }
        let g = self.num_kv_heads.unwrap_or(h);
        if g == 0 || !h.is_multiple_of(g) {
            bail!("multi-head-attention: expected num_kv_heads to divide num_heads, got {g} and {h}");
        }
        let d = self.head_dim.unwrap_or_else(|| c / h.max(1));
        let sizes = Sizes { c, m: self.memory_dim.unwrap_or(c), h, g, d, e: self.value_dim.unwrap_or(d) };
        let Sizes { m, e, .. } = sizes;
        for (name, size) in [("embed_dim", c), ("memory_dim", m), ("num_heads", h), ("head_dim", d), ("value_dim", e)] {
            if size == 0 {
                bail!("multi-head-attention: expected {name} of at least 1, got 0");
            }
        }
        // No matrix may exceed the address space.
        let is_possible = |from: usize, heads: usize, channels: usize| {
            let elements = heads.checked_mul(channels).and_then(|to| to.checked_mul(from));
            elements.is_some_and(|elements| elements <= isize::MAX as usize / size_of::<f64>())
        };
        if !(is_possible(c.max(m), h, d) && is_possible(c.max(m), h, e)) {
            bail!(
                "multi-head-attention: expected sizes that memory can hold, got {h} heads of {d} and {e} channels for \
                 inputs of {c} and {m}"
            );
        }
        match self.qk_norm_eps {
            Some(eps) if !(eps >= 0.0 && eps.is_finite()) => {
                bail!("multi-head-attention: expected qk_norm_eps of at least 0, got {eps}")
            }
            _ => {}
        }
        if !(0.0..1.0).contains(&self.dropout) {
            bail!("multi-head-attention: expected dropout from 0 to below 1, got {}", self.dropout);
        }
        if self.rotary.as_ref().is_some_and(|rotary| rotary.layout() != QkvLayout::Bthd) {
            bail!("multi-head-attention: expected rotary positions with the layout Bthd, got another");
        }
        if let Some(width) = self.rotary.as_ref().map(RotaryEmbedding::rotary_dim).filter(|width| *width > d) {
            bail!("multi-head-attention: expected rotary positions for heads of {d} channels, got them for {width}");
        }
        check_softcap("multi-head-attention", self.softcap)?;
        self.scale.check("multi-head-attention")?;
        if self.rotary.is_some() && m != c {
            bail!(
                "multi-head-attention: expected memory_dim to be embed_dim with rotary positions, got memory_dim {m} and \
                 embed_dim {c}"
            );
        }
        Ok(sizes)
    }
}

/// Channels of input (C) and memory (M), heads of queries (H) and of keys (G), channels of keys (D) and of values (E).
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) c: usize,
    pub(super) m: usize,
    pub(super) h: usize,
    pub(super) g: usize,
    pub(super) d: usize,
    pub(super) e: usize,
}
