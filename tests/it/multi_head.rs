//! Multi-head attention: compared with torch and the formula, and its gradients.

use std::collections::HashMap;

use candle_attention::nn::{
    AttentionInputs, Linear, MultiHeadAttention, MultiHeadAttentionConfig, Parameters, RotaryEmbedding,
    RotaryEmbeddingConfig,
};
use candle_attention::ops::{self, Band, KeyPadding, Mask, RotaryPairs, Scale};
use candle_core::{DType, Device, Module, Tensor, Var};

use crate::support::{assert_close, check_gradients, max_difference, parameters_in_f64, randn, values, weighted_sum};

const HEAD_DIM: usize = 4;

fn rotary(dtype: DType, pairs: RotaryPairs) -> RotaryEmbedding {
    let config = RotaryEmbeddingConfig { theta: 100.0, pairs, ..RotaryEmbeddingConfig::new(HEAD_DIM, 32) };
    RotaryEmbedding::new(&config, dtype, &Device::Cpu).unwrap()
}

/// Layers with everything that decoding has to handle, by name.
pub fn causal_forms(dtype: DType) -> Vec<(&'static str, MultiHeadAttentionConfig)> {
    let plain = MultiHeadAttentionConfig { mask: Mask::causal(), ..MultiHeadAttentionConfig::new(24, 6) };
    let grouped = MultiHeadAttentionConfig { num_kv_heads: Some(2), ..plain.clone() };
    vec![
        ("window", MultiHeadAttentionConfig { mask: Mask::window(3), bias: true, output_bias: true, ..plain.clone() }),
        ("grouped", grouped.clone()),
        (
            "multi-query, values of their own width",
            MultiHeadAttentionConfig {
                num_kv_heads: Some(1),
                value_dim: Some(7),
                scale: Scale::Value(0.3),
                softcap: Some(2.0),
                ..plain.clone()
            },
        ),
        (
            "rotary and norms",
            MultiHeadAttentionConfig {
                rotary: Some(rotary(dtype, RotaryPairs::Halves)),
                qk_norm_eps: Some(1e-6),
                ..grouped.clone()
            },
        ),
        (
            "rotary neighbours, without output projection",
            MultiHeadAttentionConfig {
                rotary: Some(rotary(dtype, RotaryPairs::Neighbours)),
                output_projection: false,
                ..grouped
            },
        ),
        ("plain", plain),
    ]
}

/// A layer with random weights.
pub fn layer_of(config: &MultiHeadAttentionConfig, dtype: DType) -> MultiHeadAttention {
    let in_f64 = parameters_in_f64(|vb| drop(MultiHeadAttention::new(config, vb).unwrap()));
    let weights = in_f64.vars().into_iter().map(|(name, var)| (name, var.to_dtype(dtype).unwrap()));
    let store = Parameters::restored(weights).unwrap();
    MultiHeadAttention::new(config, store.var_builder(dtype, &Device::Cpu)).unwrap()
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for (name, config) in causal_forms(DType::F64) {
        let parameters = parameters_in_f64(|vb| drop(MultiHeadAttention::new(&config, vb).unwrap()));
        let layer = MultiHeadAttention::new(&config, parameters.var_builder(DType::F64, &Device::Cpu)).unwrap();
        // Small, so that the scores are small too: the softmax of large ones is too steep for finite differences.
        let xs = Var::from_tensor(&(randn(6, &[2, 5, 24]) * 0.1).unwrap()).unwrap();
        let vars: Vec<_> = parameters.vars().into_iter().chain([(format!("{name}: input"), xs.clone())]).collect();
        check_gradients(&vars, || weighted_sum(&layer.forward(&xs)?));
    }
}

fn cross() -> MultiHeadAttentionConfig {
    MultiHeadAttentionConfig {
        memory_dim: Some(10),
        num_kv_heads: Some(3),
        head_dim: Some(5),
        value_dim: Some(2),
        bias: true,
        qk_norm_eps: Some(1e-5),
        mask: Mask::full(),
        ..MultiHeadAttentionConfig::new(7, 6)
    }
}

