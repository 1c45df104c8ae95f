//! Products in bf16, forward and backward.

use candle_core::{DType, Result, Tensor, Var};

use crate::cpu::testing::randn;
use crate::ops::{self, CrossEntropyOptions, bf16_products};

/// An output and the gradients of two inputs.
fn run(shapes: [&[usize]; 2], op: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) -> Result<[Tensor; 3]> {
    let [x, w] = [0, 1].map(|i| Var::from_tensor(&f32s(i, shapes[i as usize])));
    let (x, w) = (x?, w?);
    let ys = op(&x, &w)?;
    let mut gradients = (&ys * f32s(2, ys.dims()))?.sum_all()?.backward()?;
    let mut of = |var| gradients.remove(var).expect("every input has a gradient");
    Ok([of(&x), of(&w), ys].map(|tensor| tensor.detach()))
}

fn f32s(seed: u64, shape: &[usize]) -> Tensor {
    randn(seed, shape).to_dtype(DType::F32).unwrap()
}

/// Rounded by candle.
fn rounded(seed: u64, shape: &[usize]) -> Tensor {
    f32s(seed, shape).to_dtype(DType::BF16).unwrap().to_dtype(DType::F64).unwrap()
}

fn largest(xs: &Tensor) -> f64 {
    xs.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

#[test]
fn a_linear_layer_multiplies_rounded_factors_forward_and_backward() {
    let (x, w, y) = ([70, 300], [130, 300], [70, 130]);
    let op = |x: &Tensor, w: &Tensor| ops::linear(x, w, None);
    let Ok(got) = bf16_products(|| run([&x, &w], op)) else { return };
    let [x, w, dy] = [rounded(0, &x), rounded(1, &w), rounded(2, &y)];
    let factors = [(dy.clone(), w.clone()), (dy.t().unwrap(), x.clone()), (x, w.t().unwrap())];
    for (i, (got, (a, b))) in got.unwrap().iter().zip(factors).enumerate() {
        let expected = a.matmul(&b).unwrap();
        let sizes = a.abs().unwrap().matmul(&b.abs().unwrap()).unwrap();
        // The sum of n terms rounds n times.
        let allowed = (sizes * (a.dims()[1] as f64 * f64::from(f32::EPSILON) / 2.0)).unwrap();
        let error = (got.to_dtype(DType::F64).unwrap() - expected).unwrap().abs().unwrap();
        assert!(largest(&(error / allowed).unwrap()) <= 1.0, "{i} (dx, dw, ys)");
    }
}

/// Each of two factors is off by at most one part in 256. Logits are of size 1, so these errors are not magnified.
#[test]
fn a_head_with_its_loss_is_close_and_not_the_same() {
    let targets = Tensor::from_vec((0..70u32).collect(), 70, &candle_core::Device::Cpu).unwrap();
    let op = |x: &Tensor, w: &Tensor| {
        let xs = (x / 300f64.sqrt())?;
        ops::linear_cross_entropy(&xs, w, None, &targets, &CrossEntropyOptions::default())
    };
    let shapes = [&[70, 300][..], &[130, 300]];
    let Ok(got) = bf16_products(|| run(shapes, op)) else { return };
    for (got, expected) in got.unwrap().iter().zip(run(shapes, op).unwrap()) {
        let error = largest(&(got - &expected).unwrap()) / largest(&expected);
        assert!(0.0 < error && error < 2.0 / 256.0, "{error}");
    }
}

#[test]
fn the_scope_ends_with_the_work() {
    let op = |x: &Tensor, w: &Tensor| ops::linear(x, w, None);
    let sum = || run([&[7, 30], &[5, 30]], op).unwrap()[2].to_vec2::<f32>().unwrap();
    let before = sum();
    let Ok(inside) = bf16_products(sum) else { return };
    assert!(inside != before && sum() == before);
}
