//! What several tests need: seeded tensors, comparisons that say where they fail, and finite differences.

use candle_attention::nn::Parameters;
use candle_core::{DType, Device, Result, Tensor, Var};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// A tensor of standard normal values in `f64`.
pub fn randn(seed: u64, shape: &[usize]) -> Tensor {
    let rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f64> = StandardNormal.sample_iter(rng).take(shape.iter().product()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// All values, in rows.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    // Not every device has `f64`.
    let on_cpu = tensor.to_device(&Device::Cpu).unwrap();
    on_cpu.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference between two tensors.
pub fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Fails with the label, the place and both values where `got` is not within `tolerance` of `expected`.
pub fn assert_close(label: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), expected.dims(), "{label}: shapes");
    for (i, (got, expected)) in values(got).into_iter().zip(values(expected)).enumerate() {
        assert!((got - expected).abs() <= tolerance, "{label}: at {i} got {got}, expected {expected} ± {tolerance}");
    }
}

/// Fails where `got` is further from the truth than twice another way to compute it is or, where that is exact, than
/// four roundings of the largest value.
pub fn assert_as_exact(label: &str, got: &Tensor, other: &Tensor, truth: &Tensor) {
    let largest = values(truth).iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    let allowed = 2.0 * max_difference(other, truth) + 4.0 * f64::from(f32::EPSILON) * largest;
    assert_close(label, got, truth, allowed);
}

/// The parameters of what `build` builds, all random.
pub fn parameters_in_f64(build: impl Fn(candle_nn::VarBuilder)) -> Parameters {
    let parameters = Parameters::new(5);
    build(parameters.var_builder(DType::F64, &Device::Cpu));
    // Norm weights of one and biases of zero would hide mistakes.
    for (i, (_, var)) in parameters.vars().iter().enumerate() {
        var.set(&randn(100 + i as u64, var.dims())).unwrap();
    }
    parameters
}

/// The sum of `ys` with random coefficients: a scalar on which every element has another influence.
pub fn weighted_sum(ys: &Tensor) -> Result<Tensor> {
    (ys * randn(99, ys.dims()))?.sum_all()
}

/// Holds the gradients that `loss` gives for `vars` (in `f64`) against central differences, at up to 40 elements of
/// each tensor.
pub fn check_gradients(vars: &[(String, Var)], loss: impl Fn() -> Result<Tensor>) {
    const STEP: f64 = 1e-5;
    let gradients = loss().unwrap().backward().unwrap();
    for (name, var) in vars {
        let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
        let gradient = values(gradient);
        let original = values(var);
        for i in (0..original.len()).step_by(original.len().div_ceil(40)) {
            let at = |step: f64| {
                let mut moved = original.clone();
                moved[i] += step;
                var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
                loss().unwrap().to_scalar::<f64>().unwrap()
            };
            let expected = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let tolerance = 1e-8 + 1e-6 * expected.abs();
            assert!(
                (gradient[i] - expected).abs() <= tolerance,
                "{name}[{i}]: gradient {}, finite difference {expected}",
                gradient[i]
            );
        }
        var.set(&Tensor::from_vec(original, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
}