#[test]
fn gradients_of_cross_attention_reach_both_sequences() {
    let parameters = parameters_in_f64(|vb| drop(MultiHeadAttention::new(&cross(), vb).unwrap()));
    let layer = MultiHeadAttention::new(&cross(), parameters.var_builder(DType::F64, &Device::Cpu)).unwrap();
    let xs = Var::from_tensor(&randn(6, &[2, 3, 7])).unwrap();
    let memory = Var::from_tensor(&randn(7, &[2, 5, 10])).unwrap();
    let ends = [("input".to_string(), xs.clone()), ("memory".to_string(), memory.clone())];
    let vars: Vec<_> = parameters.vars().into_iter().chain(ends).collect();
    check_gradients(&vars, || weighted_sum(&layer.forward_cross(&xs, &memory)?));
}

/// By the formula, one number at a time.
#[test]
fn cross_attention_is_its_formula() {
    let config = MultiHeadAttentionConfig { qk_norm_eps: None, output_projection: false, ..cross() };
    let layer = layer_of(&config, DType::F64);
    let (b, t, s, h, g, d, e) = (2, 3, 5, 6, 3, 5, 2);
    let (xs, memory) = (randn(6, &[b, t, 7]), randn(7, &[b, s, 10]));
    let (q, k, v) = (
        values(&layer.q_proj().forward(&xs).unwrap()),
        values(&layer.k_proj().forward(&memory).unwrap()),
        values(&layer.v_proj().forward(&memory).unwrap()),
    );
    let mut expected = vec![0.0; b * t * h * e];
    for (i, y) in expected.iter_mut().enumerate() {
        let (b_i, t_i, h_i, e_i) = (i / (t * h * e), i / (h * e) % t, i / e % h, i % e);
        let g_i = h_i / (h / g);
        let score = |s_i: usize| -> f64 {
            let (q, k) = (&q[((b_i * t + t_i) * h + h_i) * d..][..d], &k[((b_i * s + s_i) * g + g_i) * d..][..d]);
            q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (d as f64).sqrt()
        };
        let total: f64 = (0..s).map(|s_i| score(s_i).exp()).sum();
        *y = (0..s).map(|s_i| score(s_i).exp() / total * v[((b_i * s + s_i) * g + g_i) * e + e_i]).sum();
    }
    let expected = Tensor::from_vec(expected, (b, t, h * e), &Device::Cpu).unwrap();
    assert_close("cross-attention", &layer.forward_cross(&xs, &memory).unwrap(), &expected, 1e-12);

    // Keys and values of the memory, computed once, serve each position separately.
    let keys_values = layer.keys_values(&memory).unwrap();
    let inputs = AttentionInputs { memory: Some(&keys_values), ..Default::default() };
    for t_i in 0..t {
        let one = layer.forward_with(&xs.narrow(1, t_i, 1).unwrap(), &inputs).unwrap();
        assert_close("a position alone", &one, &expected.narrow(1, t_i, 1).unwrap(), 1e-12);
    }
    let alone = layer.forward_cross(&xs.get(1).unwrap(), &memory.get(1).unwrap()).unwrap();
    assert_close("a sequence without a batch", &alone, &expected.get(1).unwrap(), 1e-12);
}

#[test]
fn the_weights_are_those_of_the_output_and_a_call_may_override_the_mask() {
    let xs = randn(3, &[2, 5, 24]);
    let keys = Tensor::new(&[[1u8, 1, 1, 0, 0], [1, 0, 1, 1, 1]], &Device::Cpu).unwrap();
    for (name, config) in causal_forms(DType::F64) {
        let layer = layer_of(&config, DType::F64);
        for mask in
            [None, Some(Mask { key_padding: Some(KeyPadding::Real(keys.clone())), ..Mask::full() }), Some(Mask::full())]
        {
            let inputs = AttentionInputs { mask: mask.as_ref(), ..Default::default() };
            let (ys, weights) = layer.forward_with_weights(&xs, &inputs).unwrap();
            assert_close(name, &layer.forward_with(&xs, &inputs).unwrap(), &ys, 1e-12);
            let sums = weights.sum(3).unwrap();
            assert_close(name, &sums, &sums.ones_like().unwrap(), 1e-12);
            let seen: Vec<bool> = values(&weights.narrow(1, 0, 1).unwrap()).iter().map(|w| *w > 0.0).collect();
            let expected = |b: usize, t: usize, s: usize| match (&mask, config.mask.band) {
                (Some(Mask { key_padding: Some(_), .. }), _) => values(&keys)[b * 5 + s] != 0.0,
                (Some(_), _) => true,
                (None, Band::Window(len)) => s <= t && t < s + len,
                (None, _) => s <= t,
            };
            let expected: Vec<bool> = (0..50).map(|i| expected(i / 25, i / 5 % 5, i % 5)).collect();
            assert_eq!(seen, expected, "{name} {mask:?}");
        }
    }
}

