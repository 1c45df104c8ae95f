//! Activations, and products gated by an activation. In half precision they are computed in `f32`.

mod functions;
mod kernel;

use std::marker::PhantomData;
use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor, bail};

use self::functions::{Activation, GeluErf, GeluTanh, QuickGelu, Relu, ReluSquared, Silu};
use super::record::{self, Kept};
use crate::cpu::checks::check_alike;
use crate::cpu::storage::{has_kernel, precise, slice, values};

/// The Gaussian error linear unit (Hendrycks and Gimpel 2016, arXiv:1606.08415):
/// `x * Phi(x) = x * (1 + erf(x / sqrt(2))) / 2`, element by element, for any shape.
///
/// # Errors
/// If the dtype is not floating-point.
pub fn gelu_erf(xs: &Tensor) -> Result<Tensor> {
    apply::<GeluErf>("gelu-erf", xs)
}

/// The approximate GELU (arXiv:1606.08415): `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`, element by
/// element, for any shape.
///
/// # Errors
/// If the dtype is not floating-point.
pub fn gelu_tanh(xs: &Tensor) -> Result<Tensor> {
    apply::<GeluTanh>("gelu-tanh", xs)
}

/// The sigmoid linear unit, also called Swish (Ramachandran et al. 2017, arXiv:1710.05941): `x / (1 + exp(-x))`,
/// element by element, for any shape.
///
/// # Errors
/// If the dtype is not floating-point.
pub fn silu(xs: &Tensor) -> Result<Tensor> {
    apply::<Silu>("silu", xs)
}

/// The sigmoid approximation of the GELU (arXiv:1606.08415): `x / (1 + exp(-1.702 x))`, element by element, for any shape.
///
/// # Errors
/// If the dtype is not floating-point.
pub fn quick_gelu(xs: &Tensor) -> Result<Tensor> {
    apply::<QuickGelu>("quick-gelu", xs)
}

/// The rectified linear unit: `max(x, 0)`, element by element, for any shape. At 0 the gradient is 0.
///
/// # Errors
/// If the dtype is not floating-point.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    apply::<Relu>("relu", xs)
}

/// The squared ReLU (So et al. 2021, arXiv:2109.08668): `max(x, 0)^2`, element by element, for any shape.
///
/// # Errors
/// If the dtype is not floating-point.
pub fn relu_squared(xs: &Tensor) -> Result<Tensor> {
    apply::<ReluSquared>("relu-squared", xs)
}

/// `silu(gate) * up`, element by element, for any shape, the same for both (Shazeer 2020, arXiv:2002.05202).
///
/// # Errors
/// If shapes, dtypes or devices differ, or the dtype is not floating-point.
///
/// ```
/// use candle_attention::ops;
/// use candle_core::{Device, Tensor};
///
/// let (gate, up) = (Tensor::new(&[0f32, 40.], &Device::Cpu)?, Tensor::new(&[3f32, 0.5], &Device::Cpu)?);
/// assert_eq!(ops::swiglu(&gate, &up)?.to_vec1::<f32>()?, [0., 20.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    apply_gated::<Silu>("swiglu", gate, up)
}

/// `gelu_erf(gate) * up`: as [`swiglu`], with the exact GELU.
///
/// # Errors
/// Those of [`swiglu`].
pub fn geglu_erf(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    apply_gated::<GeluErf>("geglu-erf", gate, up)
}

/// `gelu_tanh(gate) * up`: as [`swiglu`], with the approximate GELU.
///
/// # Errors
/// Those of [`swiglu`].
pub fn geglu_tanh(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    apply_gated::<GeluTanh>("geglu-tanh", gate, up)
}

/// `quick_gelu(gate) * up`: as [`swiglu`].
///
/// # Errors
/// Those of [`swiglu`].
pub fn quick_geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    apply_gated::<QuickGelu>("quick-geglu", gate, up)
}

/// `max(gate, 0) * up`: as [`swiglu`]. At 0 the gradient of the gate is 0.
///
/// # Errors
/// Those of [`swiglu`].
pub fn reglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    apply_gated::<Relu>("reglu", gate, up)
}

/// An activation of the elements of a slice, times `up` if there is one: `(ys, xs, up)`.
#[cfg(feature = "lm")]
pub(crate) type OnSlices = fn(&mut [f32], &[f32], Option<&[f32]>);

