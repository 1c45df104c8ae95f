//! The worked example, and every claim about causal self-attention, as tests.

use candle_attention::nn::{CausalSelfAttention, CausalSelfAttentionConfig};
use candle_attention::ops::{AttentionOptions, Mask, Scale, attention, attention_with_weights};
use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::VarBuilder;

use crate::support::{assert_close, max_difference, randn, values};

/// A matrix of tests/fixtures/chapter.json, computed by numpy.
fn fixture(name: &str) -> Tensor {
    let json: serde_json::Value = serde_json::from_str(include_str!("../fixtures/chapter.json")).unwrap();
    match &json[name][0] {
        serde_json::Value::Number(_) => {
            let row: Vec<f64> = serde_json::from_value(json[name].clone()).unwrap();
            Tensor::new(row, &Device::Cpu).unwrap()
        }
        _ => {
            let rows: Vec<Vec<f64>> = serde_json::from_value(json[name].clone()).unwrap();
            Tensor::new(rows, &Device::Cpu).unwrap()
        }
    }
}

/// The layer of the example: one head, no bias, no output projection.
fn layer(scale: Scale, causal: bool) -> CausalSelfAttention {
    let tensors = [("q_proj", "w_q"), ("k_proj", "w_k"), ("v_proj", "w_v")].map(|(name, fixture_name)| {
        (format!("{name}.weight"), fixture(fixture_name).t().unwrap().contiguous().unwrap())
    });
    let vb = VarBuilder::from_tensors(tensors.into_iter().collect(), DType::F64, &Device::Cpu);
    if causal {
        return CausalSelfAttention::single_head(4, scale, vb).unwrap();
    }
    let config =
        CausalSelfAttentionConfig { output_projection: false, scale, causal, ..CausalSelfAttentionConfig::new(4, 1) };
    CausalSelfAttention::new(&config, vb).unwrap()
}

#[test]
fn the_worked_example() {
    let x = fixture("x");
    for (name, scale, causal) in
        [("unscaled", Scale::One, true), ("scaled", Scale::InverseSqrt, true), ("unmasked", Scale::One, false)]
    {
        let layer = layer(scale, causal);
        assert_close("q", &layer.q_proj().forward(&x).unwrap(), &fixture("q"), 1e-12);
        assert_close("k", &layer.k_proj().forward(&x).unwrap(), &fixture("k"), 1e-12);
        assert_close("v", &layer.v_proj().forward(&x).unwrap(), &fixture("v"), 1e-12);
        let (output, weights) = layer.forward_with_weights(&x).unwrap();
        assert_close(name, &weights.squeeze(0).unwrap(), &fixture(&format!("{name}_weights")), 1e-12);
        assert_close(name, &output, &fixture(&format!("{name}_output")), 1e-12);
    }
}

#[test]
fn the_worked_example_to_four_digits() {
    let (output, weights) = layer(Scale::InverseSqrt, true).forward_with_weights(&fixture("x")).unwrap();
    let digits = [[1., 0., 0.], [0.5646, 0.4354, 0.], [0.3576, 0.3284, 0.3140]];
    assert_close("weights", &weights.squeeze(0).unwrap(), &Tensor::new(&digits, &Device::Cpu).unwrap(), 5e-5);
    let digits = [[0.2, 0.7, 0.7, 0.4], [0.3741, 0.3517, 0.5694, 0.6177], [0.5512, 0.3745, 0.4131, 0.5642]];
    assert_close("output", &output, &Tensor::new(&digits, &Device::Cpu).unwrap(), 5e-5);
}

/// Theorem 1: with the mask, a position depends only on those up to it, in outputs and gradients.
#[test]
fn a_position_does_not_depend_on_later_ones() {
    let layer = layer(Scale::InverseSqrt, true);
    let x = randn(1, &[7, 4]);
    let before = layer.forward(&x).unwrap();
    for changed in 1..7 {
        let kept = x.narrow(0, 0, changed).unwrap();
        let x = Tensor::cat(&[&kept, &randn(2, &[7 - changed, 4])], 0).unwrap();
        let after = layer.forward(&x).unwrap();
        let same = |ys: &Tensor| values(&ys.narrow(0, 0, changed).unwrap());
        assert_eq!(same(&before), same(&after), "changing position {changed} moved one before it");
    }

    let x = Var::from_tensor(&x).unwrap();
    for i in 0..7 {
        let a_i = layer.forward(&x).unwrap().narrow(0, i, 1).unwrap();
        let gradient = a_i.sum_all().unwrap().backward().unwrap().remove(&x).unwrap();
        for (j, row) in gradient.to_vec2::<f64>().unwrap().iter().enumerate() {
            assert_eq!(row.iter().all(|g| *g == 0.0), j > i, "d a_{i} / d x_{j} = {row:?}");
        }
    }
}

/// Corollary 1.1: without the mask every position depends on every other.
#[test]
fn without_the_mask_every_position_depends_on_every_other() {
    let layer = layer(Scale::InverseSqrt, false);
    let x = Var::from_tensor(&randn(3, &[7, 4])).unwrap();
    for i in 0..7 {
        let a_i = layer.forward(&x).unwrap().narrow(0, i, 1).unwrap();
        let gradient = a_i.sum_all().unwrap().backward().unwrap().remove(&x).unwrap();
        for (j, row) in gradient.to_vec2::<f64>().unwrap().iter().enumerate() {
            assert!(row.iter().any(|g| *g != 0.0), "a_{i} does not depend on x_{j}");
        }
    }
}

