//! The kernels against the references, and positions that do not count.

use super::*;
use crate::cpu::testing::{assert_like_reference, randn};
use candle_core::{Device, Var};

const MEAN: CrossEntropyOptions =
    CrossEntropyOptions { ignore_index: None, normalizer: None, label_smoothing: 0.0, z_loss: 0.0, softcap: None };
/// Far above any vocabulary here.
const IGNORED: u32 = u32::MAX;

fn targets(n: usize, v: usize, ignores: impl Fn(usize) -> bool) -> Tensor {
    let id = |i: usize| if ignores(i) { IGNORED } else { ((i * i + 3) % v) as u32 };
    Tensor::from_vec((0..n).map(id).collect::<Vec<_>>(), n, &Device::Cpu).unwrap()
}

fn f32s(seed: u64, shape: &[usize]) -> Var {
    Var::from_tensor(&randn(seed, shape).to_dtype(DType::F32).unwrap()).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn the_kernels_are_the_references() {
    for (rows, c, v, spread) in
        [(1, 1, 2, 1.0), (7, 13, 5, 1.0), (1103, 31, 131, 1.0), (37, 3, 20_011, 1.0), (67, 5, 11, 1e3), (5, 2, 1, 1.0)]
    {
        let inputs = [(randn(1, &[rows, c]) * spread).unwrap(), randn(2, &[v, c]), randn(4, &[v])];
        let logits = [(randn(3, &[rows, v]) * spread).unwrap()];
        for ignores in [|_| false, |i: usize| i % 3 == 1, |i: usize| i % 7 > 1] {
            let targets = targets(rows, v, ignores);
            for (normalizer, label_smoothing, z_loss, softcap) in [
                (None, 0.0, 0.0, None),
                (Some(17.0), 0.0, 0.0, None),
                (Some(17.0), 0.1, 0.0, Some(30.0 * spread)),
                (None, 0.7, 0.02, None),
                (None, 0.0, 1e-4, Some(1.5 * spread)),
            ] {
                // With one id there is nothing to smooth over, and all that a cap could scale is rounding.
                let (label_smoothing, softcap) = if v > 1 { (label_smoothing, softcap) } else { (0.0, None) };
                let ignore_index = Some(IGNORED.into());
                let options = CrossEntropyOptions { ignore_index, normalizer, label_smoothing, z_loss, softcap };
                let read = read_targets("", &targets, v, &options).unwrap();
                let label = format!("{rows} {c} {v} {spread} {options:?}");
                let fused = |x: &[Tensor]| linear_cross_entropy(&x[0], &x[1], x.get(2), &targets, &options);
                let reference =
                    |x: &[Tensor]| reference::cross_entropy(&crate::ops::linear(&x[0], &x[1], x.get(2))?, &read);
                // Without a bias and with one; the same for one id.
                for inputs in [&inputs[..2], &inputs[..if v > 1 { 3 } else { 2 }]] {
                    assert_like_reference(&format!("linear-cross-entropy {label}"), inputs, &fused, &reference);
                }
                let fused = |x: &[Tensor]| cross_entropy(&x[0], &targets, &options);
                let reference = |x: &[Tensor]| reference::cross_entropy(&x[0], &read);
                assert_like_reference(&format!("cross-entropy {label}"), &logits, &fused, &reference);
            }
        }
    }
}

#[test]
fn views_give_the_same() {
    let ids = targets(30, 7, |i| i % 4 == 0).reshape((5, 6)).unwrap().t().unwrap();
    let options = CrossEntropyOptions { ignore_index: Some(IGNORED.into()), ..MEAN };
    let copy = ids.contiguous().unwrap();
    let view = |x: &Tensor| x.permute((2, 1, 0));
    let fused = |x: &[Tensor]| cross_entropy(&view(&x[0])?, &ids, &options);
    let reference = |x: &[Tensor]| {
        let targets = read_targets("", &copy, 7, &options)?;
        reference::cross_entropy(&view(&x[0])?.contiguous()?, &targets)
    };
    assert_like_reference("cross-entropy of views", &[randn(1, &[7, 5, 6])], &fused, &reference);
}

#[test]
fn parts_add_up_to_the_whole() {
    let (xs, weight) = (f32s(1, &[11, 3]), f32s(2, &[7, 3]));
    let targets = targets(11, 7, |_| false);
    let loss = |from: usize, n: usize| {
        let (xs, targets) = (xs.narrow(0, from, n).unwrap(), targets.narrow(0, from, n).unwrap());
        let options = CrossEntropyOptions { normalizer: Some(11.0), ..MEAN };
        linear_cross_entropy(&xs, &weight, None, &targets, &options).unwrap().to_scalar::<f32>().unwrap()
    };
    assert!((loss(0, 4) + loss(4, 7) - loss(0, 11)).abs() < 1e-6);
}

/// The mean is over the rows that count, and the same as without the others, whatever these hold.
#[test]
fn ignored_rows_have_no_effect() {
    let (logits, weight) = (f32s(1, &[3, 5]), f32s(2, &[7, 5]));
    let wild = Tensor::new(&[[f32::NAN; 5], [f32::INFINITY; 5]], &Device::Cpu).unwrap();
    let all = Tensor::cat(&[&wild, logits.as_tensor()], 0).unwrap();
    let ids = Tensor::new(&[9u32, 9, 4, 0, 1], &Device::Cpu).unwrap();
    let options = CrossEntropyOptions { ignore_index: Some(9), ..MEAN };
    type Loss = fn(&Tensor, &Tensor, &Tensor, &CrossEntropyOptions) -> Result<Tensor>;
    let plain: Loss = |xs, _, ids, options| cross_entropy(xs, ids, options);
    let linear: Loss = |xs, weight, ids, options| linear_cross_entropy(xs, weight, None, ids, options);
    for loss in [plain, linear] {
        let part = loss(&logits, &weight, &ids.narrow(0, 2, 3).unwrap(), &MEAN).unwrap();
        let whole = loss(&all, &weight, &ids, &options).unwrap();
        assert_eq!(values(&part), values(&whole));
        let (part, whole) = (part.backward().unwrap(), whole.backward().unwrap());
        assert_eq!(values(part.get(&logits).unwrap()), values(whole.get(&logits).unwrap()));
        assert_eq!(part.get(&weight).map(values), whole.get(&weight).map(values));
    }
}

#[test]
fn no_row_that_counts_gives_zeros() {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let [xs, weight] =
            [[3, 5], [7, 5]].map(|shape| Var::from_tensor(&randn(1, &shape).to_dtype(dtype).unwrap()).unwrap());
        let ids = Tensor::new(&[9u32, 9, 9], &Device::Cpu).unwrap();
        for normalizer in [None, Some(0.0), Some(3.0)] {
            let options = CrossEntropyOptions { ignore_index: Some(9), normalizer, ..MEAN };
            let linear = linear_cross_entropy(&xs, &weight, None, &ids, &options).unwrap();
            let plain = cross_entropy(&xs, &ids, &options).unwrap();
            for (loss, vars) in [(linear, &[&xs, &weight][..]), (plain, &[&xs])] {
                let gradients = loss.backward().unwrap();
                let gradients = vars.iter().map(|var| gradients.get(var).unwrap());
                for tensor in gradients.chain([&loss]) {
                    assert!(values(&tensor.to_dtype(DType::F32).unwrap()).iter().all(|x| *x == 0.0));
                }
            }
        }
    }
}

