//! Normalisation over the last dimension, with gradients for input and parameters.
//!
//! candle-nn's fused `layer_norm` and `rms_norm` silently have no backward pass, so everything before them stops
//! learning. These have one.

mod kernel;
mod reference;

use std::sync::OnceLock;

use candle_core::{CpuStorage, Device, Layout, Result, Shape, Tensor, bail};

use self::kernel::{Kind, Statistics};
use super::with_bias::{self, WithBias};
use crate::cpu::checks::{check_alike, check_not_negative};
use crate::cpu::storage::{has_kernel, slice, values};

/// `(x - mean) / sqrt(variance + eps) * weight + bias` (Ba et al. 2016, arXiv:1607.06450).
///
/// `xs` (.., C), `weight` and `bias` (C), result (.., C). Mean and (population) variance are taken over the C channels,
/// for `f16` and `bf16` in `f32`.
///
/// # Errors
/// If shapes, dtypes or devices do not fit together, or `eps` is negative or not finite.
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    check("layer-norm", xs, weight, bias)?;
    check_not_negative("layer-norm", &[("an eps", eps)])?;
    let tensors: Vec<&Tensor> = [xs, weight].into_iter().chain(bias).collect();
    if !has_kernel(&tensors) {
        return reference::layer_norm(xs, weight, bias, eps);
    }
    with_bias::apply(Norm::new(Kind::Layer, eps), xs, weight, bias)
}

/// `x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich 2019, arXiv:1910.07467).
///
/// `xs` (.., C), `weight` (C), result (.., C). The mean is taken over the C channels, for `f16` and `bf16` in `f32`.
///
/// # Errors
/// If shapes, dtypes or devices do not fit together, or `eps` is negative or not finite.
pub fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check("rms-norm", xs, weight, None)?;
    check_not_negative("rms-norm", &[("an eps", eps)])?;
    match has_kernel(&[xs, weight]) {
        true => with_bias::apply(Norm::new(Kind::Rms, eps), xs, weight, None),
        false => reference::rms_norm(xs, weight, eps),
    }
}

/// [`layer_norm`], or without `removes_mean` [`rms_norm`], of rows on slices: `ys` and `xs` (rows, C), `weight` and `bias`
/// (C), or an empty bias.
#[cfg(feature = "lm")]
pub(crate) fn norm_rows(ys: &mut [f32], xs: &[f32], [weight, bias]: [&[f32]; 2], removes_mean: bool, eps: f64) {
    let (kind, c) = (if removes_mean { Kind::Layer } else { Kind::Rms }, weight.len().max(1));
    for (y, x) in ys.chunks_exact_mut(c).zip(xs.chunks_exact(c)) {
        kernel::forward(y, &mut [Statistics::default()], x, weight, bias, kind, eps as f32);
    }
}

/// Refuses an input that the weight (C) is not for, and a bias that does not go with it.
fn check(op: &str, xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    let channels = match weight.dims() {
        [0] => bail!("{op}: expected at least one channel, got none"),
        [channels] => *channels,
        dims => bail!("{op}: expected a weight of shape (C), got {dims:?}"),
    };
    if !xs.dtype().is_float() {
        bail!("{op}: expected an input of a floating-point dtype, got {:?}", xs.dtype());
    }
    if xs.dims().last() != Some(&channels) {
        bail!("{op}: expected an input of shape (.., {channels}) for {channels} weights, got {:?}", xs.dims());
    }
    check_alike(op, "the weight", weight, "the input", xs)?;
    let Some(bias) = bias else { return Ok(()) };
    if bias.dims() != [channels] {
        bail!("{op}: expected a bias of shape {:?} as the weight, got {:?}", [channels], bias.dims());
    }
    check_alike(op, "the bias", bias, "the input", xs)
}

/// The fused operation; it keeps the statistics of each row for backward.
struct Norm {
    kind: Kind,
    eps: f32,
    statistics: OnceLock<Vec<Statistics>>,
}

