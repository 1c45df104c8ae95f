//! The loss of next-token prediction.

mod kernel;
mod reference;

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp2, D, DType, Device, Layout, Result, Shape, Tensor, bail};

use self::kernel::Problem;
use super::storage::{has_kernel, slice};

/// The mean over all positions of `log(sum over v of exp(logits[v])) - logits[target]`, in nats: a scalar.
///
/// `logits` (.., V), `targets` of the same leading shape: `u32` ids below V.
///
/// # Errors
/// If the shapes or dtypes do not agree, or a target is V or more.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    check("cross-entropy", "logits", logits, targets)?;
    check_targets("cross-entropy", targets, logits.dim(D::Minus1)?)?;
    reference::cross_entropy(logits, targets)
}

/// The cross-entropy of the logits `xs W^T`, summed over all positions and divided by `divisor`: a scalar. With the
/// number of positions as `divisor` it is the mean, `cross_entropy(linear(xs, weight), targets)`.
///
/// `xs` (.., C), `weight` (V, C), `targets` of the leading shape of `xs`: `u32` ids below V.
///
/// In `f32` on the CPU the operation is fused: it never holds the logits of more than some rows, and computes the
/// gradients in the same pass.
///
/// # Errors
/// If the shapes or dtypes do not agree, or a target is V or more.
pub fn linear_cross_entropy(xs: &Tensor, weight: &Tensor, targets: &Tensor, divisor: f64) -> Result<Tensor> {
    check("linear-cross-entropy", "the input", xs, targets)?;
    let (vocab_size, channels) = weight.dims2()?;
    let target_ids = check_targets("linear-cross-entropy", targets, vocab_size)?;
    if !has_kernel(&[xs, weight]) {
        let mean = reference::cross_entropy(&super::linear(xs, weight, None)?, targets)?;
        return mean * (targets.elem_count() as f64 / divisor);
    }
    if xs.dims().last() != Some(&channels) {
        bail!("linear-cross-entropy: expected an input of shape (.., {channels}), got {:?}", xs.dims());
    }
    let op = LinearCrossEntropy {
        targets: target_ids,
        divisor,
        wants_gradients: xs.track_op() || weight.track_op(),
        gradients: OnceLock::new(),
    };
    xs.contiguous()?.apply_op2(&weight.contiguous()?, op)
}

/// The targets, all below V. candle's own look-ups take the highest `u32` for nothing at all, without a word.
fn check_targets(op: &str, targets: &Tensor, vocab_size: usize) -> Result<Vec<u32>> {
    let targets: Vec<u32> = targets.flatten_all()?.to_vec1()?;
    match targets.iter().find(|&&target| target as usize >= vocab_size) {
        Some(target) => bail!("{op}: expected targets below {vocab_size}, got {target}"),
        None => Ok(targets),
    }
}

fn check(op: &str, name: &str, xs: &Tensor, targets: &Tensor) -> Result<()> {
    match xs.dims() {
        [leading @ .., _] if leading == targets.dims() => {}
        dims => bail!("{op}: expected targets of the leading shape of {name} {dims:?}, got {:?}", targets.dims()),
    }
    if !xs.dtype().is_float() || targets.elem_count() == 0 {
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

/// The fused operation. Forward leaves the gradients of input and weight here, for a gradient of 1 of the loss.
struct LinearCrossEntropy {
    targets: Vec<u32>,
    divisor: f64,
    wants_gradients: bool,
    gradients: OnceLock<[Tensor; 2]>,
}

impl CustomOp2 for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear-cross-entropy"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_l: &Layout,
        weight: &CpuStorage,
        weight_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (vocab_size, channels) = weight_l.shape().dims2()?;
        let problem = Problem {
            xs: slice(xs, xs_l)?,
            weight: slice(weight, weight_l)?,
            targets: &self.targets,
            channels,
            vocab_size,
            divisor: self.divisor,
        };
        let mut gradients = self.wants_gradients.then(|| problem.zero_gradients());
        let loss = kernel::forward(&problem, gradients.as_mut());
        if let Some(kernel::Gradients { dxs, dweight }) = gradients {
            let dxs = Tensor::from_vec(dxs, xs_l.shape(), &Device::Cpu)?;
            // The graph holds one such operation for each call, so nothing is there yet.
            let _ = self.gradients.set([dxs, Tensor::from_vec(dweight, weight_l.shape(), &Device::Cpu)?]);
        }
        Ok((CpuStorage::F32(vec![loss]), Shape::from(())))
    }

    fn bwd(
        &self,
        _xs: &Tensor,
        _weight: &Tensor,
        _loss: &Tensor,
        dloss: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(gradients) = self.gradients.get() else { bail!("linear-cross-entropy: backward before forward") };
        let dloss = f64::from(dloss.to_scalar::<f32>()?);
        let scaled = |gradient: &Tensor| if dloss == 1.0 { Ok(gradient.clone()) } else { gradient * dloss };
        Ok((Some(scaled(&gradients[0])?), Some(scaled(&gradients[1])?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_like_reference, randn};

    #[test]
    fn the_kernel_is_the_reference() {
        for (rows, c, v, spread) in
            [(1, 1, 2, 1.0), (7, 13, 5, 1.0), (1103, 31, 131, 1.0), (37, 3, 20_011, 1.0), (67, 5, 11, 1e3)]
        {
            let inputs = [(randn(1, &[rows, c]) * spread).unwrap(), randn(2, &[v, c])];
            let targets: Vec<u32> = (0..rows as u32).map(|i| (i * i + 3) % v as u32).collect();
            let targets = Tensor::from_vec(targets, rows, &Device::Cpu).unwrap();
            let fused = |x: &[Tensor]| linear_cross_entropy(&x[0], &x[1], &targets, rows as f64);
            let reference = |x: &[Tensor]| reference::cross_entropy(&crate::ops::linear(&x[0], &x[1], None)?, &targets);
            assert_like_reference(&format!("cross-entropy {rows} {c} {v}"), &inputs, &fused, &reference);
        }
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let (xs, weight) =
            (randn(1, &[11, 3]).to_dtype(DType::F32).unwrap(), randn(2, &[7, 3]).to_dtype(DType::F32).unwrap());
        let targets = Tensor::from_vec((0..11).map(|i| i % 7).collect::<Vec<u32>>(), 11, &Device::Cpu).unwrap();
        let loss = |from: usize, n: usize| {
            let (xs, targets) = (xs.narrow(0, from, n).unwrap(), targets.narrow(0, from, n).unwrap());
            linear_cross_entropy(&xs, &weight, &targets, 11.0).unwrap().to_scalar::<f32>().unwrap()
        };
        assert!((loss(0, 4) + loss(4, 7) - loss(0, 11)).abs() < 1e-6);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (xs, weight) =
            (randn(1, &[11, 3]).to_dtype(DType::F32).unwrap(), randn(2, &[7, 3]).to_dtype(DType::F32).unwrap());
        let loss = |target: u32, n: usize| {
            let targets = Tensor::from_vec(vec![target; n], n, &Device::Cpu).unwrap();
            linear_cross_entropy(&xs, &weight, &targets, 11.0).unwrap_err().to_string()
        };
        assert!(loss(7, 11).contains("expected targets below 7, got 7"));
        assert!(loss(0, 10).contains("expected targets of the leading shape of the input [11, 3], got [10]"));
    }
}
