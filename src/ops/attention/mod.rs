//! Scaled dot-product attention over a set of allowed positions.
//!
//! For query position `t` and key position `s`, head by head,
//!
//! ```text
//! scores[t, s]  = scale * (q[t] . k[s])                          (with a soft cap: cap * tanh(scores / cap))
//! weights[t, s] = exp(scores[t, s]) / sum over allowed s' of exp(scores[t, s'])     (0 where s is not allowed)
//! out[t]        = sum over s of weights[t, s] * v[s]
//! ```
//!
//! Which `s` are allowed is decided by a [`Mask`]; causal attention is the case `s <= t`. A query that may see nothing
//! gives zeros, and gets zero gradients.
//!
//! | tensor | shape |
//! |---|---|
//! | `q` | (B, T, H, D) |
//! | `k` | (B, S, G, D) |
//! | `v` | (B, S, G, E) |
//! | out | (B, T, H, E) |
//! | weights | (B, H, T, S) |
//!
//! G must divide H: each head of keys and values serves H / G consecutive heads of queries (grouped-query attention,
//! Ainslie et al. 2023, arXiv:2305.13245).
//!
//! In `f32` on the CPU the operation is fused: it works in tiles of positions, skips those in which nothing is allowed,
//! and needs memory linear in T and S, forward and backward. For other dtypes and devices, and when the weights are
//! requested, it is composed of candle's own operations.
//!
//! ```
//! use candle_attention::ops::{AttentionOptions, attention};
//! use candle_core::{Device, Tensor};
//!
//! let (b, t, h, d) = (1, 3, 1, 2);
//! let q = Tensor::zeros((b, t, h, d), candle_core::DType::F32, &Device::Cpu)?;
//! let v = Tensor::new(&[2f32, 2., 4., 4., 9., 9.], &Device::Cpu)?.reshape((b, t, h, d))?;
//! // Equal scores: position t sees the mean of the values up to t.
//! let out = attention(&q, &q, &v, &AttentionOptions::default())?;
//! assert_eq!(out.flatten_all()?.to_vec1::<f32>()?, [2., 2., 3., 3., 5., 5.]);
//! # Ok::<(), candle_core::Error>(())
//! ```

mod fused_attention;
mod heads;
mod kernel;
mod layout;
mod mask;
mod reference;
mod rows;
mod scores;
mod single;
mod visible;

use candle_core::{DType, Layout, Result, Tensor, bail};

use self::fused_attention::{Attention, PackedAttention};
use super::DropoutOptions;
use super::record::{self, Kept};
use crate::cpu::storage::has_kernel;

pub use mask::{KeyPadding, Mask};

/// The factor on the dot products of queries and keys.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Scale {
    /// `1 / sqrt(D)`, which keeps the variance of the scores near that of a single product.
    #[default]
    InverseSqrt,
    /// 1: the plain dot product.
    None,
    /// Any other number.
    Value(f64),
}

impl Scale {
    /// The factor for queries and keys of `head_dim` channels.
    pub fn factor(self, head_dim: usize) -> f64 {
        match self {
            Scale::InverseSqrt => 1.0 / (head_dim as f64).sqrt(),
            Scale::None => 1.0,
            Scale::Value(factor) => factor,
        }
    }
}

/// Options of [`attention`]. The default is causal, scaled by `1 / sqrt(D)`.
#[derive(Clone, Debug, Default)]
pub struct AttentionOptions {
    /// The factor on the dot products.
    pub scale: Scale,
    /// Which keys a query may see.
    pub mask: Mask,
    /// A bound on the scores, before the mask: `score` becomes `softcap * tanh(score / softcap)` (Gemma 2,
    /// arXiv:2408.00118).
    pub softcap: Option<f64>,
    /// Dropout of the weights; backward draws it again instead of keeping it. Head `h` of sequence `b` uses the random
    /// stream `(first_sequence + b) * H + h`, and query `t` and key `s` its word `t * 2^32 + s`.
    pub dropout: Option<DropoutOptions>,
}

impl AttentionOptions {
    /// Refuses options out of their range, or a mask that does not fit `b` sequences of `h` heads, `t` queries and `s`
    /// keys.
    fn check(&self, [b, h, t, s]: [usize; 4], dtype: DType) -> Result<()> {
        // Kernels use both in `f32`.
        match self.softcap {
            Some(cap) if !(cap > 0.0 && (cap as f32).is_normal()) => {
                bail!("attention: expected a softcap above 0 that is a number of f32, got {cap}")
            }
            _ => {}
        }
        match self.scale {
            Scale::Value(scale) if !(scale as f32).is_finite() => {
                bail!("attention: expected a scale that is a finite number of f32, got {scale}")
            }
            _ => {}
        }
        if let Some(dropout) = &self.dropout {
            dropout.factors()?;
        }
        self.mask.check([b, h, t, s], dtype)
    }
}