/// The activations on slices.
#[cfg(feature = "lm")]
pub(crate) mod on_slices {
    use super::{OnSlices, functions, kernel::on_slices};

    pub(crate) const GELU_ERF: OnSlices = on_slices::<functions::GeluErf>;
    pub(crate) const GELU_TANH: OnSlices = on_slices::<functions::GeluTanh>;
    pub(crate) const QUICK_GELU: OnSlices = on_slices::<functions::QuickGelu>;
    pub(crate) const RELU: OnSlices = on_slices::<functions::Relu>;
    pub(crate) const SILU: OnSlices = on_slices::<functions::Silu>;
}

fn apply<A: Activation>(name: &'static str, xs: &Tensor) -> Result<Tensor> {
    check(name, xs)?;
    match has_kernel(&[xs]) {
        true => {
            // candle's own graph holds the input in any case.
            let slopes = (record::is_recording() && xs.track_op()).then(OnceLock::new);
            let op = Fused::<A> { name, slopes, activation: PhantomData };
            record::apply1(&xs.contiguous()?, op, Kept::Nothing)
        }
        false => A::reference(&xs.to_dtype(precise(xs.dtype()))?)?.to_dtype(xs.dtype()),
    }
}

fn apply_gated<A: Activation>(name: &'static str, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    check(name, gate)?;
    check_alike(name, "the product", up, "the gate", gate)?;
    if gate.shape() != up.shape() {
        bail!("{name}: expected a gate and a product of one shape, got {:?} and {:?}", gate.dims(), up.dims());
    }
    match has_kernel(&[gate, up]) {
        true => record::apply2(&gate.contiguous()?, &up.contiguous()?, Gated::<A> { name, activation: PhantomData }),
        false => {
            let precise = precise(gate.dtype());
            (A::reference(&gate.to_dtype(precise)?)? * up.to_dtype(precise)?)?.to_dtype(gate.dtype())
        }
    }
}

fn check(name: &str, xs: &Tensor) -> Result<()> {
    match xs.dtype().is_float() {
        true => Ok(()),
        false => bail!("{name}: expected an input of a floating-point dtype, got {:?}", xs.dtype()),
    }
}

/// The fused activation. In a recording it keeps the slopes in place of its input.
struct Fused<A> {
    name: &'static str,
    slopes: Option<OnceLock<Vec<f32>>>,
    activation: PhantomData<A>,
}

impl<A: Activation> CustomOp1 for Fused<A> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = slice(xs, layout)?;
        let ys = match &self.slopes {
            None => kernel::forward::<A>(xs),
            Some(kept) => {
                let (ys, slopes) = kernel::forward_with_slopes::<A>(xs);
                // Each call creates its own operation, so this is still empty.
                let _ = kept.set(slopes);
                ys
            }
        };
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, dys: &Tensor) -> Result<Option<Tensor>> {
        let dys = dys.contiguous()?;
        let dxs = match self.slopes.as_ref().and_then(OnceLock::get) {
            Some(slopes) => kernel::backward_by_slopes(slopes, &values(&dys)?),
            None => kernel::backward::<A>(&values(xs)?, &values(&dys)?),
        };
        Ok(Some(Tensor::from_vec(dxs, dys.shape(), &Device::Cpu)?))
    }
}

/// The fused product gated by an activation.
struct Gated<A> {
    name: &'static str,
    activation: PhantomData<A>,
}