impl Norm {
    fn new(kind: Kind, eps: f64) -> Self {
        Self { kind, eps: eps as f32, statistics: OnceLock::new() }
    }
}

impl WithBias for Norm {
    const NAME: &'static str = "norm";

    fn forward(
        &self,
        xs: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: &[f32],
    ) -> Result<(CpuStorage, Shape)> {
        let shape = xs.1.shape().clone();
        let (xs, weight) = (slice(xs.0, xs.1)?, slice(weight.0, weight.1)?);
        let mut ys = vec![0.0; xs.len()];
        let mut statistics = vec![Statistics::default(); xs.len() / weight.len().max(1)];
        kernel::forward(&mut ys, &mut statistics, xs, weight, bias, self.kind, self.eps);
        // Each call creates its own operation, so this is still empty.
        let _ = self.statistics.set(statistics);
        Ok((CpuStorage::F32(ys), shape))
    }

    fn backward(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _bias: Option<&Tensor>,
        dys: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let Some(statistics) = self.statistics.get() else { bail!("norm: backward before forward") };
        let dys = dys.contiguous()?;
        let mut dxs = vec![0.0; xs.elem_count()];
        let parameters =
            kernel::backward(&mut dxs, &values(&dys)?, &values(xs)?, &values(weight)?, statistics, self.kind);
        let (dweight, dbias) = parameters;
        Ok([
            Some(Tensor::from_vec(dxs, xs.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(dweight, weight.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(dbias, weight.shape(), &Device::Cpu)?),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_like_reference, randn};

    #[test]
    fn the_kernel_is_the_reference() {
        for (rows, c, spread) in [(1, 1, 1.0), (7, 13, 1.0), (131, 67, 1.0), (5, 129, 1e3), (65, 16, 1e-3)] {
            let xs = ((randn(1, &[rows, c]) * spread).unwrap() + spread).unwrap();
            let inputs = [xs, randn(2, &[c]), randn(3, &[c])];
            let label = format!("norm of {rows} rows of {c}, spread {spread}");
            let fused = |x: &[Tensor]| layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5);
            let reference = |x: &[Tensor]| reference::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5);
            assert_like_reference(&label, &inputs, &fused, &reference);
            let fused = |x: &[Tensor]| layer_norm(&x[0], &x[1], None, 1e-5);
            let reference = |x: &[Tensor]| reference::layer_norm(&x[0], &x[1], None, 1e-5);
            assert_like_reference(&label, &inputs[..2], &fused, &reference);
            let fused = |x: &[Tensor]| rms_norm(&x[0], &x[1], 1e-6);
            let reference = |x: &[Tensor]| reference::rms_norm(&x[0], &x[1], 1e-6);
            assert_like_reference(&label, &inputs[..2], &fused, &reference);
        }
    }

    /// An input of the wrong width is the input's fault.
    #[test]
    fn what_does_not_fit_is_named() {
        let [xs, weight, bias] = [&[3, 5][..], &[4], &[6]].map(|shape| randn(1, shape));
        let message = layer_norm(&xs, &weight, None, 1e-5).unwrap_err().to_string();
        assert!(message.contains("expected an input of shape (.., 4) for 4 weights, got [3, 5]"), "{message}");
        let message = layer_norm(&xs.narrow(1, 0, 4).unwrap(), &weight, Some(&bias), 1e-5).unwrap_err().to_string();
        assert!(message.contains("expected a bias of shape [4] as the weight, got [6]"), "{message}");
        let message = rms_norm(&xs, &randn(1, &[5, 1]), 1e-5).unwrap_err().to_string();
        assert!(message.contains("expected a weight of shape (C), got [5, 1]"), "{message}");
        let halves = randn(1, &[5]).to_dtype(candle_core::DType::F16).unwrap();
        let message = rms_norm(&xs, &halves, 1e-5).unwrap_err().to_string();
        assert!(message.contains("expected the weight of the dtype F64 of the input, got F16"), "{message}");
    }
}
