//! The loss of next-token prediction.
//!
//! ```text
//! loss        = sum over positions that count of (lse - target_term + z lse^2) / normalizer
//! lse         = log(sum over v of exp(logits[v]))
//! target_term = (1 - s) logits[target] + s mean over v of logits[v]
//! ```
//!
//! with label smoothing `s` (Szegedy et al. 2015, arXiv:1512.00567; defined as in torch) and z-loss `z` (Chowdhery et
//! al. 2022, arXiv:2204.02311, section 5), which keeps the logits from drifting. Both are 0 by default. With a soft cap,
//! `cap tanh(logits / cap)` takes the place of the logits (Gemma 2, arXiv:2408.00118, section 2).

mod fused_loss;
mod kernel;
mod linear_kernel;
mod reference;

use std::sync::OnceLock;

use candle_core::{D, DType, Result, Tensor, bail};

use self::fused_loss::{CrossEntropy, LinearCrossEntropy};
use self::kernel::{Targets, Terms};
use super::record::{self, Kept};
use super::with_bias;
use crate::cpu::checks::{check_not_negative, check_softcap};
use crate::cpu::storage::has_kernel;

/// Which positions count, and how their losses are combined. The default is the mean over all positions whose target is
/// not -100.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropyOptions {
    /// Positions with this target do not count: they add nothing to the loss and get zero gradients. It need not be a
    /// valid id. By default -100, as in torch, which no target of dtype `u32` is.
    pub ignore_index: Option<i64>,
    /// What the sum is divided by; by default the number of positions that count. If none counts, loss and gradients are 0
    /// for any normalizer (torch's mean over nothing is NaN).
    pub normalizer: Option<f64>,
    /// The share of the target's probability that is spread evenly over the vocabulary (`s`), from 0 to below 1.
    pub label_smoothing: f64,
    /// The factor on the squared log-sum-exp (`z`), at least 0.
    pub z_loss: f64,
    /// The soft cap of the logits, above 0; by default none.
    pub softcap: Option<f64>,
}

impl Default for CrossEntropyOptions {
    fn default() -> Self {
        Self { ignore_index: Some(-100), normalizer: None, label_smoothing: 0.0, z_loss: 0.0, softcap: None }
    }
}

/// The loss, in nats, of `logits` (.., V) for `targets` (..), ids below V of dtype `u32` or `i64`: a scalar.
///
/// In `f32` on the CPU the operation is fused, and keeps two numbers per row for backward.
///
/// # Errors
/// If the shapes or dtypes do not fit, a target that is not ignored is negative or V or more, normalizer or soft cap is
/// not above 0, the label smoothing is not from 0 to below 1, or the z-loss is negative or not finite.
///
/// ```
/// use candle_attention::ops::{self, CrossEntropyOptions};
/// use candle_core::{Device, Tensor};
///
/// let logits = Tensor::new(&[[0f32, 0.], [9., -9.]], &Device::Cpu)?;
/// let targets = Tensor::new(&[1i64, -100], &Device::Cpu)?;
/// let loss = ops::cross_entropy(&logits, &targets, &CrossEntropyOptions::default())?;
/// assert_eq!(loss.to_scalar::<f32>()?, 2f32.ln());
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, options: &CrossEntropyOptions) -> Result<Tensor> {
    check("cross-entropy", "logits", logits, targets)?;
    let targets = read_targets("cross-entropy", targets, logits.dim(D::Minus1)?, options)?;
    match has_kernel(&[logits]) {
        true => record::apply1(&logits.contiguous()?, CrossEntropy { targets, rows: OnceLock::new() }, Kept::Inputs),
        false => reference::cross_entropy(logits, &targets),
    }
}