impl<A: Activation> CustomOp2 for Gated<A> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_l: &Layout,
        up: &CpuStorage,
        up_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(gate, gate_l)?, slice(up, up_l)?);
        Ok((CpuStorage::F32(kernel::gated_forward::<A>(gate, up)), gate_l.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _ys: &Tensor, dys: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dys = dys.contiguous()?;
        let (mut dgate, mut dup) = (vec![0.0; gate.elem_count()], vec![0.0; up.elem_count()]);
        kernel::gated_backward::<A>([&mut dgate, &mut dup], &values(gate)?, &values(up)?, &values(&dys)?);
        let of_shape = |gradient| Tensor::from_vec(gradient, gate.shape(), &Device::Cpu);
        Ok((Some(of_shape(dgate)?), Some(of_shape(dup)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_like_reference, randn};
    use candle_core::{DType, Var};

    /// Sizes that are not multiples of a chunk, and spreads from the linear part of the curves to the flat one.
    const SIZES: [(usize, f64); 6] = [(1, 1.0), (31, 3.0), (40_009, 2.0), (1009, 30.0), (1009, 1e-3), (1009, 1e4)];

    #[test]
    fn the_kernels_are_the_references() {
        for (n, spread) in SIZES {
            let inputs = [(randn(1, &[n]) * spread).unwrap(), randn(2, &[n])];
            let hold = |name: &str, fused: fn(&Tensor) -> Result<Tensor>, reference: fn(&Tensor) -> Result<Tensor>| {
                let label = format!("{name} of {n} values of spread {spread}");
                assert_like_reference(&label, &inputs[..1], &|x| fused(&x[0]), &|x| reference(&x[0]));
            };
            hold("gelu-erf", gelu_erf, GeluErf::reference);
            hold("gelu-tanh", gelu_tanh, GeluTanh::reference);
            hold("silu", silu, Silu::reference);
            hold("quick-gelu", quick_gelu, QuickGelu::reference);
            hold("relu", relu, Relu::reference);
            hold("relu-squared", relu_squared, ReluSquared::reference);

            type Gated = fn(&Tensor, &Tensor) -> Result<Tensor>;
            let hold = |name: &str, fused: Gated, reference: fn(&Tensor) -> Result<Tensor>| {
                let label = format!("{name} of {n} values of spread {spread}");
                assert_like_reference(&label, &inputs, &|x| fused(&x[0], &x[1]), &|x| reference(&x[0])? * &x[1]);
            };
            hold("swiglu", swiglu, Silu::reference);
            hold("geglu-erf", geglu_erf, GeluErf::reference);
            hold("geglu-tanh", geglu_tanh, GeluTanh::reference);
            hold("quick-geglu", quick_geglu, QuickGelu::reference);
            hold("reglu", reglu, Relu::reference);
        }
    }

    #[test]
    fn views_give_the_same() {
        let inputs = [randn(1, &[5, 14]), randn(2, &[7, 5])];
        let views = |x: &[Tensor]| Result::Ok((x[0].narrow(1, 3, 7)?, x[1].t()?));
        let fused = |x: &[Tensor]| views(x).and_then(|(gate, up)| swiglu(&gate, &up));
        let reference = |x: &[Tensor]| views(x).and_then(|(gate, up)| Silu::reference(&gate)? * up);
        assert_like_reference("swiglu of views", &inputs, &fused, &reference);
    }

    /// Where f32 overflows in between, or the curve has a corner.
    #[test]
    fn slopes_at_the_edges() {
        for dtype in [DType::F32, DType::F64] {
            let slopes = |f: fn(&Tensor) -> Result<Tensor>, at: &[f64]| {
                let xs = Tensor::new(at, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                let xs = Var::from_tensor(&xs).unwrap();
                let gradients = f(&xs).unwrap().sum_all().unwrap().backward().unwrap();
                gradients.get(&xs).unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()
            };
            let far = [-1e30, -1e4, 1e4, 1e30];
            for f in [gelu_erf, gelu_tanh, quick_gelu, silu] {
                assert!(
                    slopes(f, &far).iter().zip([0.0, 0.0, 1.0, 1.0]).all(|(got, slope)| (got - slope).abs() < 1e-6)
                );
            }
            assert_eq!(slopes(|xs| reglu(xs, &xs.ones_like()?.detach()), &[-1.0, 0.0, 2.0]), [0.0, 0.0, 1.0]);
            assert_eq!(slopes(relu, &[f64::NEG_INFINITY, -1.0, 0.0, 3.0]), [0.0, 0.0, 0.0, 1.0]);
            assert_eq!(slopes(relu_squared, &[f64::NEG_INFINITY, -1.0, 0.0, 3.0]), [0.0, 0.0, 0.0, 6.0]);
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (xs, ids) = (randn(1, &[3, 5]), Tensor::new(&[1u32], &Device::Cpu).unwrap());
        let error = silu(&ids).unwrap_err().to_string();
        assert!(error.contains("silu: expected an input of a floating-point dtype, got U32"), "{error}");
        let error = swiglu(&xs, &randn(1, &[5, 3])).unwrap_err().to_string();
        assert!(error.contains("swiglu: expected a gate and a product of one shape, got [3, 5] and [5, 3]"), "{error}");
        let error = reglu(&xs, &xs.to_dtype(DType::F32).unwrap()).unwrap_err().to_string();
        assert!(error.contains("reglu: expected the product of the dtype F64 of the gate, got F32"), "{error}");
    }
}
