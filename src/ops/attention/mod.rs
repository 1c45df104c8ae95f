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
//! In `f32` on the CPU the operation is fused: it works in tiles of positions, skips those in which nothing is visible,
//! and needs memory linear in T and S, forward and backward. For other dtypes and devices it is composed of candle's own
//! operations, for 256 queries at a time, which backward composes again. Memory is quadratic only where the weights are
//! returned, a dense mask or bias is given, or, composed, a bias is tracked; then even D times that, if keys or values that
//! some queries see, and others do not, are not finite.
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

mod composed;
mod cpu;
mod mask;
#[cfg(feature = "lm")]
mod one_query;
mod op;
mod options;
mod reference;
mod structure;

use candle_core::{Layout, Result, Tensor, bail};

use self::cpu::{Dims, Sizes};
use self::op::{Attention, Extras, PackedAttention};
use super::record::{self, Kept};
use crate::cpu::checks::check_alike;
use crate::cpu::storage::has_kernel;

pub use mask::{Band, KeyPadding, Mask};
#[cfg(feature = "lm")]
pub(crate) use one_query::{Sequences, one_query};
pub use options::{AttentionOptions, QkvLayout, Scale};

/// Scaled dot-product attention: the weighted sums of `v`, (B, T, H, E), contiguous. Formula and shapes are in the
/// [module documentation](self); for tensors (B, H, T, D) as in torch, see [`AttentionOptions::layout`].
///
/// # Errors
/// If a tensor is not of rank 4, or sizes, dtypes or devices do not fit together.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    Ok(run([q, k, v], options, false)?.0)
}