/// Also torch's -100 among targets of `i64`, which is the default.
#[test]
fn targets_of_i64_are_those_of_u32() {
    let (xs, weight, bias) = (f32s(1, &[4, 3]), f32s(2, &[7, 3]), f32s(3, &[7]));
    let of = |ids: &Tensor, options: &CrossEntropyOptions| {
        let logits = crate::ops::linear(&xs, &weight, Some(&bias)).unwrap();
        let plain = cross_entropy(&logits, ids, options).unwrap();
        let linear = linear_cross_entropy(&xs, &weight, Some(&bias), ids, options).unwrap();
        [values(&plain), values(&linear)]
    };
    let signed = Tensor::new(&[6i64, -100, 0, 3], &Device::Cpu).unwrap();
    let unsigned = Tensor::new(&[6u32, 2, 0, 3], &Device::Cpu).unwrap();
    let without_2 = CrossEntropyOptions { ignore_index: Some(2), ..MEAN };
    assert_eq!(of(&signed, &CrossEntropyOptions::default()), of(&unsigned, &without_2));
    assert_ne!(of(&signed, &CrossEntropyOptions::default()), of(&unsigned, &CrossEntropyOptions::default()));
    for (id, ignore_index, expected) in [
        (-100i64, None, "expected targets from 0 to below 7, and no ignore_index, got -100"),
        (-1, Some(-100), "expected targets from 0 to below 7, and the ignore_index -100, got -1"),
        ((1i64 << 32) + 1, Some(-100), "got 4294967297"),
    ] {
        let (ids, options) = (Tensor::full(id, 4, &Device::Cpu).unwrap(), CrossEntropyOptions { ignore_index, ..MEAN });
        let error = linear_cross_entropy(&xs, &weight, None, &ids, &options).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let bytes = Tensor::zeros(4, DType::U8, &Device::Cpu).unwrap();
    let error = cross_entropy(&xs, &bytes, &MEAN).unwrap_err().to_string();
    assert!(error.contains("expected targets of dtype U32 or I64, got U8"), "{error}");
}

/// The gradients are computed in forward, but only of tracked inputs.
#[test]
fn gradients_do_not_depend_on_what_else_is_tracked() {
    let (xs, weight) = (f32s(1, &[11, 3]), f32s(2, &[7, 3]));
    let ids = targets(11, 7, |i| i == 5);
    let options = CrossEntropyOptions { ignore_index: Some(IGNORED.into()), ..MEAN };
    let run = |xs: &Tensor, weight: &Tensor| {
        let loss = (linear_cross_entropy(xs, weight, None, &ids, &options).unwrap() * 3.0).unwrap();
        (values(&loss), loss.backward().unwrap())
    };
    let (loss, both) = run(&xs, &weight);
    let (loss_of_xs, of_xs) = run(&xs, &weight.as_detached_tensor());
    let (loss_of_weight, of_weight) = run(&xs.as_detached_tensor(), &weight);
    assert!(loss == loss_of_xs && loss == loss_of_weight);
    assert_eq!(values(both.get(&xs).unwrap()), values(of_xs.get(&xs).unwrap()));
    assert_eq!(values(both.get(&weight).unwrap()), values(of_weight.get(&weight).unwrap()));
    assert!(of_xs.get(&weight).is_none() && of_weight.get(&xs).is_none());
    let (untracked, _) = run(&xs.as_detached_tensor(), &weight.as_detached_tensor());
    assert!((untracked[0] - loss[0]).abs() < 1e-5);
}

#[test]
fn what_does_not_fit_is_named() {
    let (xs, weight) = (f32s(1, &[11, 3]), f32s(2, &[7, 3]));
    let error = |target: u32, n: usize, normalizer: Option<f64>| {
        let targets = Tensor::from_vec(vec![target; n], n, &Device::Cpu).unwrap();
        let options = CrossEntropyOptions { ignore_index: Some(8), normalizer, ..MEAN };
        linear_cross_entropy(&xs, &weight, None, &targets, &options).unwrap_err().to_string()
    };
    assert!(
        error(7, 11, None)
            .contains("linear-cross-entropy: expected targets from 0 to below 7, and the ignore_index 8, got 7")
    );
    assert!(error(0, 10, None).contains("expected targets of the leading shape of the input [11, 3], got [10]"));
    assert!(error(0, 11, Some(0.0)).contains("linear-cross-entropy: expected a normalizer above 0, got 0"));
    assert!(error(0, 11, Some(f64::NAN)).contains("expected a normalizer above 0, got NaN"));
    for label_smoothing in [1.0, -0.1, f64::NAN] {
        let options = CrossEntropyOptions { label_smoothing, ..MEAN };
        let error = cross_entropy(&xs, &targets(11, 3, |_| false), &options).unwrap_err().to_string();
        assert!(error.contains("cross-entropy: expected label smoothing from 0 to below 1"), "{error}");
    }
    for z_loss in [-0.1, f64::NAN, f64::INFINITY] {
        let options = CrossEntropyOptions { z_loss, ..MEAN };
        let error = cross_entropy(&xs, &targets(11, 3, |_| false), &options).unwrap_err().to_string();
        assert!(error.contains("cross-entropy: expected a z-loss of at least 0"), "{error}");
    }
    for softcap in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e39, 1e-46] {
        let options = CrossEntropyOptions { softcap: Some(softcap), ..MEAN };
        let error = cross_entropy(&xs, &targets(11, 3, |_| false), &options).unwrap_err().to_string();
        assert!(error.contains("cross-entropy: expected a softcap above 0 that is a number of f32"), "{error}");
    }
    let targets = targets(11, 7, |_| false);
    let error = linear_cross_entropy(&xs, &weight, Some(&f32s(3, &[6])), &targets, &MEAN).unwrap_err().to_string();
    assert!(error.contains("linear-cross-entropy: expected a bias of shape [7], got [6]"), "{error}");
}

