//! The Gaussian error linear unit (Hendrycks and Gimpel 2016, arXiv:1606.08415), exact and approximate.

mod kernel;
mod reference;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

use super::storage::{has_kernel, slice, values};

/// `x * Phi(x) = x * (1 + erf(x / sqrt(2))) / 2`, element by element; any shape.
///
/// # Errors
/// If the dtype is not a floating-point one.
pub fn gelu_erf(xs: &Tensor) -> Result<Tensor> {
    match has_kernel(&[xs]) {
        true => xs.contiguous()?.apply_op1(Gelu::Erf),
        false => reference::gelu_erf(xs),
    }
}

/// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`, element by element; any shape.
///
/// # Errors
/// If the dtype is not a floating-point one.
pub fn gelu_tanh(xs: &Tensor) -> Result<Tensor> {
    match has_kernel(&[xs]) {
        true => xs.contiguous()?.apply_op1(Gelu::Tanh),
        false => reference::gelu_tanh(xs),
    }
}

/// The fused operation.
#[derive(Clone, Copy)]
enum Gelu {
    Erf,
    Tanh,
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = slice(xs, layout)?;
        let mut ys = vec![0.0; xs.len()];
        match self {
            Gelu::Erf => kernel::forward_erf(&mut ys, xs),
            Gelu::Tanh => kernel::forward_tanh(&mut ys, xs),
        }
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, dys: &Tensor) -> Result<Option<Tensor>> {
        let dys = dys.contiguous()?;
        let mut dxs = vec![0.0; xs.elem_count()];
        match self {
            Gelu::Erf => kernel::backward_erf(&mut dxs, &values(xs)?, &values(&dys)?),
            Gelu::Tanh => kernel::backward_tanh(&mut dxs, &values(xs)?, &values(&dys)?),
        }
        Ok(Some(Tensor::from_vec(dxs, xs.shape(), &Device::Cpu)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_like_reference, randn};

    #[test]
    fn the_kernel_is_the_reference() {
        for (n, spread) in [(1, 1.0), (31, 3.0), (40_009, 2.0), (1009, 30.0), (1009, 1e-3)] {
            let inputs = [(randn(1, &[n]) * spread).unwrap()];
            let label = format!("gelu of {n} values of spread {spread}");
            assert_like_reference(&label, &inputs, &|x| gelu_erf(&x[0]), &|x| reference::gelu_erf(&x[0]));
            assert_like_reference(&label, &inputs, &|x| gelu_tanh(&x[0]), &|x| reference::gelu_tanh(&x[0]));
        }
    }
}
