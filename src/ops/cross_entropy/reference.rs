//! Cross-entropy from candle's own operations, for any dtype and device.

use candle_core::{D, Result, Tensor};

use crate::ops::storage::precise;

/// See [`super::cross_entropy`]; the arguments have been checked.
pub(super) fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (n, vocab_size) = (targets.elem_count(), logits.dim(D::Minus1)?);
    let dtype = logits.dtype();
    let logits = logits.reshape((n, vocab_size))?.to_dtype(precise(dtype))?;
    let targets = targets.reshape((n, 1))?;

    // Shifting a row changes nothing, so its maximum counts as a constant.
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?; // (N, V)
    let log_sums = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?; // (N, 1)
    let of_targets = shifted.gather(&targets, D::Minus1)?; // (N, 1)
    (log_sums - of_targets)?.mean_all()?.to_dtype(dtype)
}