/// Scaled dot-product attention: the weighted sums of `v`, (B, T, H, E). Formula and shapes are in the
/// [module documentation](self).
///
/// # Errors
/// If a tensor is not of rank 4, or sizes, dtypes or devices do not fit together.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    check(q, k, v, options)?;
    if !takes_kernel(&[q, k, v], &options.mask) {
        return Ok(reference::attention(q, k, v, options)?.0);
    }
    let op = Attention::new(options, q.dim(3)?, &[q, k, v])?;
    record::apply3([&with_rows(q)?, &with_rows(k)?, &with_rows(v)?], op, Kept::InputsAndResult)
}

/// Whether the kernel handles these tensors: not if one is empty, or a bias is tracked, whose gradient it does not
/// compute.
fn takes_kernel(tensors: &[&Tensor], mask: &Mask) -> bool {
    let is_empty = tensors.iter().any(|tensor| tensor.elem_count() == 0);
    has_kernel(tensors) && !is_empty && !matches!(mask, Mask::Additive(bias) if record::is_tracked(bias))
}

/// The tensor, or a contiguous copy if its channels are not adjacent.
fn with_rows(tensor: &Tensor) -> Result<Tensor> {
    let has_rows = |layout: &Layout| layout.stride()[3] == 1;
    if has_rows(tensor.layout()) { Ok(tensor.clone()) } else { record::contiguous(tensor) }
}

/// Self-[`attention`] on the packed output of one projection: `qkv` (B, T, 3 * H * D) has, for each position, first the
/// H heads of its query, then those of its key, then those of its value. The output is (B, T, H * D).
///
/// # Errors
/// If the last dimension of `qkv` is not divisible by `3 * num_heads`.
pub fn self_attention(qkv: &Tensor, num_heads: usize, options: &AttentionOptions) -> Result<Tensor> {
    let (b, t, width) = qkv.dims3()?;
    if num_heads == 0 || num_heads > width || !width.is_multiple_of(3 * num_heads) {
        bail!("attention: expected packed channels divisible by 3 * {num_heads} heads, got {width}");
    }
    let head_dim = width / 3 / num_heads;
    options.check([b, num_heads, t, t], qkv.dtype())?;
    if takes_kernel(&[qkv], &options.mask) {
        let attention = Attention::new(options, head_dim, &[qkv])?;
        return record::apply1(
            &record::contiguous(qkv)?,
            PackedAttention { attention, num_heads },
            Kept::InputsAndResult,
        );
    }
    let part = |i: usize| qkv.narrow(2, i * width / 3, width / 3)?.reshape((b, t, num_heads, head_dim));
    attention(&part(0)?, &part(1)?, &part(2)?, options)?.reshape((b, t, width / 3))
}

/// The output of [`attention`] and the weights (B, H, T, S) before dropout. Both are differentiable.
///
/// # Errors
/// Those of [`attention`].
pub fn attention_with_weights(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: &AttentionOptions,
) -> Result<(Tensor, Tensor)> {
    check(q, k, v, options)?;
    reference::attention(q, k, v, options)
}

/// Refuses inputs that do not fit the formula, naming what was expected and what came.
fn check(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<()> {
    for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
        if tensor.rank() != 4 {
            bail!("attention: expected {name} of shape (B, T, H, D), got {:?}", tensor.shape());
        }
        if tensor.dtype() != q.dtype() || !tensor.dtype().is_float() {
            bail!(
                "attention: expected q, k and v of one floating-point dtype, got {:?}, {:?} and {:?}",
                q.dtype(),
                k.dtype(),
                v.dtype()
            );
        }
        if !tensor.device().same_device(q.device()) {
            bail!(
                "attention: expected {name} on {:?} as q, got {:?}",
                q.device().location(),
                tensor.device().location()
            );
        }
    }
    let (b, t, h, d) = q.dims4()?;
    if d == 0 {
        bail!("attention: expected queries of at least one channel, got none");
    }
    let ((_, s, g, _), (_, _, _, e)) = (k.dims4()?, v.dims4()?);
    if k.dims() != [b, s, g, d] || v.dims() != [b, s, g, e] {
        bail!(
            "attention: expected k of shape {:?} and v of shape {:?} to go with q, got {:?} and {:?}",
            [b, s, g, d],
            [b, s, g, e],
            k.dims(),
            v.dims()
        );
    }
    if g == 0 || !h.is_multiple_of(g) {
        bail!("attention: expected the heads of k and v to divide the {h} heads of q, got {g}");
    }
    options.check([b, h, t, s], q.dtype())
}

#[cfg(test)]
mod tests;
