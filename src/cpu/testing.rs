//! Comparison of a fused operation with its reference.

use std::cell::Cell;

use candle_core::{DType, Device, Result, Tensor, Var};
use pulp::Arch;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// A function of tensors of any dtype.
pub(crate) type Function<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// Standard normal values in `f64`.
pub(crate) fn randn(seed: u64, shape: &[usize]) -> Tensor {
    let rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f64> = StandardNormal.sample_iter(rng).take(shape.iter().product()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The result of `f` and the gradients of its inputs, for a random gradient of the result.
pub(crate) fn run_in(f: Function, inputs: &[Tensor], dtype: DType) -> Vec<Vec<f64>> {
    let vars: Vec<Var> =
        inputs.iter().map(|input| Var::from_tensor(&input.to_dtype(dtype).unwrap()).unwrap()).collect();
    // An operation in between, so that the inputs are not leaves of the graph and may be strided.
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

/// In `f32`, the fused operation may have twice the error of the reference, and its gradients three times; the truth is
/// the reference in `f64`.
pub(crate) fn assert_like_reference(label: &str, inputs: &[Tensor], fused: Function, reference: Function) {
    hold(label, inputs, fused, reference, &[1.0], 0.0);
}

/// [`assert_like_reference`] for the same function with and without kernels, for small random inputs. The reference may
/// be exact by luck, so its error is the worst over several nearby inputs; and terms of size `terms` may cancel in a
/// sum.
pub(crate) fn assert_like_itself(label: &str, inputs: &[Tensor], function: Function, terms: f64) {
    let reference = |x: &[Tensor]| without_kernels(|| function(x));
    hold(label, inputs, function, &reference, &[1.0, 0.97, 0.98, 0.99, 1.01, 1.02, 1.03, 1.04], terms);
}

/// `nearby`: factors on the inputs over which the error of the reference is taken.
fn hold(label: &str, inputs: &[Tensor], fused: Function, reference: Function, nearby: &[f64], terms: f64) {
    let truth = run_in(reference, inputs, DType::F64);
    let got = run_in(fused, inputs, DType::F32);
    let mut yardsticks = vec![0.0f64; truth.len()];
    for factor in nearby {
        // Rounded, so that both dtypes get the same numbers.
        let scaled = |input: &Tensor| (input * *factor)?.to_dtype(DType::F32)?.to_dtype(DType::F64);
        let inputs: Vec<Tensor> = match *factor == 1.0 {
            true => inputs.to_vec(),
            false => inputs.iter().map(scaled).collect::<Result<_>>().unwrap(),
        };
        let (truth, got) = (run_in(reference, &inputs, DType::F64), run_in(reference, &inputs, DType::F32));
        for (yardstick, (got, truth)) in yardsticks.iter_mut().zip(got.iter().zip(&truth)) {
            *yardstick = yardstick.max(worst(got, truth).0);
        }
    }
    for (i, ((got, yardstick), truth)) in got.iter().zip(yardsticks).zip(&truth).enumerate() {
        let what = if i == 0 { "result".into() } else { format!("gradient of input {}", i - 1) };
        let factor = if i == 0 { 2.0 } else { 3.0 };
        let magnitude = truth.iter().fold(terms, |most: f64, x| most.max(x.abs()));
        // In case the reference happens to be exact: four rounding errors of the largest value.
        let allowed = factor * yardstick + 4.0 * f64::from(f32::EPSILON) * magnitude;
        let (error, at) = worst(got, truth);
        assert!(
            error <= allowed,
            "{label}: {what} at {at}: got {}, truth {}, error {error:.2e}, allowed {allowed:.2e}",
            got[at],
            truth[at]
        );
    }
}

thread_local! {
    static WITHOUT_KERNELS: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with every operation taking the reference path.
pub(crate) fn without_kernels<R>(work: impl FnOnce() -> R) -> R {
    let before = WITHOUT_KERNELS.replace(true);
    let result = work();
    WITHOUT_KERNELS.set(before);
    result
}

pub(crate) fn kernels_are_off() -> bool {
    WITHOUT_KERNELS.get()
}

thread_local! {
    static ARCH: Cell<Option<Arch>> = const { Cell::new(None) };
}

/// The results of `work` on one thread in each version of the kernels that this processor supports.
pub(crate) fn in_each_version<R>(work: impl Fn() -> R) -> Vec<(&'static str, R)> {
    let mut versions = vec![("scalar", Arch::Scalar)];
    #[cfg(target_arch = "x86_64")]
    {
        versions.extend(pulp::x86::V3::try_new().map(|v3| ("avx2", Arch::V3(v3))));
        versions.extend(pulp::x86::V4::try_new().map(|v4| ("avx512", Arch::V4(v4))));
    }
    let run = |(name, arch)| {
        let before = ARCH.replace(Some(arch));
        let result = crate::ops::sequential(&work);
        ARCH.set(before);
        (name, result)
    };
    versions.into_iter().map(run).collect()
}

pub(crate) fn forced_arch() -> Option<Arch> {
    ARCH.get()
}

/// Checks that the result of `f` and its gradients have the same bits on 1, 2 and 5 threads.
pub(crate) fn assert_same_bits(label: &str, inputs: &[Tensor], f: &(dyn Fn(&[Tensor]) -> Result<Tensor> + Sync)) {
    let bits = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run_in(f, inputs, DType::F32))
    };
    let one = bits(1);
    for threads in [2, 5] {
        for (i, (one, more)) in one.iter().zip(bits(threads)).enumerate() {
            let differs = one.iter().zip(&more).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(
                differs, None,
                "{label}: on {threads} threads, {i} differs (0 is the result, then the gradients)"
            );
        }
    }
}
