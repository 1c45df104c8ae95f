//! Attention of an input to itself or to a memory.

use candle_core::{DType, Module, Result, Tensor, bail};

use super::multi_head_config::Sizes;
use super::{AttentionInputs, KeysValues, MultiHeadAttention, Projection, RmsNorm};
use crate::ops::{self, AttentionOptions, Band, record};

/// The positions of an input in its texts.
pub(super) enum Positions {
    /// Of every sequence, those from this one on.
    From(usize),
    /// Of each sequence its own: (B, T), in order.
    Each(Vec<u32>),
}

impl MultiHeadAttention {
    /// Self-attention with the layer's own mask, without dropout.
    ///
    /// # Errors
    /// Those of [`forward_with`](Self::forward_with).
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.forward_with(xs, &AttentionInputs::default())
    }

    /// Self-attention with the layer's own mask; in training, attention weights are dropped at the layer's rate. What
    /// call `n` in training drops depends on the layer's seed, its name and `n`.
    ///
    /// # Errors
    /// Those of [`forward_with`](Self::forward_with).
    pub fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let dropout = self.dropout.as_ref().and_then(|dropout| dropout.next_call(train));
        self.forward_with(xs, &AttentionInputs { dropout, ..Default::default() })
    }

    /// Attention with other [`AttentionInputs`].
    ///
    /// # Errors
    /// If a shape, dtype or device does not match the layer; positions are given to a layer without rotary positions; or
    /// there is a memory, no mask, and the layer's own hides what comes later.
    pub fn forward_with(&self, xs: &Tensor, inputs: &AttentionInputs) -> Result<Tensor> {
        check("an input", xs, &self.q_proj)?;
        if xs.rank() == 2 {
            return self.forward_with(&xs.unsqueeze(0)?, inputs)?.squeeze(0);
        }
        let options = self.options(inputs)?;
        // candle panics on parts of a packed tensor of no positions.
        if inputs.memory.is_none() && self.is_packable() && xs.elem_count() > 0 {
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
        let options = self.options(inputs)?;
        let [q, k, v] = self.project(xs, inputs)?;
        let (ys, weights) = ops::attention_with_weights(&q, &k, &v, &options)?;
        Ok((self.merge_heads(ys)?, weights))
    }

    /// The options of a call, which are checked.
    fn options(&self, inputs: &AttentionInputs) -> Result<AttentionOptions> {
        if inputs.memory.is_some() && inputs.mask.is_none() && self.options.mask.band != Band::Full {
            bail!(
                "multi-head-attention: expected a mask with a full band for a memory, which has no order in common with \
                 the input, got {:?}: configure the layer with `mask: Mask::full()`, or give the call a mask",
                self.options.mask.band
            );
        }
        if inputs.positions.is_some() && self.rotary.is_none() {
            bail!("multi-head-attention: expected no positions for a layer without rotary positions, got some");
        }
        let mask = inputs.mask.unwrap_or(&self.options.mask).clone();
        Ok(AttentionOptions { mask, dropout: inputs.dropout, ..self.options.clone() })
    }

    /// The queries, keys and values of a call.
    fn project(&self, xs: &Tensor, inputs: &AttentionInputs) -> Result<[Tensor; 3]> {
        let positions = match inputs.positions {
            None => Positions::From(0),
            Some(ids) => self.positions(xs, ids)?,
        };
        let q = self.project_queries(xs, &positions)?;
        let (k, v) = match inputs.memory {
            Some(KeysValues { k, v }) => (k.clone(), v.clone()),
            None => self.project_keys_values(xs, &positions)?,
        };
        Ok([q, k, v])
    }

    /// The positions (B, T) that a call gives.
    fn positions(&self, xs: &Tensor, ids: &Tensor) -> Result<Positions> {
        let (b, t, _) = xs.dims3()?;
        if ids.dims() != [b, t] || ids.dtype() != DType::U32 {
            let (dims, dtype) = (ids.dims(), ids.dtype());
            bail!(
                "multi-head-attention: expected positions of shape {:?} and dtype U32, got {dims:?} and {dtype:?}",
                [b, t]
            );
        }
        Ok(Positions::Each(ids.flatten_all()?.to_vec1()?))
    }

    pub(super) fn project_queries(&self, xs: &Tensor, positions: &Positions) -> Result<Tensor> {
        let Sizes { h, d, .. } = self.sizes;
        let q = heads(&self.q_proj, xs, h, d)?; // (B, T, H, D)
        self.normalise_and_rotate(q, self.q_norm.as_ref(), positions)
    }

    pub(super) fn project_keys_values(&self, memory: &Tensor, positions: &Positions) -> Result<(Tensor, Tensor)> {
        let Sizes { m, g, d, e, .. } = self.sizes;
        if memory.dim(2)? != m {
            bail!("multi-head-attention: expected a memory of {m} channels, got {}", memory.dim(2)?);
        }
        let k = heads(&self.k_proj, memory, g, d)?; // (B, S, G, D)
        Ok((self.normalise_and_rotate(k, self.k_norm.as_ref(), positions)?, heads(&self.v_proj, memory, g, e)?))
    }

    /// Queries or keys, normalised and rotated if the layer does so.
    fn normalise_and_rotate(&self, mut heads: Tensor, norm: Option<&RmsNorm>, positions: &Positions) -> Result<Tensor> {
        if let Some(norm) = norm {
            heads = norm.forward(&heads)?;
        }
        match (&self.rotary, positions) {
            (Some(rotary), Positions::From(first)) => rotary.forward(&heads, *first),
            (Some(rotary), Positions::Each(positions)) => rotary.forward_at_each(&heads, positions.clone()),
            (None, _) => Ok(heads),
        }
    }

    pub(super) fn merge_heads(&self, ys: Tensor) -> Result<Tensor> {
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
    pub(super) fn is_packable(&self) -> bool {
        let Sizes { c, m, h, g, d, e } = self.sizes;
        c == m && h == g && d == e && self.q_norm.is_none() && self.rotary.is_none()
    }

    /// Queries, keys and values from one product, (B, T, 3 * H * D), which reads the input once.
    fn project_qkv(&self, xs: &Tensor) -> Result<Tensor> {
        Projection::stacked([&self.q_proj, &self.k_proj, &self.v_proj])?.forward(xs)
    }
}

impl Module for MultiHeadAttention {
    /// [`MultiHeadAttention::forward`], but refused if the layer has dropout: through this trait, candle derives a
    /// `forward_t` that would drop it in silence.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if self.dropout.is_some() {
            bail!(
                "multi-head-attention: expected a layer without dropout as a `Module`, whose `forward_t` ignores training, \
                 got one with: call `MultiHeadAttention::forward_t(xs, train)`, or `MultiHeadAttention::forward(xs)` to \
                 evaluate"
            );
        }
        self.forward_with(xs, &AttentionInputs::default())
    }
}

/// A projection split into heads: (B, T, n, channels).
fn heads(projection: &Projection, xs: &Tensor, n: usize, channels: usize) -> Result<Tensor> {
    let (b, t, _) = xs.dims3()?;
    record::reshape(&projection.forward(xs)?, (b, t, n, channels))
}

/// Refuses an input that the projection cannot take.
pub(super) fn check(what: &str, xs: &Tensor, projection: &Projection) -> Result<()> {
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
