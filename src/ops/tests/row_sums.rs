//! The gradient of a parameter is a sum over all rows, however many there are.

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::cpu::testing::randn;
use crate::nn::LayerNorm;
use crate::ops::{embedding, layer_norm, linear, record, rms_norm};

/// An operation on rows (N, 2) with a parameter.
type Function = fn(&Tensor, &Tensor) -> Result<Tensor>;

fn of_bias(xs: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let weight = Tensor::new(&[[1f32, 0.], [0., 1.]], &Device::Cpu)?.to_dtype(xs.dtype())?;
    linear(xs, &weight, Some(bias))
}

fn of_layer_norm_weight(xs: &Tensor, weight: &Tensor) -> Result<Tensor> {
    layer_norm(xs, weight, Some(&weight.detach()), 1e-12)
}

fn of_layer_norm_bias(xs: &Tensor, bias: &Tensor) -> Result<Tensor> {
    layer_norm(xs, &bias.detach(), Some(bias), 1e-12)
}

fn of_rms_norm(xs: &Tensor, weight: &Tensor) -> Result<Tensor> {
    rms_norm(xs, weight, 1e-12)
}

fn of_rms_norm_bias(xs: &Tensor, bias: &Tensor) -> Result<Tensor> {
    use candle_nn::{LayerNormConfig, Module};
    let tensors = [("weight", bias.detach()), ("bias", bias.clone())].map(|(name, tensor)| (name.to_string(), tensor));
    let vb = candle_nn::VarBuilder::from_tensors(tensors.into(), xs.dtype(), &Device::Cpu);
    let config = LayerNormConfig { eps: 1e-12, remove_mean: false, affine: true };
    let layer: LayerNorm = crate::nn::layer_norm(2, config, vb)?;
    layer.forward(xs)
}

fn of_positions(xs: &Tensor, table: &Tensor) -> Result<Tensor> {
    record::add_positions(&xs.unsqueeze(1)?, &table.unsqueeze(0)?, 0)?.squeeze(1)
}

const ALL: [(&str, Function); 6] = [
    ("linear's bias", of_bias),
    ("layer_norm's weight", of_layer_norm_weight),
    ("layer_norm's bias", of_layer_norm_bias),
    ("rms_norm's weight", of_rms_norm),
    ("the bias after rms_norm", of_rms_norm_bias),
    ("positions", of_positions),
];

/// The gradient of the parameter, a row of ones, for the gradient `dys` of the result.
fn gradient(f: Function, xs: &Tensor, dys: &Tensor) -> Vec<f64> {
    let parameter = Var::ones(2, xs.dtype(), &Device::Cpu).unwrap();
    let ys = f(xs, &parameter).unwrap();
    let gradients = ys.broadcast_mul(dys).unwrap().sum_all().unwrap().backward().unwrap();
    gradients.get(&parameter).unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// As many ones as make 256 in bf16, and 2048 in f16, where the sum is in that dtype.
#[test]
fn ones_in_half_precision_are_counted() {
    for dtype in [DType::BF16, DType::F16] {
        // Both channels are of size 1 after either norm.
        let xs = Tensor::new(&[1f32, -1.], &Device::Cpu).unwrap().broadcast_as((4096, 2)).unwrap();
        let xs = xs.to_dtype(dtype).unwrap();
        for (name, f) in ALL {
            let got: Vec<f64> = gradient(f, &xs, &xs.ones_like().unwrap()).iter().map(|sum| sum.abs()).collect();
            assert_eq!(got, [4096.0; 2], "{name}, {dtype:?}");
        }
    }
}

/// Against the same numbers in `f64`. Each term is rounded to `f32` a few times, the sum once to the half precision.
#[test]
fn random_rows_in_half_precision_are_summed_to_within_its_rounding() {
    for (dtype, half_ulp) in [(DType::BF16, 2f64.powi(-9)), (DType::F16, 2f64.powi(-12))] {
        let [xs, dys] = [1, 2].map(|seed| randn(seed, &[8192, 2]).to_dtype(dtype).unwrap());
        let [exact_xs, exact_dys] = [&xs, &dys].map(|x| x.to_dtype(DType::F64).unwrap());
        for (name, f) in ALL {
            let (got, truth) = (gradient(f, &xs, &dys), gradient(f, &exact_xs, &exact_dys));
            for (got, truth) in got.iter().zip(truth) {
                let allowed = 2.0 * half_ulp * truth.abs() + 8192.0 * f64::from(f32::EPSILON);
                assert!((got - truth).abs() <= allowed, "{name}, {dtype:?}: {got}, expected {truth} ± {allowed}");
            }
        }
    }
}

#[test]
fn a_million_equal_rows_are_summed_to_within_a_millionth() {
    const ROWS: usize = 1_000_000;
    let xs = Tensor::new(&[1f32, -1.], &Device::Cpu).unwrap().broadcast_as((ROWS, 2)).unwrap().contiguous().unwrap();
    let term = 0.1f32;
    let dys = Tensor::new(&[term, -term], &Device::Cpu).unwrap();
    let expected = ROWS as f64 * f64::from(term);
    let hold = |name: &str, got: &[f64]| {
        for got in got {
            let error = (got.abs() / expected - 1.0).abs();
            assert!(error <= 1e-6, "{name}: {got}, expected {expected}, off by {error:.1e} of it");
        }
    };
    // Composed of candle's operations, the others are summed by candle.
    for (name, f) in &ALL[..4] {
        hold(name, &gradient(*f, &xs, &dys));
    }
    let ids = Tensor::full(1u32, ROWS, &Device::Cpu).unwrap();
    let table = Var::ones((3, 2), DType::F32, &Device::Cpu).unwrap();
    let rows = embedding(&ids, &table).unwrap();
    let gradients = rows.broadcast_mul(&dys).unwrap().sum_all().unwrap().backward().unwrap();
    let gradient = gradients.get(&table).unwrap().to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
    hold("embedding", &gradient[1]);
    assert!(gradient[0] == [0.0; 2] && gradient[2] == [0.0; 2]);
}

/// Products of rows, whose sums candle takes.
#[test]
fn weights_in_half_precision_are_summed_to_within_its_rounding() {
    for (dtype, half_ulp) in [(DType::BF16, 2f64.powi(-9)), (DType::F16, 2f64.powi(-12))] {
        let [xs, dys] = [1, 2].map(|seed| randn(seed, &[8192, 2]).to_dtype(dtype).unwrap());
        let run = |dtype: DType| {
            let [xs, dys] = [&xs, &dys].map(|x| x.to_dtype(dtype).unwrap());
            let weight = Var::ones((2, 2), dtype, &Device::Cpu).unwrap();
            let gradients = (linear(&xs, &weight, None).unwrap() * dys).unwrap().sum_all().unwrap().backward().unwrap();
            let gradient = gradients.get(&weight).unwrap().to_dtype(DType::F64).unwrap();
            gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap()
        };
        for (got, truth) in run(dtype).iter().zip(run(DType::F64)) {
            let allowed = 2.0 * half_ulp * truth.abs() + 8192.0 * f64::from(f32::EPSILON);
            assert!((got - truth).abs() <= allowed, "{dtype:?}: {got}, expected {truth} ± {allowed}");
        }
    }
}
