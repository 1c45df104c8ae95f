//! Cross-entropy composed of candle's own operations, for any dtype and device.

use candle_core::{D, Result, Tensor};

use super::kernel::{Targets, Terms};
use crate::cpu::storage::{precise, zero_with_graph};

/// See [`super::cross_entropy`]; the arguments have been checked.
pub(super) fn cross_entropy(logits: &Tensor, targets: &Targets) -> Result<Tensor> {
    let (dtype, device, vocab_size) = (logits.dtype(), logits.device(), logits.dim(D::Minus1)?);
    let logits = logits.reshape(((), vocab_size))?.to_dtype(precise(dtype))?; // (N, V)
    let (rows, ids) = targets.counting();
    if rows.is_empty() {
        return zero_with_graph(&logits)?.to_dtype(dtype);
    }
    let logits = match rows.len() == targets.ids.len() {
        true => logits,
        false => logits.index_select(&Tensor::new(rows, device)?, 0)?, // (N', V)
    };
    let ids = Tensor::new(ids, device)?.unsqueeze(1)?; // (N', 1)
    let Terms { smoothing, z_loss, softcap } = targets.terms;
    let logits = match softcap {
        Some(cap) => ((logits / cap)?.tanh()? * cap)?,
        None => logits,
    };

    // Shifting a row does not change the result, so its maximum is treated as a constant.
    let max = logits.detach().max_keepdim(D::Minus1)?; // (N', 1)
    let shifted = logits.broadcast_sub(&max)?; // (N', V)
    let log_sums = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?; // (N', 1)
    let of_targets = shifted.gather(&ids, D::Minus1)?; // (N', 1)
    let target_terms = match smoothing {
        0.0 => of_targets,
        s => ((of_targets * (1.0 - s))? + (shifted.mean_keepdim(D::Minus1)? * s)?)?, // (N', 1)
    };
    let losses = match z_loss {
        0.0 => (log_sums - target_terms)?,
        z => ((&log_sums - target_terms)? + ((log_sums + max)?.sqr()? * z)?)?, // (N', 1)
    };
    (losses.sum_all()? / targets.normalizer)?.to_dtype(dtype)
}
