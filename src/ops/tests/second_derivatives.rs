//! Gradients of gradients, with candle's environment variable `CANDLE_GRAD_DO_NOT_DETACH`. candle reads it once a thread,
//! so the test runs itself in a process that has it from the start.

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::cpu::storage::second_derivatives;
use crate::cpu::testing::randn;
use crate::ops::{self, AttentionOptions, CrossEntropyOptions, DropoutOptions, RotaryPairs, record};

const VARIABLE: &str = "CANDLE_GRAD_DO_NOT_DETACH";

type Function = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// Each with the shapes of its inputs.
fn functions() -> Vec<(&'static str, Vec<Vec<usize>>, Function)> {
    let one = |name, f: fn(&Tensor) -> Result<Tensor>| {
        (name, vec![vec![3, 5]], Box::new(move |x: &[Tensor]| f(&x[0])) as Function)
    };
    let two = |name, f: fn(&Tensor, &Tensor) -> Result<Tensor>| {
        (name, vec![vec![3, 5], vec![3, 5]], Box::new(move |x: &[Tensor]| f(&x[0], &x[1])) as Function)
    };
    let targets = || Tensor::new(&[1u32, 0, 3], &Device::Cpu);
    let losses = CrossEntropyOptions { label_smoothing: 0.1, z_loss: 0.05, softcap: Some(1.5), ..Default::default() };
    vec![
        one("gelu_erf", ops::gelu_erf),
        one("gelu_tanh", ops::gelu_tanh),
        one("silu", ops::silu),
        one("quick_gelu", ops::quick_gelu),
        one("relu_squared", ops::relu_squared),
        two("swiglu", ops::swiglu),
        two("geglu_erf", ops::geglu_erf),
        two("rms_norm", |xs, weights| ops::rms_norm(xs, &weights.narrow(0, 1, 1)?.squeeze(0)?, 1e-3)),
        (
            "layer_norm",
            vec![vec![3, 5], vec![5], vec![5]],
            Box::new(|x| ops::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-3)),
        ),
        ("linear", vec![vec![2, 3, 5], vec![7, 5], vec![7]], Box::new(|x| ops::linear(&x[0], &x[1], Some(&x[2])))),
        ("cross_entropy", vec![vec![3, 5]], Box::new(move |x| ops::cross_entropy(&x[0], &targets()?, &losses))),
        (
            "linear_cross_entropy",
            vec![vec![3, 5], vec![7, 5], vec![7]],
            Box::new(move |x| ops::linear_cross_entropy(&x[0], &x[1], Some(&x[2]), &targets()?, &losses)),
        ),
        (
            "embedding",
            vec![vec![4, 5]],
            Box::new(|x| ops::embedding(&Tensor::new(&[3u32, 0, 3], &Device::Cpu)?, &x[0])?.powf(3.0)),
        ),
        (
            "dropout",
            vec![vec![3, 5]],
            Box::new(|x| ops::dropout(&x[0], &DropoutOptions { rate: 0.3, ..Default::default() })?.powf(3.0)),
        ),
        (
            "rotary",
            vec![vec![1, 3, 2, 4]],
            Box::new(|x| {
                let (cos, sin) = ops::rotary_tables(10.0, 4, 0, 3, &x[0])?;
                ops::rotary(&x[0], &cos, &sin, RotaryPairs::Halves, ops::QkvLayout::Bthd)?.powf(3.0)
            }),
        ),
        (
            "attention",
            vec![vec![1, 3, 2, 4]; 3],
            Box::new(|x| ops::attention(&x[0], &x[1], &x[2], &AttentionOptions::default())),
        ),
    ]
}