/// Proposition 1: causal attention is attention over the allowed set j <= i.
#[test]
fn causal_attention_is_attention_over_an_allowed_set() {
    let [q, k, v] = [4, 5, 6].map(|seed| randn(seed, &[2, 7, 3, 5]));
    let allowed: Vec<u8> = (0..7).flat_map(|i| (0..7).map(move |j| u8::from(j <= i))).collect();
    let allowed = Mask { allowed: Some(Tensor::from_vec(allowed, (7, 7), &Device::Cpu).unwrap()), ..Mask::full() };
    // In f32 each mask has its own kernel, which skips what is not allowed; in f64 it is added to the scores.
    for dtype in [DType::F32, DType::F64] {
        let [q, k, v] = [&q, &k, &v].map(|tensor| tensor.to_dtype(dtype).unwrap());
        let of = |mask: &Mask| {
            attention(&q, &k, &v, &AttentionOptions { mask: mask.clone(), ..Default::default() }).unwrap()
        };
        assert_eq!(values(&of(&Mask::causal())), values(&of(&allowed)));
        assert!(max_difference(&of(&Mask::causal()), &of(&Mask::full())) > 0.1);
    }
}

#[test]
fn the_weights_of_a_query_are_a_distribution() {
    let (_, weights) = layer(Scale::InverseSqrt, true).forward_with_weights(&randn(7, &[7, 4])).unwrap();
    for (i, row) in weights.squeeze(0).unwrap().to_vec2::<f64>().unwrap().iter().enumerate() {
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-14, "row {i}: {row:?}");
        assert!(row[..=i].iter().all(|w| *w > 0.0) && row[i + 1..].iter().all(|w| *w == 0.0), "row {i}: {row:?}");
    }
}

/// Translating all keys by `t` adds `q_i . t` to the whole row `i` of scores.
#[test]
fn a_constant_on_a_row_of_scores_changes_nothing() {
    let [q, k, v] = [8, 9, 10].map(|seed| randn(seed, &[2, 7, 3, 5]));
    let moved = k.broadcast_add(&randn(11, &[5])).unwrap();
    let of = |k: &Tensor| attention(&q, k, &v, &AttentionOptions::default()).unwrap();
    assert_close("output", &of(&moved), &of(&k), 1e-13);
}

/// Lemma 1 as it is often stated, and its counter-example: translating every embedding changes the weights, because the
/// term t W^Q . k_j differs from key to key.
#[test]
fn attention_is_not_invariant_under_translation() {
    let layer = layer(Scale::One, true);
    let moved = fixture("x").broadcast_add(&fixture("translation")).unwrap();
    let (_, before) = layer.forward_with_weights(&fixture("x")).unwrap();
    let (_, after) = layer.forward_with_weights(&moved).unwrap();
    assert_close("weights", &after.squeeze(0).unwrap(), &fixture("translated_weights"), 1e-12);
    assert!((max_difference(&before, &after) - 0.072).abs() < 5e-4);
}

/// The part of Lemma 1 that holds: translating the inputs of the keys leaves the weights unchanged, and translating the
/// inputs of the values moves each output by t W^V.
#[test]
fn what_holds_of_translations() {
    let (x, t) = (fixture("x"), fixture("translation"));
    let moved = x.broadcast_add(&t).unwrap();
    let of = |keys_from: &Tensor, values_from: &Tensor| {
        let project = |x: &Tensor, w| x.matmul(&fixture(w)).unwrap().reshape((1, 3, 1, 4)).unwrap();
        let options = AttentionOptions { scale: Scale::One, ..Default::default() };
        let (q, k, v) = (project(&x, "w_q"), project(keys_from, "w_k"), project(values_from, "w_v"));
        attention_with_weights(&q, &k, &v, &options).unwrap()
    };
    let (output, weights) = of(&x, &x);
    assert_close("weights", &of(&moved, &x).1, &weights, 1e-14);

    let t_w_v = t.unsqueeze(0).unwrap().matmul(&fixture("w_v")).unwrap().reshape((1, 1, 1, 4)).unwrap();
    assert_close("output", &of(&x, &moved).0, &output.broadcast_add(&t_w_v).unwrap(), 1e-14);
}

/// One position at a time, over the keys and values so far, gives the same as all at once.
#[test]
fn one_position_at_a_time_gives_the_same() {
    let [q, k, v] = [12, 13, 14].map(|seed| randn(seed, &[2, 7, 3, 5]));
    let options = AttentionOptions::default();
    let at_once = attention(&q, &k, &v, &options).unwrap();
    for t in 0..7 {
        let now = q.narrow(1, t, 1).unwrap();
        let (cached_k, cached_v) = (k.narrow(1, 0, t + 1).unwrap(), v.narrow(1, 0, t + 1).unwrap());
        let step = attention(&now, &cached_k, &cached_v, &options).unwrap();
        assert_close(&format!("position {t}"), &step, &at_once.narrow(1, t, 1).unwrap(), 1e-14);
    }
}