/// The options reach the operation, packed or not; the random numbers of dropout change with each call.
#[test]
fn a_soft_cap_and_dropout_are_those_of_the_operation() {
    let xs = randn(3, &[2, 5, 24]);
    let key = ops::RandomKey { seed: 1, step: 2, site: 3 };
    let dropout = ops::DropoutOptions { rate: 0.4, key, first_sequence: 0 };
    for num_kv_heads in [6, 2] {
        let config = MultiHeadAttentionConfig {
            softcap: Some(0.5),
            dropout: 0.4,
            mask: Mask::causal(),
            num_kv_heads: Some(num_kv_heads),
            output_projection: false,
            ..MultiHeadAttentionConfig::new(24, 6)
        };
        let layer = layer_of(&config, DType::F64);
        let heads = |projection: &Linear, n| projection.forward(&xs).unwrap().reshape((2, 5, n, 4)).unwrap();
        let q = heads(layer.q_proj(), 6);
        let (k, v) = (heads(layer.k_proj(), num_kv_heads), heads(layer.v_proj(), num_kv_heads));
        for dropout in [None, Some(dropout)] {
            let options = ops::AttentionOptions { softcap: Some(0.5), dropout, ..Default::default() };
            let expected = ops::attention(&q, &k, &v, &options).unwrap().reshape((2, 5, 24)).unwrap();
            let inputs = AttentionInputs { dropout, ..Default::default() };
            assert_close("options", &layer.forward_with(&xs, &inputs).unwrap(), &expected, 1e-12);
        }
        let evaluated = layer.forward(&xs).unwrap();
        assert_close("evaluation", &layer.forward_t(&xs, false).unwrap(), &evaluated, 0.0);
        let trained = [(); 2].map(|()| layer.forward_t(&xs, true).unwrap());
        assert!(max_difference(&trained[0], &evaluated) > 0.01);
        assert!(max_difference(&trained[0], &trained[1]) > 0.01);
        let uncapped = layer_of(&MultiHeadAttentionConfig { softcap: None, ..config }, DType::F64);
        assert!(max_difference(&uncapped.forward(&xs).unwrap(), &evaluated) > 0.01);
    }
}

#[test]
fn it_is_torchs() {
    /// Shape and values.
    type Flat = (Vec<usize>, Vec<f64>);
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch_attention.json");
    let cases: HashMap<String, HashMap<String, Flat>> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let keys = Tensor::new(&[[1u8, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 0]], &Device::Cpu).unwrap();
    for (name, memory_dim, mask) in [
        ("causal", None, Mask::causal()),
        ("cross", Some(10), Mask { key_padding: Some(KeyPadding::Real(keys)), ..Mask::full() }),
    ] {
        let tensor = |key: &str| {
            let (shape, values) = &cases[name][key];
            Tensor::from_vec(values.clone(), shape.as_slice(), &Device::Cpu).unwrap()
        };
        let names = cases[name].keys().filter(|key| key.contains("_proj."));
        let store = Parameters::restored(names.map(|key| (key.clone(), tensor(key)))).unwrap();
        let config = MultiHeadAttentionConfig {
            memory_dim,
            bias: true,
            output_bias: true,
            mask,
            ..MultiHeadAttentionConfig::new(12, 3)
        };
        let layer = MultiHeadAttention::new(&config, store.var_builder(DType::F64, &Device::Cpu)).unwrap();
        assert!(store.unread().is_empty());
        let xs = Var::from_tensor(&tensor("xs")).unwrap();
        let memory = memory_dim.map(|_| layer.keys_values(&tensor("memory")).unwrap());
        let inputs = AttentionInputs { memory: memory.as_ref(), ..Default::default() };
        let (ys, weights) = layer.forward_with_weights(&xs, &inputs).unwrap();
        assert_close(name, &ys, &tensor("ys"), 1e-12);
        assert_close(name, &weights, &tensor("weights"), 1e-12);
        let loss = (&ys * tensor("coefficients")).unwrap().sum_all().unwrap();
        assert_close(name, loss.backward().unwrap().get(&xs).unwrap(), &tensor("dxs"), 1e-11);
    }
}