/// [`cross_entropy`] of the logits `xs W^T + bias`: a scalar.
///
/// `xs` (.., C), `weight` W (V, C), `bias` (V), `targets` (..): ids below V of dtype `u32` or `i64`.
///
/// In `f32` on the CPU the operation is fused: it holds the logits of only some rows at a time, and computes the
/// gradients of tracked inputs in the same pass.
///
/// # Errors
/// Those of [`cross_entropy`] and of [`linear`](super::linear()).
pub fn linear_cross_entropy(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
    options: &CrossEntropyOptions,
) -> Result<Tensor> {
    const OP: &str = "linear-cross-entropy";
    check(OP, "the input", xs, targets)?;
    let (vocab_size, channels) = weight.dims2()?;
    let targets = read_targets(OP, targets, vocab_size, options)?;
    let tensors: Vec<&Tensor> = [xs, weight].into_iter().chain(bias).collect();
    if !has_kernel(&tensors) || vocab_size == 0 {
        return reference::cross_entropy(&super::linear(xs, weight, bias)?, &targets);
    }
    if xs.dims().last() != Some(&channels) {
        bail!("{OP}: expected an input of shape (.., {channels}), got {:?}", xs.dims());
    }
    if let Some(bias) = bias.filter(|bias| bias.dims() != [vocab_size]) {
        bail!("{OP}: expected a bias of shape {:?}, got {:?}", [vocab_size], bias.dims());
    }
    let (rows, ids) = targets.counting();
    let xs = match rows.len() == targets.ids.len() {
        true => xs.clone(),
        false => super::embedding(&Tensor::new(rows, xs.device())?, &record::reshape(xs, ((), channels))?)?,
    };
    let tracked = [Some(&xs), Some(weight), bias].map(|tensor| tensor.is_some_and(Tensor::track_op));
    let Targets { normalizer, terms, .. } = targets;
    let op = LinearCrossEntropy { targets: ids, normalizer, terms, tracked, gradients: OnceLock::new() };
    with_bias::apply(op, &xs, weight, bias)
}

/// The targets that count, all below V. (candle's own look-ups silently treat the highest `u32` as no index.)
fn read_targets(op: &str, targets: &Tensor, vocab_size: usize, options: &CrossEntropyOptions) -> Result<Targets> {
    let &CrossEntropyOptions { ignore_index, normalizer, label_smoothing: smoothing, z_loss, softcap } = options;
    let targets = targets.flatten_all()?;
    let ids: Vec<i64> = match targets.dtype() {
        DType::I64 => targets.to_vec1()?,
        _ => targets.to_vec1::<u32>()?.into_iter().map(i64::from).collect(),
    };
    let valid = |id: i64| u32::try_from(id).ok().filter(|id| (*id as usize) < vocab_size);
    let read = |id: i64| match valid(id) {
        _ if Some(id) == ignore_index => Ok(None),
        Some(id) => Ok(Some(id)),
        None => {
            let ignored = ignore_index.map_or("no ignore_index".into(), |index| format!("the ignore_index {index}"));
            bail!("{op}: expected targets from 0 to below {vocab_size}, and {ignored}, got {id}")
        }
    };
    let ids: Vec<Option<u32>> = ids.into_iter().map(read).collect::<Result<_>>()?;
    let counting = ids.iter().flatten().count();
    let normalizer = match normalizer {
        _ if counting == 0 => 1.0,
        None => counting as f64,
        Some(normalizer) if normalizer > 0.0 => normalizer,
        Some(normalizer) => bail!("{op}: expected a normalizer above 0, got {normalizer}"),
    };
    if !(0.0..1.0).contains(&smoothing) {
        bail!("{op}: expected label smoothing from 0 to below 1, got {smoothing}");
    }
    check_not_negative(op, &[("a z-loss", z_loss)])?;
    check_softcap(op, softcap)?;
    Ok(Targets { ids, normalizer, terms: Terms { smoothing, z_loss, softcap } })
}

fn check(op: &str, name: &str, xs: &Tensor, targets: &Tensor) -> Result<()> {
    match xs.dims() {
        [leading @ .., _] if leading == targets.dims() => {}
        dims => bail!("{op}: expected targets of the leading shape of {name} {dims:?}, got {:?}", targets.dims()),
    }
    if !xs.dtype().is_float() || xs.elem_count() == 0 {
        bail!(
            "{op}: expected {name} to be one or more rows of a floating-point dtype, got {:?} of {:?}",
            xs.dtype(),
            xs.dims()
        );
    }
    if !matches!(targets.dtype(), DType::U32 | DType::I64) {
        bail!("{op}: expected targets of dtype U32 or I64, got {:?}", targets.dtype());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
