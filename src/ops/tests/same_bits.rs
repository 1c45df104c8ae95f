//! The same bits for any number of threads, and nearly the same in each version of the kernels.

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::cpu::testing::{assert_same_bits, in_each_version, randn, without_kernels};
use crate::ops::{self, AttentionOptions, CrossEntropyOptions, DropoutOptions, Mask, RandomKey};
use crate::optim;

type Op = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Sync>;

/// A name, the shapes of the inputs, large enough to be split among threads, and the operation.
type Row = (&'static str, Vec<Vec<usize>>, Op);

fn row(name: &'static str, shapes: &[&[usize]], op: impl Fn(&[Tensor]) -> Result<Tensor> + Sync + 'static) -> Row {
    (name, shapes.iter().map(|shape| shape.to_vec()).collect(), Box::new(op))
}

/// `n` ids below `v`.
fn ids(n: usize, v: usize) -> Tensor {
    Tensor::from_vec((0..n).map(|i| (i * i % v) as u32).collect::<Vec<_>>(), n, &Device::Cpu).unwrap()
}

fn table() -> Vec<Row> {
    let with = |mask| AttentionOptions { mask, ..Default::default() };
    let (few, many) = ([&[2, 131, 4, 32][..], &[2, 131, 2, 32], &[2, 131, 2, 32]], [&[7, 67, 3, 16][..]; 3]);
    // Its queries alone are divided.
    let one = [&[1, 331, 1, 16][..]; 3];
    let documents = Tensor::from_vec((0..7 * 67).map(|i| i as u32 / 23).collect(), (7, 67), &Device::Cpu).unwrap();
    let key = RandomKey { seed: 1, step: 2, site: 3 };
    let losses = CrossEntropyOptions {
        ignore_index: Some(5),
        label_smoothing: 0.1,
        z_loss: 0.01,
        softcap: Some(3.0),
        ..Default::default()
    };
    let mut rows = vec![
        row("linear", &[&[517, 263], &[389, 263]], |x| ops::linear(&x[0], &x[1], None)),
        row("linear with a bias", &[&[517, 263], &[389, 263], &[389]], |x| ops::linear(&x[0], &x[1], Some(&x[2]))),
        row("layer-norm", &[&[1009, 67], &[67], &[67]], |x| ops::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5)),
        row("rms-norm", &[&[1009, 67], &[67]], |x| ops::rms_norm(&x[0], &x[1], 1e-5)),
        row("embedding", &[&[131, 67]], |x| ops::embedding(&ids(1009, 131), &x[0])),
        row("cross-entropy", &[&[1009, 67]], move |x| ops::cross_entropy(&x[0], &ids(1009, 67), &losses)),
        row("linear-cross-entropy", &[&[1009, 67], &[263, 67], &[263]], move |x| {
            ops::linear_cross_entropy(&x[0], &x[1], Some(&x[2]), &ids(1009, 263), &losses)
        }),
        row("dropout", &[&[7, 10_007]], move |x| {
            ops::dropout(&x[0], &DropoutOptions { rate: 0.3, key, first_sequence: 3 })
        }),
        row("rotary", &[&[3, 131, 5, 34]], |x| {
            let (cos, sin) = ops::rotary_tables(1e4, 34, 0, 131, &x[0])?;
            ops::rotary(&x[0], &cos, &sin, ops::RotaryPairs::Halves, ops::QkvLayout::Bthd)
        }),
        row("self-attention", &[&[5, 67, 96]], |x| ops::self_attention(&x[0], 4, &AttentionOptions::default())),
    ];
    type Unary = fn(&Tensor) -> Result<Tensor>;
    let unary: [(_, Unary); 6] = [
        ("gelu-erf", ops::gelu_erf),
        ("gelu-tanh", ops::gelu_tanh),
        ("quick-gelu", ops::quick_gelu),
        ("silu", ops::silu),
        ("relu", ops::relu),
        ("relu-squared", ops::relu_squared),
    ];
    rows.extend(unary.map(|(name, op)| row(name, &[&[40_009]], move |x| op(&x[0]))));
    type Gated = fn(&Tensor, &Tensor) -> Result<Tensor>;
    let gated: [(_, Gated); 5] = [
        ("swiglu", ops::swiglu),
        ("geglu-erf", ops::geglu_erf),
        ("geglu-tanh", ops::geglu_tanh),
        ("quick-geglu", ops::quick_geglu),
        ("reglu", ops::reglu),
    ];
    rows.extend(gated.map(|(name, op)| row(name, &[&[40_009], &[40_009]], move |x| op(&x[0], &x[1]))));
    let attention = [
        ("attention of few sequences", few, with(Mask::causal())),
        ("attention of many sequences", many, with(Mask::full())),
        ("attention of one head", one, with(Mask::causal())),
        ("attention to windows", few, with(Mask::window(40))),
        ("attention inside documents", many, with(Mask { documents: Some(documents), ..Mask::causal() })),
        (
            "attention with a soft cap and dropout",
            few,
            AttentionOptions {
                softcap: Some(3.0),
                dropout: Some(DropoutOptions { rate: 0.3, key, first_sequence: 3 }),
                ..Default::default()
            },
        ),
    ];
    rows.extend(
        attention
            .map(|(name, shapes, options)| row(name, &shapes, move |x| ops::attention(&x[0], &x[1], &x[2], &options))),
    );
    // A bias that all sequences and heads share, and sinks, both with gradients.
    let shapes = [&[7, 67, 3, 16][..], &[7, 67, 3, 16], &[7, 67, 3, 16], &[67, 67], &[3]];
    rows.push(row("attention with a bias and sinks", &shapes, |x| {
        let mask = Mask { bias: Some(x[3].clone()), ..Mask::causal() };
        let options = AttentionOptions { mask, sinks: Some(x[4].clone()), ..Default::default() };
        ops::attention(&x[0], &x[1], &x[2], &options)
    }));
    rows
}

