//! The loss of next-token prediction.

use candle_core::{D, DType, Result, Tensor, bail};

/// The mean over all positions of `log(sum over v of exp(logits[v])) - logits[target]`, in nats: a scalar.
///
/// `logits` (.., V), `targets` of the same leading shape: `u32` ids below V.
///
/// # Errors
/// If the shapes or dtypes do not agree, or a target is V or more.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (leading, vocab_size) = match logits.dims() {
        [leading @ .., vocab_size] if leading == targets.dims() => (leading, *vocab_size),
        dims => {
            bail!("cross-entropy: expected targets of the leading shape of logits {dims:?}, got {:?}", targets.dims())
        }
    };
    if targets.dtype() != DType::U32 {
        bail!("cross-entropy: expected targets of dtype U32, got {:?}", targets.dtype());
    }
    let n: usize = leading.iter().product();
    let logits = logits.reshape((n, vocab_size))?;
    let targets = targets.reshape((n, 1))?;

    // Shifting a row changes nothing, so its maximum counts as a constant.
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?; // (N, V)
    let log_sums = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?; // (N, 1)
    let of_targets = shifted.gather(&targets, D::Minus1)?; // (N, 1)
    (log_sums - of_targets)?.mean_all()
}
