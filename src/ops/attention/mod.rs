//! Scaled dot-product attention over a set of allowed positions.
//!
//! For query position `t` and key position `s`, head by head,
//!
//! ```text
//! scores[t, s]  = scale * (q[t] . k[s])
//! weights[t, s] = exp(scores[t, s]) / sum over allowed s' of exp(scores[t, s'])     (0 where s is not allowed)
//! out[t]        = sum over s of weights[t, s] * v[s]
//! ```
//!
//! Which `s` are allowed is the question a [`Mask`] answers; causal attention is the case `s <= t`. A query
//! that may see nothing gives zeros, and zero gradients.
//!
//! | tensor | shape |
//! |---|---|
//! | `q` | (B, T, H, D) |
//! | `k` | (B, S, H, D) |
//! | `v` | (B, S, H, E) |
//! | out | (B, T, H, E) |
//! | weights | (B, H, T, S) |
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

mod mask;
mod reference;

use candle_core::{Result, Tensor, bail};

pub use mask::Mask;

/// What the dot products of queries and keys are multiplied by before the softmax.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Scale {
    /// `1 / sqrt(D)`, which keeps the variance of the scores near that of one product.
    #[default]
    InverseSqrt,
    /// 1: the bare dot product.
    None,
    /// Any other number.
    Value(f64),
}

impl Scale {
    /// The factor for keys of `head_dim` channels.
    pub fn factor(self, head_dim: usize) -> f64 {
        match self {
            Scale::InverseSqrt => 1.0 / (head_dim as f64).sqrt(),
            Scale::None => 1.0,
            Scale::Value(factor) => factor,
        }
    }
}

/// How [`attention`] scores and which positions it allows. The default is causal, scaled by `1 / sqrt(D)`.
#[derive(Clone, Debug, Default)]
pub struct AttentionOptions {
    /// The factor on the dot products.
    pub scale: Scale,
    /// Which keys a query may see.
    pub mask: Mask,
}

/// The weighted sums of `v`: (B, T, H, E). Shapes and formula stand in the [module's documentation](self).
///
/// # Errors
/// If a tensor is not of rank 4, or sizes, dtypes or devices do not agree.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    Ok(attention_with_weights(q, k, v, options)?.0)
}

/// As [`attention`], with the weights (B, H, T, S) beside the output. Both are differentiable.
///
/// # Errors
/// Those of [`attention`].
pub fn attention_with_weights(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: &AttentionOptions,
) -> Result<(Tensor, Tensor)> {
    check(q, k, v)?;
    reference::attention(q, k, v, options)
}

/// Refuses what the formula does not cover, naming what was expected and what came.
fn check(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
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
    let (b, _, h, d) = q.dims4()?;
    let (s, e) = (k.dim(1)?, v.dim(3)?);
    if k.dims() != [b, s, h, d] || v.dims() != [b, s, h, e] {
        bail!(
            "attention: expected k of shape {:?} and v of shape {:?} to go with q, got {:?} and {:?}",
            [b, s, h, d],
            [b, s, h, e],
            k.dims(),
            v.dims()
        );
    }
    Ok(())
}
