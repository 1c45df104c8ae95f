//! The linear layer, `y = x W^T + b`.

mod kernel;
mod reference;

use candle_core::{CpuStorage, Device, Layout, Result, Shape, Tensor, bail};

use self::kernel::Dims;
use super::with_bias::{self, WithBias};
use crate::cpu::checks::check_alike;
use crate::cpu::storage::{has_kernel, slice, values};

/// `xs W^T + bias`: `xs` (.., I), `weight` W (O, I), `bias` (O), result (.., O).
///
/// # Errors
/// If sizes, dtypes or devices do not fit together.
///
/// ```
/// use candle_attention::ops;
/// use candle_core::{Device, Tensor};
///
/// let xs = Tensor::new(&[[1f32, 2.]], &Device::Cpu)?;
/// let weight = Tensor::new(&[[1f32, 0.], [0., 1.], [1., 1.]], &Device::Cpu)?;
/// assert_eq!(ops::linear(&xs, &weight, None)?.to_vec2::<f32>()?, [[1., 2., 3.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let out_shape = check(xs, weight, bias)?;
    let tensors: Vec<&Tensor> = [xs, weight].into_iter().chain(bias).collect();
    if !has_kernel(&tensors) {
        return reference::linear(xs, weight, bias, out_shape);
    }
    with_bias::apply(Linear { tracked: [xs, weight].map(Tensor::track_op) }, xs, weight, bias)
}

fn check(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Vec<usize>> {
    let (out_dim, in_dim) = weight.dims2()?;
    let leading = match xs.dims() {
        [leading @ .., last] if *last == in_dim => leading,
        dims => {
            bail!("linear: expected an input of shape (.., {in_dim}) for a weight {:?}, got {dims:?}", weight.dims())
        }
    };
    check_alike("linear", "a weight", weight, "the input", xs)?;
    if let Some(bias) = bias {
        check_alike("linear", "a bias", bias, "the input", xs)?;
    }
    match bias {
        Some(bias) if bias.dims() != [out_dim] => {
            bail!("linear: expected a bias of shape {:?}, got {:?}", [out_dim], bias.dims())
        }
        _ => Ok([leading, &[out_dim]].concat()),
    }
}

/// The fused operation, with and without a bias.
struct Linear {
    /// Whether gradients of input and weight are wanted.
    tracked: [bool; 2],
}

impl WithBias for Linear {
    const NAME: &'static str = "linear";

    fn forward(
        &self,
        xs: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: &[f32],
    ) -> Result<(CpuStorage, Shape)> {
        let dims = Dims::new(xs.1.dims(), weight.1.dims());
        let ys = kernel::forward(slice(xs.0, xs.1)?, slice(weight.0, weight.1)?, bias, dims);
        let mut shape = xs.1.dims().to_vec();
        shape.pop();
        shape.push(dims.out_dim);
        Ok((CpuStorage::F32(ys), shape.into()))
    }

    fn backward(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        dys: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let dims = Dims::new(xs.dims(), weight.dims());
        let dys = dys.contiguous()?;
        let dys = values(&dys)?;
        let [mut dxs, mut dweight, mut dbias] = [None, None, None];
        if self.tracked[0] {
            let values = kernel::backward_input(&dys, &values(weight)?, dims);
            dxs = Some(Tensor::from_vec(values, xs.shape(), &Device::Cpu)?);
        }
        if self.tracked[1] {
            let values = kernel::backward_weight(&dys, &values(xs)?, dims);
            dweight = Some(Tensor::from_vec(values, weight.shape(), &Device::Cpu)?);
        }
        if let Some(bias) = bias {
            dbias = Some(Tensor::from_vec(kernel::backward_bias(&dys, dims), bias.shape(), &Device::Cpu)?);
        }
        Ok([dxs, dweight, dbias])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_like_reference, randn};

    #[test]
    fn the_kernel_is_the_reference() {
        for (rows, in_dim, out_dim) in [(1, 1, 1), (7, 13, 5), (1, 31, 67), (67, 1, 3), (129, 65, 33), (257, 131, 127)]
        {
            let inputs = [randn(1, &[rows, in_dim]), randn(2, &[out_dim, in_dim]), randn(3, &[out_dim])];
            let label = format!("linear {rows} {in_dim} {out_dim}");
            let shape = vec![rows, out_dim];
            let with_bias = |x: &[Tensor]| linear(&x[0], &x[1], Some(&x[2]));
            let reference = |x: &[Tensor]| reference::linear(&x[0], &x[1], Some(&x[2]), shape.clone());
            assert_like_reference(&label, &inputs, &with_bias, &reference);
            let without = |x: &[Tensor]| linear(&x[0], &x[1], None);
            let reference = |x: &[Tensor]| reference::linear(&x[0], &x[1], None, shape.clone());
            assert_like_reference(&label, &inputs[..2], &without, &reference);
        }
    }

    #[test]
    fn leading_dimensions_and_strides_do_not_matter() {
        let inputs = [randn(1, &[5, 3, 2, 7]), randn(2, &[7, 11])];
        let fused = |x: &[Tensor]| linear(&x[0].transpose(0, 2)?, &x[1].t()?, None);
        let reference = |x: &[Tensor]| reference::linear(&x[0].transpose(0, 2)?, &x[1].t()?, None, vec![2, 3, 5, 11]);
        assert_like_reference("strided linear", &inputs, &fused, &reference);
    }

    #[test]
    fn sizes_that_do_not_fit_together_are_named() {
        let [xs, weight, bias] = [&[3, 5][..], &[7, 4], &[6]].map(|shape| randn(1, shape));
        let message = linear(&xs, &weight, None).unwrap_err().to_string();
        assert!(
            message.contains("linear: expected an input of shape (.., 4) for a weight [7, 4], got [3, 5]"),
            "{message}"
        );
        let message = linear(&xs, &randn(1, &[7, 5]), Some(&bias)).unwrap_err().to_string();
        assert!(message.contains("linear: expected a bias of shape [7], got [6]"), "{message}");
    }
}