/// The output of [`attention`], and the log-sum-exp of each query's scores, (B, H, T), in `f32` for halves. Both are
/// differentiable.
///
/// The log-sum-exp includes the sink, if any, and is minus infinity for a query that sees nothing. Attention to two sets
/// of keys, `(out1, lse1)` and `(out2, lse2)`, is `out1 exp(lse1 - lse) + out2 exp(lse2 - lse)` for their union, with
/// `lse = log(exp(lse1) + exp(lse2))`.
///
/// # Errors
/// Those of [`attention`].
pub fn attention_with_lse(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<(Tensor, Tensor)> {
    match run([q, k, v], options, true)? {
        (out, Some(lse)) => Ok((out, lse)),
        (_, None) => bail!("attention: expected a log-sum-exp"),
    }
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
    let [q, k, v] = positions_first([q, k, v], options.layout)?;
    let sizes = check(&q, &k, &v, options)?;
    let composed::Results { out, weights, .. } = composed::attention([&q, &k, &v], sizes, options, true)?;
    match weights {
        Some(weights) => Ok((in_layout(out, options.layout)?, weights)),
        None => bail!("attention: expected weights"),
    }
}

/// The output, and the log-sum-exp if it is wanted.
fn run(tensors: [&Tensor; 3], options: &AttentionOptions, with_lse: bool) -> Result<(Tensor, Option<Tensor>)> {
    let [q, k, v] = positions_first(tensors, options.layout)?;
    let sizes = check(&q, &k, &v, options)?;
    if !takes_kernel(&[&q, &k, &v], options) {
        let composed::Results { out, lse, .. } = composed::attention([&q, &k, &v], sizes, options, false)?;
        return Ok((in_layout(out, options.layout)?, Some(lse)));
    }
    let op = Attention::new(options, sizes, &[&q, &k, &v], with_lse)?;
    let (q, k, v) = (with_rows(&q)?, with_rows(&k)?, with_rows(&v)?);
    let out = match Extras::of(options) {
        extras if extras.any() => {
            if record::is_recording() {
                bail!("record: attention with a tracked bias or tracked sinks is not recorded");
            }
            let parts = [extras.bias.and(options.mask.bias.as_ref()), options.sinks.as_ref().filter(|_| extras.sinks)];
            let parts = parts.into_iter().flatten().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
            let extras = if let [one] = parts.as_slice() { one.clone() } else { Tensor::cat(&parts, 0)? };
            let kv = Tensor::cat(&[k, v], 3)?.contiguous()?;
            record::apply3([&q, &kv, &extras], op, Kept::InputsAndResult)?
        }
        _ => record::apply3([&q, &k, &v], op, Kept::InputsAndResult)?,
    };
    if !with_lse {
        return Ok((out, None));
    }
    let e = sizes.dims.e;
    let lse = out.narrow(3, e, 1)?.squeeze(3)?;
    let lse = if options.layout == QkvLayout::Bthd { lse.transpose(1, 2)? } else { lse };
    Ok((out.narrow(3, 0, e)?.contiguous()?, Some(lse.contiguous()?)))
}

/// Whether the kernel handles these tensors: not if one is empty.
fn takes_kernel(tensors: &[&Tensor], options: &AttentionOptions) -> bool {
    let is_empty = tensors.iter().any(|tensor| tensor.elem_count() == 0);
    let all: Vec<&Tensor> = tensors.iter().copied().chain(&options.mask.bias).chain(&options.sinks).collect();
    has_kernel(&all) && !is_empty
}

/// Queries, keys and values as (B, T, H, D).
fn positions_first(tensors: [&Tensor; 3], layout: QkvLayout) -> Result<[Tensor; 3]> {
    let [q, k, v] = tensors.map(|tensor| match layout {
        QkvLayout::Bhtd if tensor.rank() == 4 => tensor.transpose(1, 2),
        _ => Ok(tensor.clone()),
    });
    Ok([q?, k?, v?])
}

/// An output (B, T, H, E) in the order of a layout.
fn in_layout(out: Tensor, layout: QkvLayout) -> Result<Tensor> {
    match layout {
        QkvLayout::Bthd => Ok(out),
        QkvLayout::Bhtd => out.transpose(1, 2)?.contiguous(),
    }
}

/// The tensor, or a contiguous copy if its channels are not adjacent.
fn with_rows(tensor: &Tensor) -> Result<Tensor> {
    let has_rows = |layout: &Layout| layout.stride()[3] == 1;
    if has_rows(tensor.layout()) { Ok(tensor.clone()) } else { tensor.contiguous() }
}

/// Self-[`attention`] on the packed output of one projection: `qkv` (B, T, 3 * H * D) has, for each position, first the
/// H heads of its query, then those of its key, then those of its value. The output is (B, T, H * D). The layout among
/// the options does not matter.
///
/// # Errors
/// If the last dimension of `qkv` is not divisible by `3 * num_heads`, or the options do not fit.
pub fn self_attention(qkv: &Tensor, num_heads: usize, options: &AttentionOptions) -> Result<Tensor> {
    let (b, t, width) = qkv.dims3()?;
    if num_heads == 0 || num_heads > width || !width.is_multiple_of(3 * num_heads) {
        bail!("attention: expected packed channels divisible by 3 * {num_heads} heads, got {width}");
    }
    let head_dim = width / 3 / num_heads;
    let options = AttentionOptions { layout: QkvLayout::Bthd, ..options.clone() };
    options.check([b, num_heads, t, t], qkv)?;
    if takes_kernel(&[qkv], &options) && !Extras::of(&options).any() {
        let sizes = Sizes { b, h: num_heads, g: num_heads, dims: Dims { t, s: t, d: head_dim, e: head_dim } };
        let op = PackedAttention(Attention::new(&options, sizes, &[qkv], false)?);
        return record::apply1(&qkv.contiguous()?, op, Kept::InputsAndResult);
    }
    if qkv.elem_count() == 0 {
        // candle takes no parts of nothing.
        return composed::zero(&[qkv], &options)?.broadcast_as((b, t, width / 3))?.contiguous();
    }
    let part = |i: usize| qkv.narrow(2, i * width / 3, width / 3)?.reshape((b, t, num_heads, head_dim));
    attention(&part(0)?, &part(1)?, &part(2)?, &options)?.reshape((b, t, width / 3))
}

/// Refuses inputs that do not fit the formula, naming what was expected and what came.
fn check(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Sizes> {
    for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
        if tensor.rank() != 4 {
            bail!("attention: expected {name} of shape (B, T, H, D), got {:?}", tensor.shape());
        }
        if !tensor.dtype().is_float() {
            bail!("attention: expected {name} of a floating-point dtype, got {:?}", tensor.dtype());
        }
        check_alike("attention", name, tensor, "q", q)?;
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
    options.check([b, h, t, s], q)?;
    Ok(Sizes { b, h, g, dims: Dims { t, s, d, e } })
}

#[cfg(test)]
mod tests;