#[test]
fn what_does_not_fit_together_is_named() {
    let vb = || Parameters::new(1).var_builder(DType::F32, &Device::Cpu);
    let refused = |config: MultiHeadAttentionConfig| MultiHeadAttention::new(&config, vb()).unwrap_err().to_string();
    let plain = MultiHeadAttentionConfig::new(24, 6);
    let with_rotary = MultiHeadAttentionConfig {
        rotary: Some(rotary(DType::F32, RotaryPairs::Halves)),
        ..MultiHeadAttentionConfig::new(24, 6)
    };
    let turning = MultiHeadAttention::new(&with_rotary, vb()).unwrap();
    let xs = Tensor::zeros((1, 3, 24), DType::F32, &Device::Cpu).unwrap();
    for (message, expected) in [
        (refused(MultiHeadAttentionConfig { dropout: 1.0, ..plain.clone() }), "dropout from 0 to below 1, got 1"),
        (
            refused(MultiHeadAttentionConfig::new(24, 5)),
            "num_heads to divide embed_dim, got num_heads 5 and embed_dim 24",
        ),
        (refused(MultiHeadAttentionConfig::new(24, 0)), "num_heads to divide embed_dim, got num_heads 0"),
        (
            refused(MultiHeadAttentionConfig { num_kv_heads: Some(4), ..plain.clone() }),
            "num_kv_heads to divide num_heads, got 4 and 6",
        ),
        (refused(MultiHeadAttentionConfig { value_dim: Some(0), ..plain.clone() }), "value_dim of at least 1, got 0"),
        (
            refused(MultiHeadAttentionConfig { head_dim: Some(usize::MAX / 3), ..plain.clone() }),
            "sizes that memory can hold, got 6 heads of 6148914691236517205",
        ),
        (
            refused(MultiHeadAttentionConfig { qk_norm_eps: Some(f64::NAN), ..plain.clone() }),
            "qk_norm_eps of at least 0, got NaN",
        ),
        (
            refused(MultiHeadAttentionConfig { memory_dim: Some(10), ..with_rotary }),
            "memory_dim to be embed_dim with rotary positions, got memory_dim 10 and embed_dim 24",
        ),
        (
            turning.forward_cross(&xs, &xs).unwrap_err().to_string(),
            "no rotary positions with a memory, which does not share them",
        ),
    ] {
        assert!(message.contains("multi-head-attention: expected ") && message.contains(expected), "{message}");
    }
    let cross = layer_of(&cross(), DType::F32);
    let message = cross.forward(&Tensor::zeros((1, 3, 7), DType::F32, &Device::Cpu).unwrap()).unwrap_err().to_string();
    assert!(message.contains("a memory of 10 channels, got 7"), "{message}");
}

