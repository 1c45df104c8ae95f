//! Attention maps against transformers' own attentions and hidden states (`tests/fixtures/attention_map.py`), and their files.

use std::path::{Path, PathBuf};

use candle_attention::inspect::AttentionMap;
use candle_attention::model::{CausalLm, ModelConfig, load_weights};
use candle_attention::nn::Parameters;
use candle_core::{DType, Device, Tensor};

use crate::support::{max_difference, values};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Of probabilities, in f32 against f64.
const TOLERANCE: f64 = 2e-6;

#[test]
fn maps_are_those_of_transformers() {
    let tensors = candle_core::safetensors::load(fixture("attention_map.safetensors"), &Device::Cpu).unwrap();
    for name in ["with_bias", "gpt2_untied", "llama_grouped", "qwen3"] {
        let config = ModelConfig::open(&fixture(name)).unwrap();
        let weights = load_weights(&fixture(name), &config, &Device::Cpu).unwrap();
        let vb = Parameters::restored(weights).unwrap().frozen(DType::F32, &Device::Cpu);
        let tensor = |part: &str| &tensors[&format!("{name}.{part}")];
        let ids: Vec<u32> = tensor("ids").to_dtype(DType::U32).unwrap().to_vec1().unwrap();
        let map = AttentionMap::new(&CausalLm::new(&config, vb).unwrap(), &ids).unwrap();
        let difference = max_difference(&map.weights, tensor("attention"));
        assert!(difference < TOLERANCE, "{name}: weights differ by {difference}");

        // At each depth and position: the most likely tokens in order, their probabilities, and the next token's.
        let lens = tensor("lens").to_vec3::<f64>().unwrap(); // (L + 1, T, V)
        let k = map.lens.ids.dim(2).unwrap();
        let (top, probabilities) = (values(&map.lens.ids), values(&map.lens.probabilities));
        for (at, expected) in lens.concat().iter().enumerate() {
            let mut sorted = expected.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            for i in 0..k {
                let (id, probability) = (top[at * k + i] as usize, probabilities[at * k + i]);
                let difference = (probability - sorted[i]).abs().max((probability - expected[id]).abs());
                assert!(difference < TOLERANCE, "{name}: place {at}, candidate {i}: off by {difference}");
            }
            let next = ids.get(at % ids.len() + 1).map_or(0.0, |id| expected[*id as usize]);
            assert!((values(&map.lens.next)[at] - next).abs() < TOLERANCE, "{name}: place {at}: next");
        }
    }
}

#[test]
fn a_map_comes_back_from_its_file_and_anything_else_is_refused() {
    let config = ModelConfig { context_len: 7, embed_dim: 12, num_heads: 3, num_layers: 2, ..ModelConfig::qwen3(11) };
    let model = CausalLm::new(&config, Parameters::new(3).frozen(DType::F32, &Device::Cpu)).unwrap();
    let map = AttentionMap::new(&model, &[4, 1, 4, 9, 10]).unwrap();
    let space = tempfile::tempdir().unwrap();
    let path = space.path().join("map.safetensors");
    map.save(&path, [("tokens", "[]".to_string())].into()).unwrap();
    let back = AttentionMap::open(&path).unwrap();
    assert_eq!((back.ids, values(&back.weights)), (map.ids, values(&map.weights)));
    assert_eq!(values(&back.lens.probabilities), values(&map.lens.probabilities));

    for (ids, expected) in [(&[][..], "1 to 7 tokens"), (&[1; 8][..], "got 8"), (&[11][..], "11")] {
        let error = AttentionMap::new(&model, ids).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, &Device::Cpu).unwrap();
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    for (name, tensor) in [
        ("attention", zeros(&[2, 3, 5, 4], DType::F32)),
        ("lens.next", zeros(&[3, 4], DType::F32)),
        ("lens.ids", zeros(&[3, 5, 8], DType::F32)),
        ("ids", zeros(&[1, 5], DType::U32)),
    ] {
        let kept = tensors.insert(name.to_string(), tensor).unwrap();
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let error = AttentionMap::open(&path).unwrap_err().to_string();
        assert!(error.contains("map.safetensors: expected"), "{name}: {error}");
        tensors.insert(name.to_string(), kept);
    }
    for damaged in ["", "{}", "not a map"] {
        std::fs::write(&path, damaged).unwrap();
        assert!(AttentionMap::open(&path).is_err());
    }
}

#[test]
fn a_map_that_is_not_finite_is_refused() {
    let config = ModelConfig { context_len: 7, embed_dim: 12, num_heads: 3, num_layers: 2, ..ModelConfig::qwen3(11) };
    let parameters = Parameters::new(3);
    let model = CausalLm::new(&config, parameters.frozen(DType::F32, &Device::Cpu)).unwrap();
    let space = tempfile::tempdir().unwrap();
    let path = space.path().join("map.safetensors");
    AttentionMap::new(&model, &[4, 1]).unwrap().save(&path, [].into()).unwrap();
    for (name, var) in parameters.vars() {
        let value = (var.as_tensor() * f64::NAN).unwrap();
        if name.starts_with("blocks.1.") {
            var.set(&value).unwrap();
        }
    }
    let error = AttentionMap::new(&model, &[4, 1]).unwrap_err().to_string();
    assert_eq!(error, "attention-map: the model gives numbers that are not finite");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let value = (&tensors["lens.next"] * f64::INFINITY).unwrap();
    tensors.insert("lens.next".into(), value);
    candle_core::safetensors::save(&tensors, &path).unwrap();
    assert!(AttentionMap::open(&path).unwrap_err().to_string().contains("numbers that are not finite"));
}