/// torch's cross_entropy plus 0.1 times the mean of the squares of its logsumexp, in f64, over the rows that count.
#[test]
fn z_loss_is_that_of_torchs_log_sum_exp() {
    let logits = Tensor::new(&[[0.5f64, -1.0, 2.0], [1.5, 0.25, -0.75], [3.0, 0.0, 1.0]], &Device::Cpu).unwrap();
    let logits = Var::from_tensor(&logits).unwrap();
    let ids = Tensor::new(&[2u32, 0, 9], &Device::Cpu).unwrap();
    let options = CrossEntropyOptions { ignore_index: Some(9), z_loss: 0.1, ..MEAN };
    let loss = cross_entropy(&logits, &ids, &options).unwrap();
    assert!((loss.to_scalar::<f64>().unwrap() - 0.7047338796000326).abs() < 1e-14, "{loss}");
    let gradient = loss.backward().unwrap().remove(&logits).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    for (got, expected) in gradient.iter().zip(OF_Z_LOSS) {
        assert!((got - expected).abs() < 1e-14, "{got}, expected {expected}");
    }
}

const OF_Z_LOSS: [f64; 9] = [
    0.12693322967991105,
    0.02832263186663598,
    0.06887526811916866,
    -0.009256924020623891,
    0.140600245294016,
    0.05172393966733031,
    0.0,
    0.0,
    0.0,
];