#[test]
fn every_operation_has_the_same_bits_for_any_number_of_threads() {
    for (name, shapes, op) in table() {
        let inputs: Vec<Tensor> = (1..).zip(&shapes).map(|(seed, shape)| randn(seed, shape)).collect();
        assert_same_bits(name, &inputs, &*op);
    }
}

/// The optimizer's step has no gradient, and works in place.
#[test]
fn adamw_has_the_same_bits_for_any_number_of_threads() {
    let step = optim::AdamWStep {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        gradient_scale: 0.3,
        step: 1,
        cautious: optim::Cautious { updates: true, decay: true },
    };
    assert_same_bits("adamw", &[randn(1, &[40_009])], &|x| {
        let var = Var::from_tensor(&randn(2, &[40_009]).to_dtype(DType::F32)?)?;
        let mut moments = optim::Moments::zeros(&var)?;
        optim::adamw(&var, &x[0], &mut moments, &step)?;
        let after = Tensor::cat(&[var.as_tensor(), moments.first(), moments.second()], 0)?.detach();
        after.broadcast_add(&x[0].sum_all()?)
    });
}

/// Matrices large enough to be split; the second needs several chunks of rows and of columns.
#[test]
fn muon_has_the_same_bits_for_any_number_of_threads() {
    for (shape, cautious) in [([67, 200], true), ([600, 531], false)] {
        let cautious = optim::Cautious { updates: cautious, decay: cautious };
        let step =
            optim::MuonStep { learning_rate: 0.02, momentum: 0.95, weight_decay: 0.1, gradient_scale: 0.3, cautious };
        assert_same_bits("muon", &[randn(1, &shape)], &|x| {
            let var = Var::from_tensor(&randn(2, &shape).to_dtype(DType::F32)?)?;
            let mut mean = var.zeros_like()?.detach();
            optim::muon(&var, &x[0], &mut mean, &step)?;
            let after = Tensor::cat(&[var.as_tensor(), &mean], 0)?.detach();
            after.broadcast_add(&x[0].sum_all()?)
        });
    }
}

/// Versions round differently, but none has a larger error than allowed against the reference in `f32`.
#[test]
fn muon_is_as_exact_in_each_version_of_the_kernels() {
    for (shape, cautious) in [([67, 200], false), ([150, 131], false), ([9, 1], true)] {
        let cautious = optim::Cautious { updates: cautious, decay: cautious };
        let step =
            optim::MuonStep { learning_rate: 0.02, momentum: 0.95, weight_decay: 0.1, gradient_scale: 0.3, cautious };
        let run = |dtype: DType| {
            let var = Var::from_tensor(&randn(2, &shape).to_dtype(dtype).unwrap()).unwrap();
            let mut mean = var.zeros_like().unwrap().detach();
            for seed in 3..6 {
                optim::muon(&var, &randn(seed, &shape).to_dtype(dtype).unwrap(), &mut mean, &step).unwrap();
            }
            let after = Tensor::cat(&[var.as_detached_tensor(), mean], 0).unwrap();
            after.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
        };
        let truth = run(DType::F64);
        let error = |got: &[f64]| got.iter().zip(&truth).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let allowed = 2.0 * error(&without_kernels(|| run(DType::F32))) + 3e-7;
        let versions = in_each_version(|| run(DType::F32));
        for (name, got) in &versions {
            assert!(error(got) <= allowed, "{name}, {shape:?}: error {:.2e}, allowed {allowed:.2e}", error(got));
        }
        // Fused multiply-adds round only once, so the versions do differ.
        if let ([(_, scalar), .., (_, last)], true) = (&versions[..], shape[1] > 1) {
            assert_ne!(scalar, last);
        }
    }
}
