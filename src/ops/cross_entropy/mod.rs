//! The loss of next-token prediction.
//!
//! ```text
//! loss   = sum over positions that count of (lse - likely + z lse^2) / divisor
//! lse    = log(sum over v of exp(logits[v]))
//! likely = (1 - s) logits[target] + s mean over v of logits[v]
//! ```
//!
//! with label smoothing `s` (Szegedy et al. 2015, arXiv:1512.00567; defined as in torch) and z-loss `z` (Chowdhery et
//! al. 2022, arXiv:2204.02311, section 5), which keeps the logits from drifting. Both are 0 by default.

mod fused_loss;
mod kernel;
mod linear_kernel;
mod reference;

use std::sync::OnceLock;

use candle_core::{D, DType, Result, Tensor, bail};

use self::fused_loss::{CrossEntropy, LinearCrossEntropy};
use self::kernel::{Targets, Terms};
use super::record::{self, Kept};
use crate::cpu::checks::check_not_negative;
use crate::cpu::storage::has_kernel;

/// Which positions count, and how their losses are combined. The default is the mean over all positions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropyOptions {
    /// Positions with this target do not count: they add nothing to the loss and get zero gradients. It need not be a
    /// valid id.
    pub ignored: Option<u32>,
    /// The divisor of the sum; by default the number of positions that count. If none counts, loss and gradients are 0
    /// for any divisor (torch's mean over nothing is NaN).
    pub divisor: Option<f64>,
    /// The share of the target's probability that is spread evenly over the vocabulary (`s`), from 0 to below 1.
    pub label_smoothing: f64,
    /// The factor on the squared log-sum-exp (`z`), at least 0.
    pub z_loss: f64,
}

/// The loss, in nats, of `logits` (.., V) for `targets` (..), `u32` ids below V: a scalar.
///
/// In `f32` on the CPU the operation is fused, and keeps two numbers per row for backward.
///
/// # Errors
/// If the shapes or dtypes do not fit, a target that is not ignored is V or more, the divisor is not above 0, the label
/// smoothing is not from 0 to below 1, or the z-loss is negative or not finite.
///
/// ```
/// use candle_attention::ops::{self, CrossEntropyOptions};
/// use candle_core::{Device, Tensor};
///
/// let logits = Tensor::new(&[[0f32, 0.], [9., -9.]], &Device::Cpu)?;
/// let targets = Tensor::new(&[1u32, 100], &Device::Cpu)?;
/// let options = CrossEntropyOptions { ignored: Some(100), ..Default::default() };
/// assert_eq!(ops::cross_entropy(&logits, &targets, &options)?.to_scalar::<f32>()?, 2f32.ln());
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, options: &CrossEntropyOptions) -> Result<Tensor> {
    check("cross-entropy", "logits", logits, targets)?;
    let targets = read_targets("cross-entropy", targets, logits.dim(D::Minus1)?, options)?;
    match has_kernel(&[logits]) {
        true => {
            record::apply1(&record::contiguous(logits)?, CrossEntropy { targets, rows: OnceLock::new() }, Kept::Inputs)
        }
        false => reference::cross_entropy(logits, &targets),
    }
}

/// [`cross_entropy`] of the logits `xs W^T`: a scalar.
///
/// `xs` (.., C), `weight` (V, C), `targets` (..): `u32` ids below V.
///
/// In `f32` on the CPU the operation is fused: it holds the logits of only some rows at a time, and computes the
/// gradients of tracked inputs in the same pass.
///
/// # Errors
/// Those of [`cross_entropy`].
pub fn linear_cross_entropy(
    xs: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    options: &CrossEntropyOptions,
) -> Result<Tensor> {
    check("linear-cross-entropy", "the input", xs, targets)?;
    let (vocab_size, channels) = weight.dims2()?;
    let targets = read_targets("linear-cross-entropy", targets, vocab_size, options)?;
    if !has_kernel(&[xs, weight]) || vocab_size == 0 {
        return reference::cross_entropy(&super::linear(xs, weight, None)?, &targets);
    }
    if xs.dims().last() != Some(&channels) {
        bail!("linear-cross-entropy: expected an input of shape (.., {channels}), got {:?}", xs.dims());
    }
    let (rows, ids) = targets.counting();
    let xs = match rows.len() == targets.ids.len() {
        true => record::contiguous(xs)?,
        false => super::embedding(&Tensor::new(rows, xs.device())?, &record::reshape(xs, ((), channels))?)?,
    };
    let tracked = [&xs, weight].map(record::is_tracked);
    let Targets { divisor, terms, .. } = targets;
    let op = LinearCrossEntropy { targets: ids, divisor, terms, tracked, gradients: OnceLock::new() };
    record::apply2(&xs, &record::contiguous(weight)?, op)
}

/// The targets that count, all below V. (candle's own look-ups silently treat the highest `u32` as no index.)
fn read_targets(op: &str, targets: &Tensor, vocab_size: usize, options: &CrossEntropyOptions) -> Result<Targets> {
    let ids: Vec<u32> = targets.flatten_all()?.to_vec1()?;
    let ids: Vec<Option<u32>> = ids.into_iter().map(|id| (Some(id) != options.ignored).then_some(id)).collect();
    let counting = ids.iter().flatten().count();
    if let Some(id) = ids.iter().flatten().find(|&&id| id as usize >= vocab_size) {
        bail!("{op}: expected targets below {vocab_size}, got {id}");
    }
    let divisor = match options.divisor {
        _ if counting == 0 => 1.0,
        None => counting as f64,
        Some(divisor) if divisor > 0.0 => divisor,
        Some(divisor) => bail!("{op}: expected a divisor above 0, got {divisor}"),
    };
    let &CrossEntropyOptions { label_smoothing: smoothing, z_loss, .. } = options;
    if !(0.0..1.0).contains(&smoothing) {
        bail!("{op}: expected label smoothing from 0 to below 1, got {smoothing}");
    }
    check_not_negative(op, &[("a z-loss", z_loss)])?;
    Ok(Targets { ids, divisor, terms: Terms { smoothing, z_loss } })
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
    if targets.dtype() != DType::U32 {
        bail!("{op}: expected targets of dtype U32, got {:?}", targets.dtype());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