#[test]
fn rotary_tables_extend_and_may_rotate_a_part() {
    let rotary = rotary(DType::F64, RotaryPairs::Halves);
    let xs = randn(1, &[1, 3, 2, HEAD_DIM]);
    for far in [u32::MAX as usize, usize::MAX] {
        let error = rotary.forward(&xs, far).unwrap_err().to_string();
        assert!(error.contains(&format!("rotary-embedding: expected positions below 4294967295, got 3 from {far}")));
    }

    let turned = |offset: usize| {
        let (cos, sin) = ops::rotary_tables(100.0, HEAD_DIM, offset, 3, &xs).unwrap();
        ops::rotary(&xs, &cos, &sin, RotaryPairs::Halves, ops::QkvLayout::Bthd).unwrap()
    };
    // The first 32 positions are computed in advance; then beyond them in both directions, and by a clone that shares
    // tables.
    let clone = rotary.clone();
    for offset in [5, 29, 30, 32, 90, 93, 94, 95, 40, 1_000_003, 2_000_000_000, 0] {
        for rotary in [&rotary, &clone] {
            let got = rotary.forward(&xs, offset).unwrap();
            assert_close(&format!("from position {offset} on"), &got, &turned(offset), 1e-14);
        }
    }
    let turned = turned(5);

    // Positions in any order, in advance and beyond; each row is that of its position.
    for positions in [[3u32, 0, 31, 4, 4, 7], [3, 1_000_003, 31, 4, 32, 7]] {
        let (b, t) = (2, 3);
        let xs = randn(9, &[b, t, 2, HEAD_DIM]);
        let ids = Tensor::new(&positions, &Device::Cpu).unwrap().reshape((b, t)).unwrap();
        let got = rotary.forward_at(&xs, &ids).unwrap();
        for (i, position) in positions.into_iter().enumerate() {
            let row = |x: &Tensor| x.narrow(0, i / t, 1).unwrap().narrow(1, i % t, 1).unwrap();
            let expected = rotary.forward(&row(&xs), position as usize).unwrap();
            assert_close(&format!("position {position}"), &row(&got), &expected, 0.0);
        }
        let error = rotary.forward_at(&xs, &ids.t().unwrap()).unwrap_err().to_string();
        assert!(error.contains("positions of shape [2, 3] and dtype U32, got [3, 2] and U32"), "{error}");
    }

    // Heads before positions, at positions from one on and of their own.
    let heads_first = RotaryEmbeddingConfig {
        theta: 100.0,
        layout: ops::QkvLayout::Bhtd,
        ..RotaryEmbeddingConfig::new(HEAD_DIM, 32)
    };
    let heads_first = RotaryEmbedding::new(&heads_first, DType::F64, &Device::Cpu).unwrap();
    let xs = randn(9, &[2, 3, 2, HEAD_DIM]);
    let ids = Tensor::new(&[[3u32, 0, 31], [4, 4, 7]], &Device::Cpu).unwrap();
    let back = |ys: Tensor| ys.transpose(1, 2).unwrap();
    let got = heads_first.forward(&back(xs.clone()), 5).unwrap();
    assert_close("heads first", &back(got), &rotary.forward(&xs, 5).unwrap(), 0.0);
    let got = heads_first.forward_at(&back(xs.clone()), &ids).unwrap();
    assert_close("heads first", &back(got), &rotary.forward_at(&xs, &ids).unwrap(), 0.0);
    let config = MultiHeadAttentionConfig { rotary: Some(heads_first), ..MultiHeadAttentionConfig::new(24, 6) };
    let error = MultiHeadAttention::new(&config, Parameters::new(1).var_builder(DType::F64, &Device::Cpu));
    assert!(error.unwrap_err().to_string().contains("expected rotary positions with the layout Bthd"));

    // Heads of 4 + 3 channels, the last of which are not rotated.
    let xs = randn(1, &[1, 3, 2, HEAD_DIM]);
    let wide = Tensor::cat(&[&xs, &randn(2, &[1, 3, 2, 3])], 3).unwrap();
    let partly = rotary.forward(&wide, 5).unwrap();
    assert_close("turned", &partly.narrow(3, 0, 4).unwrap(), &turned, 1e-14);
    assert_close("left", &partly.narrow(3, 4, 3).unwrap(), &wide.narrow(3, 4, 3).unwrap(), 0.0);

    for config in [
        RotaryEmbeddingConfig::new(5, 3),
        RotaryEmbeddingConfig::new(0, 3),
        RotaryEmbeddingConfig { theta: 0.0, ..RotaryEmbeddingConfig::new(4, 3) },
    ] {
        assert!(RotaryEmbedding::new(&config, DType::F32, &Device::Cpu).is_err(), "{config:?}");
    }
}
