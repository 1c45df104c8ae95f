//! candle-nn operations that silently cut gradients, and this crate's that do not.
//!
//! The first half of each test documents candle 0.11.1: when a release mends it, the test fails and the list in
//! `docs/layer.md` gets shorter.

use candle_attention::ops;
use candle_core::{D, DType, Device, Module, Result, Tensor, Var};

use crate::support::randn;

fn var(seed: u64, shape: &[usize]) -> Var {
    Var::from_tensor(&randn(seed, shape).to_dtype(DType::F32).unwrap()).unwrap()
}

/// Whether a gradient reaches `var` from the sum of the squares of `ys`.
fn reaches(var: &Var, ys: Result<Tensor>) -> bool {
    let gradients = ys.unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
    gradients.get(var).is_some()
}

#[test]
fn layer_norm() {
    let (xs, weight, bias) = (var(1, &[3, 5]), var(2, &[5]), var(3, &[5]));
    let candle = candle_nn::LayerNorm::new(weight.as_tensor().clone(), bias.as_tensor().clone(), 1e-5);
    for var in [&xs, &weight, &bias] {
        assert!(!reaches(var, candle.forward(&xs)), "candle-nn's LayerNorm has learned to pass gradients on");
        assert!(reaches(var, ops::layer_norm(&xs, &weight, Some(&bias), 1e-5)));
    }
}

#[test]
fn rms_norm() {
    let (xs, weight) = (var(1, &[3, 5]), var(2, &[5]));
    let candle = candle_nn::RmsNorm::new(weight.as_tensor().clone(), 1e-5);
    for var in [&xs, &weight] {
        assert!(!reaches(var, candle.forward(&xs)), "candle-nn's RmsNorm has learned to pass gradients on");
        assert!(reaches(var, ops::rms_norm(&xs, &weight, 1e-5)));
    }
}

#[test]
fn softmax() {
    let q = var(1, &[1, 3, 2, 5]);
    let scores = |q: &Var| q.transpose(1, 2)?.contiguous()?.matmul(&q.transpose(1, 2)?.t()?.contiguous()?);
    let candle = scores(&q).and_then(|scores| candle_nn::ops::softmax_last_dim(&scores));
    assert!(!reaches(&q, candle), "candle-nn's softmax_last_dim has learned to pass gradients on");
    let (out, weights) = ops::attention_with_weights(&q, &q, &q, &ops::AttentionOptions::default()).unwrap();
    assert!(reaches(&q, Ok(out)));
    assert!(reaches(&q, Ok(weights)));
}

#[test]
fn rope() {
    let xs = var(1, &[1, 3, 3, 4]);
    let angles = randn(2, &[3, 2]).to_dtype(DType::F32).unwrap();
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    for fused in [candle_nn::rotary_emb::rope, candle_nn::rotary_emb::rope_i, candle_nn::rotary_emb::rope_thd] {
        assert!(!reaches(&xs, fused(&xs, &cos, &sin)), "candle-nn's rope has learned to pass gradients on");
    }
    for pairs in [ops::RotaryPairs::Halves, ops::RotaryPairs::Neighbours] {
        assert!(reaches(&xs, ops::rotary(&xs, &cos, &sin, pairs, ops::QkvLayout::Bthd)));
    }
}

/// And the optimizer says nothing: a step of candle-nn's AdamW leaves what is cut off as it was.
#[test]
fn a_training_step_of_candle_nn_leaves_weights_behind_in_silence() {
    use candle_nn::{AdamW, Optimizer, ParamsAdamW};
    let (before, norm) = (var(1, &[5, 5]), var(2, &[5]));
    let start = before.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let xs = randn(4, &[3, 5]).to_dtype(DType::F32).unwrap();
    let mut optimizer = AdamW::new(vec![before.clone(), norm.clone()], ParamsAdamW::default()).unwrap();
    let layer = candle_nn::RmsNorm::new(norm.as_tensor().clone(), 1e-5);
    let loss = layer.forward(&xs.matmul(&before).unwrap()).unwrap().sum(D::Minus1).unwrap().sum_all().unwrap();
    optimizer.backward_step(&loss).unwrap();
    assert_eq!(before.flatten_all().unwrap().to_vec1::<f32>().unwrap(), start);

    let loss = ops::rms_norm(&xs.matmul(&before).unwrap(), &norm, 1e-5).unwrap().sum_all().unwrap();
    optimizer.backward_step(&loss).unwrap();
    assert_ne!(before.flatten_all().unwrap().to_vec1::<f32>().unwrap(), start);
}

/// A misspelt name gives zeros, and nobody is told; a store of this crate that was restored refuses it.
#[test]
fn a_var_map_makes_up_what_it_lacks() {
    let map = candle_nn::VarMap::new();
    let vb = candle_nn::VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    assert_eq!(vb.get(2, "wieght").unwrap().to_vec1::<f32>().unwrap(), [0.0, 0.0]);
    let ones = Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
    let restored = candle_attention::nn::Parameters::restored([("weight".to_string(), ones)]).unwrap();
    assert!(restored.var_builder(DType::F32, &Device::Cpu).get(2, "wieght").is_err());
}
