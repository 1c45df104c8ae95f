//! Attention layers of other libraries: outputs, and gradients of the input and of each parameter.

use std::collections::HashMap;

use candle_attention::nn::{
    MultiHeadAttention, MultiHeadAttentionConfig, Parameters, RotaryEmbedding, RotaryEmbeddingConfig, mapping,
};
use candle_attention::ops::Mask;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::VarMap;

use crate::support::{assert_close, randn};

type Tensors = HashMap<String, Tensor>;

fn fixture() -> Tensors {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/attention_mappings.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// The tensors whose names begin with `prefix`, without it.
fn below(all: &Tensors, prefix: &str) -> Tensors {
    let named = all.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_string(), tensor.clone())));
    named.collect()
}

fn rotary(theta: f64) -> Option<RotaryEmbedding> {
    let config = RotaryEmbeddingConfig { theta, ..RotaryEmbeddingConfig::new(4, 5) };
    Some(RotaryEmbedding::new(&config, DType::F64, &Device::Cpu).unwrap())
}

type Mapping = fn(&Tensors, &str) -> Result<std::collections::BTreeMap<String, Tensor>>;

/// Each case of the fixture, the function that maps it, and the configuration that its row of the page describes.
fn cases() -> [(&'static str, Mapping, MultiHeadAttentionConfig); 5] {
    let causal = |c, h| MultiHeadAttentionConfig { mask: Mask::causal(), ..MultiHeadAttentionConfig::new(c, h) };
    let with_biases = |config| MultiHeadAttentionConfig { bias: true, output_bias: true, ..config };
    let llama = MultiHeadAttentionConfig {
        num_kv_heads: Some(2),
        head_dim: Some(4),
        rotary: rotary(777.0),
        ..with_biases(causal(18, 6))
    };
    let qwen3 = MultiHeadAttentionConfig {
        num_kv_heads: Some(3),
        head_dim: Some(4),
        rotary: rotary(1e6),
        qk_norm_eps: Some(1e-6),
        ..causal(13, 6)
    };
    let cross = MultiHeadAttentionConfig {
        memory_dim: Some(11),
        mask: Mask::full(),
        ..with_biases(MultiHeadAttentionConfig::new(15, 3))
    };
    [
        ("torch", mapping::torch, with_biases(causal(15, 3))),
        ("torch_cross", mapping::torch, cross),
        ("gpt2", mapping::gpt2, with_biases(causal(15, 3))),
        ("llama", mapping::llama, llama),
        ("qwen3", mapping::llama, qwen3),
    ]
}

#[test]
fn outputs_and_gradients_are_those_of_the_other_library() {
    let fixture = fixture();
    for (case, map, config) in cases() {
        let all = below(&fixture, &format!("{case}/"));
        let theirs = below(&all, "parameters/");
        // In a file with other tensors, and without a prefix.
        let mut file: Tensors = theirs.iter().map(|(name, x)| (format!("layers.0.{name}"), x.clone())).collect();
        file.insert("layers.01.c_attn.bias".into(), randn(1, &[2]));
        let parameters = Parameters::restored(map(&file, "layers.0").unwrap()).unwrap();
        assert_eq!(map(&theirs, "").unwrap().len(), parameters.vars().len());
        let layer = MultiHeadAttention::new(&config, parameters.var_builder(DType::F64, &Device::Cpu)).unwrap();
        assert!(parameters.unread().is_empty(), "{case}: {:?}", parameters.unread());

        let xs = Var::from_tensor(&all["xs"]).unwrap();
        let memory = all.get("memory").map(|memory| Var::from_tensor(memory).unwrap());
        let ys = match &memory {
            Some(memory) => layer.forward_cross(&xs, memory).unwrap(),
            None => layer.forward(&xs).unwrap(),
        };
        assert_close(case, &ys, &all["ys"], 1e-12);
        let gradients = (ys * &all["coefficients"]).unwrap().sum_all().unwrap().backward().unwrap();
        assert_close(case, gradients.get(&xs).unwrap(), &all["dxs"], 1e-11);
        if let Some(memory) = &memory {
            assert_close(case, gradients.get(memory).unwrap(), &all["dmemory"], 1e-11);
        }
        // A gradient has the layout of its parameter.
        hold_gradients(case, &parameters, &gradients, &map(&below(&all, "gradients/"), "").unwrap());
    }
}

fn hold_gradients(
    case: &str,
    parameters: &Parameters,
    got: &GradStore,
    expected: &std::collections::BTreeMap<String, Tensor>,
) {
    assert_eq!(parameters.vars().len(), expected.len());
    for (name, var) in parameters.vars() {
        assert_close(&format!("{case}: {name}"), got.get(&var).unwrap(), &expected[&name], 1e-11);
    }
}

/// Attention as candle's users write it, on four of candle-nn's layers.
#[test]
fn it_is_attention_written_with_candle_nn() {
    let names = ["query", "key", "value", "output.dense"];
    let (b, t, h, d, c) = (2, 5, 3, 4, 12);
    let theirs = VarMap::new();
    let vb = candle_nn::VarBuilder::from_varmap(&theirs, DType::F64, &Device::Cpu).pp("attention");
    let [query, key, value, dense] = names.map(|name| candle_nn::linear(c, c, vb.pp(name)).unwrap());
    for (seed, (_, var)) in (10..).zip(sorted(&theirs)) {
        var.set(&randn(seed, var.dims())).unwrap();
    }
    let xs = Var::from_tensor(&randn(3, &[b, t, c])).unwrap();
    let heads = |layer: &candle_nn::Linear| {
        layer.forward(&xs).unwrap().reshape((b, t, h, d)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap()
    };
    let scores = (heads(&query).matmul(&heads(&key).t().unwrap().contiguous().unwrap()).unwrap() * 0.5).unwrap();
    let weights = candle_nn::ops::softmax(&scores, 3).unwrap();
    let merged = weights.matmul(&heads(&value)).unwrap().transpose(1, 2).unwrap().reshape((b, t, c)).unwrap();
    let expected = dense.forward(&merged).unwrap();

    let tensors: Tensors = sorted(&theirs).into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect();
    let map = |tensors: &Tensors, prefix: &str| mapping::projections(tensors, prefix, names).unwrap();
    let parameters = Parameters::restored(map(&tensors, "attention")).unwrap();
    let config = MultiHeadAttentionConfig {
        bias: true,
        output_bias: true,
        mask: Mask::full(),
        ..MultiHeadAttentionConfig::new(c, h)
    };
    let layer = MultiHeadAttention::new(&config, parameters.var_builder(DType::F64, &Device::Cpu)).unwrap();
    let ys = layer.forward(&xs).unwrap();
    assert_close("output", &ys, &expected, 1e-11);

    let backward = |ys: Tensor| (&ys * randn(4, ys.dims())).unwrap().sum_all().unwrap().backward().unwrap();
    let (got, expected) = (backward(ys), backward(expected));
    assert_close("input", got.get(&xs).unwrap(), expected.get(&xs).unwrap(), 1e-10);
    let gradients: Tensors =
        sorted(&theirs).into_iter().map(|(name, var)| (name, expected.get(&var).unwrap().clone())).collect();
    hold_gradients("candle-nn", &parameters, &got, &map(&gradients, "attention"));
}

fn sorted(vars: &VarMap) -> std::collections::BTreeMap<String, Var> {
    vars.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), var.clone())).collect()
}

#[test]
fn what_has_no_place_is_named() {
    let one = |name: &str, shape: &[usize]| Tensors::from([(name.to_string(), randn(1, shape))]);
    let error = |result: Result<_>| result.map(|_: std::collections::BTreeMap<_, _>| ()).unwrap_err().to_string();
    for (message, expected) in [
        (
            error(mapping::torch(&one("self_attn.bias_k", &[1, 1, 4]), "self_attn")),
            "got self_attn.bias_k, which has no",
        ),
        (error(mapping::llama(&one("h.q_proj.weight", &[4, 4]), "g")), "whose names begin with \"g\", got none"),
        (error(mapping::gpt2(&one("c_attn.weight", &[4, 4]), "")), "3 layers of equal size in one tensor, got 4"),
        (error(mapping::gpt2(&one("c_proj.weight", &[4]), "")), "unexpected rank"),
    ] {
        assert!(message.contains(expected), "{message}");
    }
    // Tables of old files.
    let mut old = one("c_attn.bias", &[12]);
    old.insert("bias".into(), randn(1, &[1, 1, 5, 5]));
    old.insert("masked_bias".into(), randn(1, &[]));
    assert_eq!(mapping::gpt2(&old, "").unwrap().len(), 3);
}
