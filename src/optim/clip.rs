//! Clipping gradients by their global norm (Pascanu et al. 2013, arXiv:1211.5063).

use candle_core::{Result, Tensor};

use crate::cpu::parallel::map;
use crate::cpu::sums::euclidean_norm;

/// The Euclidean norm of each tensor, in `f64`, and that of all their elements together.
///
/// # Errors
/// If a tensor cannot be read.
///
/// ```
/// use candle_attention::optim::global_norm;
/// use candle_core::{Device, Tensor};
///
/// let gradients = [Tensor::new(&[3f32, 0.], &Device::Cpu)?, Tensor::new(&[4f32], &Device::Cpu)?];
/// assert_eq!(global_norm(&gradients)?, (vec![3.0, 4.0], 5.0));
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn global_norm(tensors: &[Tensor]) -> Result<(Vec<f64>, f64)> {
    let norms: Vec<f64> = map(tensors.len(), |i| euclidean_norm(&tensors[i])).into_iter().collect::<Result<_>>()?;
    let all = norm_of_all(&norms);
    Ok((norms, all))
}

/// The norm of all elements of tensors with these norms.
pub(crate) fn norm_of_all(norms: &[f64]) -> f64 {
    norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt()
}

/// The factor on gradients of global norm `norm` that brings it down to `max_norm`: `max_norm / (norm + 1e-6)` above it, as in
/// torch's `clip_grad_norm_`, else 1.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if norm > max_norm { max_norm / (norm + 1e-6) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_is_brought_down_to_the_bound_and_never_up() {
        for (norm, factor) in [(0.0, 1.0), (4.9, 1.0), (5.0, 1.0), (10.0, 5.0 / 10.000001), (1e9, 5.0 / (1e9 + 1e-6))] {
            assert_eq!(clip_factor(norm, 5.0), factor, "{norm}");
        }
    }
}
