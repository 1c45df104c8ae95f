//! Holds a fused operation against its reference.

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// A function of tensors, in whatever dtype they have.
pub(crate) type Function<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// Standard normal values in `f64`.
pub(crate) fn randn(seed: u64, shape: &[usize]) -> Tensor {
    let rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f64> = StandardNormal.sample_iter(rng).take(shape.iter().product()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The result of `f` and the gradients of its inputs, for a random gradient of the result.
fn run(f: Function, inputs: &[Tensor], dtype: DType) -> Vec<Vec<f64>> {
    let vars: Vec<Var> =
        inputs.iter().map(|input| Var::from_tensor(&input.to_dtype(dtype).unwrap()).unwrap()).collect();
    // An operation in between, so that the inputs are no leaves of the graph and may be strided.
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().affine(1.0, 0.0).unwrap()).collect();
    let out = f(&tensors).unwrap();
    let dout = randn(999, out.dims()).to_dtype(dtype).unwrap();
    let mut gradients = (&out * dout).unwrap().sum_all().unwrap().backward().unwrap();
    let gradients = vars.iter().map(|var| gradients.remove(var).expect("every input has a gradient"));
    [out.clone()].into_iter().chain(gradients).map(|tensor| values(&tensor)).collect()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn worst(got: &[f64], truth: &[f64]) -> (f64, usize) {
    assert_eq!(got.len(), truth.len());
    let errors =
        got.iter().zip(truth).map(|(got, truth)| if got.is_nan() { f64::INFINITY } else { (got - truth).abs() });
    errors.zip(0..).fold((0.0, 0), |worst, error| if error.0 > worst.0 { error } else { worst })
}

/// In `f32`, the fused operation may be twice as far from the truth, which is the reference in `f64`, as the reference
/// in `f32` is; its gradients three times.
pub(crate) fn assert_like_reference(label: &str, inputs: &[Tensor], fused: Function, reference: Function) {
    let truth = run(reference, inputs, DType::F64);
    let yardstick = run(reference, inputs, DType::F32);
    let got = run(fused, inputs, DType::F32);
    for (i, ((got, yardstick), truth)) in got.iter().zip(&yardstick).zip(&truth).enumerate() {
        let what = if i == 0 { "result".into() } else { format!("gradient of input {}", i - 1) };
        let factor = if i == 0 { 2.0 } else { 3.0 };
        let magnitude = truth.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        // Where the reference happens to be exact, four roundings of the largest value.
        let allowed = factor * worst(yardstick, truth).0 + 4.0 * f64::from(f32::EPSILON) * magnitude;
        let (error, at) = worst(got, truth);
        assert!(
            error <= allowed,
            "{label}: {what} at {at}: got {}, truth {}, error {error:.2e}, allowed {allowed:.2e}",
            got[at],
            truth[at]
        );
    }
}