/// The gradient of a loss at `inputs`, and its derivative along `directions`: of the gradient of `<f, dout>`.
fn derivatives(f: &Function, inputs: &[Tensor], directions: &[Tensor]) -> Result<[Vec<f64>; 2]> {
    let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let out = f(&tensors)?;
    let loss = (&out * randn(999, out.dims()).to_dtype(out.dtype())?)?.sum_all()?;
    let gradients = loss.backward()?;
    let gradients: Vec<Tensor> = vars.iter().map(|var| gradients.get(var).expect("a gradient").clone()).collect();
    let along = gradients.iter().zip(directions).map(|(gradient, direction)| (gradient * direction)?.sum_all());
    let along = along.collect::<Result<Vec<_>>>()?.into_iter().try_fold(loss.zeros_like()?.detach(), |a, b| a + b)?;
    let second = along.backward()?;
    let values = |tensor: &Tensor| tensor.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let mut out = [vec![], vec![]];
    for (var, gradient) in vars.iter().zip(&gradients) {
        out[0].extend(values(gradient)?);
        // What is linear in an input has no second derivative by it alone.
        out[1].extend(match second.get(var) {
            Some(second) => values(second)?,
            None => vec![0.0; var.elem_count()],
        });
    }
    Ok(out)
}

/// Against central differences of the first derivative in `f64`.
fn hold(name: &str, shapes: &[Vec<usize>], f: &Function) {
    let random = |seed: u64| -> Vec<Tensor> { (seed..).zip(shapes).map(|(seed, shape)| randn(seed, shape)).collect() };
    let (inputs, directions) = (random(1), random(101));
    let step = 1e-5;
    let moved = |by: f64| -> Vec<f64> {
        let inputs: Vec<Tensor> =
            inputs.iter().zip(&directions).map(|(x, v)| (x + (v * by).unwrap()).unwrap()).collect();
        let [first, _] = derivatives(f, &inputs, &directions).unwrap();
        first
    };
    let differences: Vec<f64> =
        moved(step).iter().zip(moved(-step)).map(|(up, down)| (up - down) / (2.0 * step)).collect();
    let magnitude = differences.iter().fold(1.0, |most: f64, x| most.max(x.abs()));
    for (dtype, tolerance) in [(DType::F64, 1e-7), (DType::F32, 1e-4)] {
        let cast = |all: &[Tensor]| -> Vec<Tensor> { all.iter().map(|x| x.to_dtype(dtype).unwrap()).collect() };
        let [_, second] = derivatives(f, &cast(&inputs), &cast(&directions)).unwrap();
        for (i, (got, expected)) in second.iter().zip(&differences).enumerate() {
            let error = (got - expected).abs();
            assert!(error <= tolerance * magnitude, "{name} in {dtype:?}, {i}: {got}, expected {expected}");
        }
    }
}

#[test]
fn gradients_have_gradients_where_candle_is_told_to_keep_them() {
    if std::env::var(VARIABLE).is_ok() {
        assert!(second_derivatives());
        functions().iter().for_each(|(name, shapes, f)| hold(name, shapes, f));
        recordings_have_gradients();
        return;
    }
    assert!(!second_derivatives());
    let name = std::thread::current().name().expect("a test's thread has its name").to_string();
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args([&name, "--exact", "--nocapture"])
        .env(VARIABLE, "1")
        .output()
        .unwrap();
    let text = [run.stdout, run.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(run.status.success() && text.contains("1 passed"), "{text}");
}

/// The trainer's own backward pass does not change.
fn recordings_have_gradients() {
    let [xs, weight] =
        [1, 2].map(|seed| Var::from_tensor(&randn(seed, &[3, 3]).to_dtype(DType::F32).unwrap()).unwrap());
    let loss = || {
        ops::linear_cross_entropy(
            &ops::silu(&xs)?,
            &weight,
            None,
            &Tensor::new(&[1u32, 0, 2], &Device::Cpu)?,
            &Default::default(),
        )
    };
    let (loss, recording) = record::record(loss).unwrap();
    let gradients = recording.backward(&loss).unwrap();
    assert!(gradients.contains_key(&xs.id()) && gradients.contains_key(&weight.id()));
}