/// torch.nn.functional.cross_entropy of torch 2.15 in f64, with `label_smoothing` and `ignore_index` 9.
#[test]
fn label_smoothing_is_torchs() {
    let logits = Tensor::new(&[[0.5f64, -1.0, 2.0], [1.5, 0.25, -0.75], [3.0, 0.0, 1.0]], &Device::Cpu).unwrap();
    let logits = Var::from_tensor(&logits).unwrap();
    let ids = Tensor::new(&[2u32, 0, 9], &Device::Cpu).unwrap();
    for (label_smoothing, loss, gradient) in TORCH {
        let options = CrossEntropyOptions { ignore_index: Some(9), label_smoothing, ..MEAN };
        let got = cross_entropy(&logits, &ids, &options).unwrap();
        assert!((got.to_scalar::<f64>().unwrap() - loss).abs() < 1e-14, "{got}, expected {loss}");
        let gradients = got.backward().unwrap();
        let got = gradients.get(&logits).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for (got, expected) in got.iter().zip(gradient) {
            assert!((got - expected).abs() < 1e-14, "{got}, expected {expected}");
        }
    }
}

const TORCH: [(f64, f64, [f64; 9]); 2] = [
    (
        0.1,
        0.4193252863655239,
        [
            0.07097852940335168,
            0.0028896199686770582,
            -0.07386814937202874,
            -0.10744649609113421,
            0.08625163533215911,
            0.02119486075897509,
            0.0,
            0.0,
            0.0,
        ],
    ),
    (
        0.7,
        1.2193252863655237,
        [
            -0.029021470596648308,
            -0.09711038003132293,
            0.12613185062797128,
            0.09255350390886576,
            -0.013748364667840891,
            -0.0788051392410249,
            0.0,
            0.0,
            0.0,
        ],
    ),
];
