//! The loss against torch's: tests/fixtures/cross_entropy.py.

use candle_attention::ops::{CrossEntropyOptions, cross_entropy, linear, linear_cross_entropy};
use candle_core::{DType, Device, Tensor, Var};
use serde_json::Value;

use crate::support::assert_close;

fn tensor(rows: &Value) -> Tensor {
    let numbers = |row: &Value| -> Vec<f64> { row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
    match rows[0].is_array() {
        true => Tensor::new(rows.as_array().unwrap().iter().map(numbers).collect::<Vec<_>>(), &Device::Cpu).unwrap(),
        false => Tensor::new(numbers(rows), &Device::Cpu).unwrap(),
    }
}

/// With and without a bias and a soft cap; targets of `i64` with -100, which is ignored by default.
#[test]
fn loss_and_gradients_are_those_of_torch() {
    let fixture: Value = serde_json::from_str(include_str!("../fixtures/cross_entropy.json")).unwrap();
    let targets: Vec<i64> = fixture["targets"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
    let targets = Tensor::new(targets, &Device::Cpu).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let options = CrossEntropyOptions {
            softcap: case["softcap"].as_f64(),
            label_smoothing: case["label_smoothing"].as_f64().unwrap(),
            ..Default::default()
        };
        let expected = Tensor::new(case["loss"].as_f64().unwrap(), &Device::Cpu).unwrap();
        let arrays = |name: &str| -> Vec<Tensor> { case[name].as_array().unwrap().iter().map(tensor).collect() };
        // In f32 the fused operations, in f64 the composed ones.
        for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 1e-6)] {
            let label = format!("{options:?} in {dtype:?}");
            let vars: Vec<Var> =
                arrays("inputs").iter().map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap()).collect();
            let bias = vars.get(2).map(Var::as_tensor);
            let logits = linear(&vars[0], &vars[1], bias).unwrap();
            for loss in [
                cross_entropy(&logits, &targets, &options).unwrap(),
                linear_cross_entropy(&vars[0], &vars[1], bias, &targets, &options).unwrap(),
            ] {
                assert_close(&label, &loss, &expected, tolerance);
                let gradients = loss.backward().unwrap();
                for (var, expected) in vars.iter().zip(arrays("gradients")) {
                    assert_close(&label, gradients.get(var).unwrap(), &expected, tolerance);
                }
            }
        }
    }
}
