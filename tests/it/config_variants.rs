//! Keys of a `config.json` that change the arithmetic, against transformers: see tests/fixtures/config_variants.py.

use std::path::{Path, PathBuf};

use candle_attention::model::{CausalLm, ForwardContext, ModelConfig, load_weights};
use candle_attention::nn::Parameters;
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::support::{assert_close, max_difference, values};

#[derive(Deserialize)]
struct Case {
    base: String,
    what: String,
    changes: Map<String, Value>,
    ids: Vec<u32>,
    loss: f64,
    logits: Vec<f64>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn cases() -> Vec<Case> {
    serde_json::from_slice(&std::fs::read(fixtures().join("config_variants.json")).unwrap()).unwrap()
}

/// The `config.json` of a fixture with changes, null for removing a key.
fn changed(base: &str, changes: &Map<String, Value>) -> Vec<u8> {
    let mut json: Map<String, Value> =
        serde_json::from_slice(&std::fs::read(fixtures().join(base).join("config.json")).unwrap()).unwrap();
    for (key, value) in changes {
        if value.is_null() { drop(json.remove(key)) } else { drop(json.insert(key.clone(), value.clone())) }
    }
    serde_json::to_vec(&json).unwrap()
}

fn config(base: &str, changes: Value) -> candle_attention::Result<ModelConfig> {
    ModelConfig::from_json(&changed(base, changes.as_object().unwrap()))
}

fn model(base: &str, config: &ModelConfig) -> CausalLm {
    let weights = load_weights(&fixtures().join(base), config, &Device::Cpu).unwrap();
    CausalLm::new(config, Parameters::restored(weights).unwrap().frozen(DType::F32, &Device::Cpu)).unwrap()
}

#[test]
fn losses_and_logits_are_transformers() {
    let cases = cases();
    assert!(cases.len() > 20);
    for Case { base, what, changes, ids, loss, logits } in cases {
        let label = format!("{base}: {what}");
        let config = ModelConfig::from_json(&changed(&base, &changes)).unwrap();
        let written = ModelConfig::from_json(config.to_json().unwrap().as_bytes()).unwrap();
        assert_eq!(written, config, "{label}");
        let (model, t) = (model(&base, &config), ids.len());
        let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = Tensor::new(logits, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        assert_close(&label, &model.next_token_logits(&ids).unwrap(), &logits, 1e-5);
        let got = model.loss(&ids.narrow(1, 0, t - 1).unwrap(), &ids.narrow(1, 1, t - 1).unwrap()).unwrap();
        assert!((values(&got)[0] - loss).abs() < 5e-6, "{label}: {got}, expected {loss}");
        // With a cache, piece by piece.
        let mut decoder = model.decoder();
        let last = [(0, 5), (5, 1), (6, 2), (8, t - 8)]
            .map(|(start, len)| decoder.next_token_logits(&ids.narrow(1, start, len).unwrap()).unwrap());
        assert_close(&label, &last[3], &logits, 1e-5);
    }
}

/// What changes the arithmetic and is not computed here is refused by its name.
#[test]
fn other_keys_that_change_the_arithmetic_are_refused() {
    for (base, changes, words) in [
        ("gpt2_untied", json!({ "add_cross_attention": true }), "add_cross_attention"),
        ("gpt2_untied", json!({ "activation_function": "mish" }), "mish"),
        ("gpt2_untied", json!({ "pruned_heads": { "0": [1] } }), "pruned_heads"),
        ("llama_tied", json!({ "is_causal": false }), "is_causal"),
        (
            "llama_tied",
            json!({ "quantization_config": { "quant_method": "gptq", "bits": 4 } }),
            "quantization_config (gptq)",
        ),
        ("llama_tied", json!({ "rope_parameters": { "rope_type": "longrope", "factor": 2.0 } }), "longrope"),
        ("llama_tied", json!({ "rope_parameters": { "rope_type": "linear" } }), "factor with rope_type linear"),
        ("llama_tied", json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor"),
        ("qwen3", json!({ "layer_types": ["full_attention"] }), "as many layer_types"),
        ("qwen3", json!({ "layer_types": ["chunked_attention", "full_attention"] }), "chunked_attention"),
        ("qwen3", json!({ "layer_types": ["sliding_attention", "full_attention"] }), "use_sliding_window true"),
        ("qwen3", json!({ "use_sliding_window": "yes" }), "use_sliding_window"),
        ("qwen3", json!({ "head_dim": "wide" }), "head_dim"),
        (
            "qwen3",
            json!({ "use_sliding_window": true, "sliding_window": 0, "layer_types": null, "max_window_layers": 0 }),
            "window",
        ),
        (
            "llama_tied",
            json!({ "rope_parameters": { "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0 } }),
            "high_freq_factor above low_freq_factor",
        ),
        ("llama_tied", json!({ "rope_parameters": { "rope_type": "linear", "factor": 0.0 } }), "factor above 0"),
    ] {
        let error = config(base, changes.clone()).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains('\n'), "{changes}: {error}");
    }
}

#[test]
fn keys_that_transformers_defaults_may_be_absent() {
    let of = |json: Value| ModelConfig::from_json(json.to_string().as_bytes()).unwrap();
    let gpt2 = of(json!({ "model_type": "gpt2" }));
    assert_eq!(
        (gpt2.vocab_size, gpt2.context_len, gpt2.embed_dim, gpt2.num_layers, gpt2.num_heads),
        (50257, 1024, 768, 12, 12)
    );
    let llama = of(json!({ "model_type": "llama", "num_attention_heads": null }));
    assert_eq!((llama.vocab_size, llama.context_len, llama.embed_dim, llama.hidden_dim), (32_000, 2048, 4096, 11_008));
    assert_eq!((llama.num_layers, llama.num_heads, llama.kv_heads()), (32, 32, 32));
    let qwen3 = of(json!({ "model_type": "qwen3" }));
    assert_eq!((qwen3.vocab_size, qwen3.context_len, qwen3.hidden_dim), (151_936, 32_768, 22_016));
    assert_eq!((qwen3.num_heads, qwen3.kv_heads(), qwen3.head_channels()), (32, 32, 128));
}

/// Without a length there is no window, as in transformers.
#[test]
fn a_window_of_null_is_none() {
    let changes = json!({ "use_sliding_window": true, "max_window_layers": 0, "layer_types": null });
    let mut json: Map<String, Value> = serde_json::from_slice(&changed("qwen3", changes.as_object().unwrap())).unwrap();
    for (window, expected) in [(Value::Null, None), (json!(5), Some(5))] {
        json.insert("sliding_window".into(), window);
        let config = ModelConfig::from_json(&serde_json::to_vec(&json).unwrap()).unwrap();
        assert_eq!(config.sliding_window.map(|window| window.len), expected);
    }
}

/// A window, narrower than the second document, and documents hide together: that document has the logits it has alone.
#[test]
fn documents_are_isolated_inside_a_window() {
    let config = config(
        "qwen3",
        json!({ "use_sliding_window": true, "sliding_window": 4, "max_window_layers": 1, "layer_types": null }),
    );
    let model = model("qwen3", &config.unwrap());
    let ids = Tensor::new(&[[3u32, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]], &Device::Cpu).unwrap();
    let numbers = Tensor::new(&[[7u32, 7, 7, 7, 7, 2, 2, 2, 2, 2, 2]], &Device::Cpu).unwrap();
    let context = ForwardContext { documents: Some(numbers), ..Default::default() };
    let second = |xs: &Tensor| xs.narrow(1, 5, 6).unwrap();
    let alone = model.forward(&second(&ids)).unwrap();
    let inside = second(&model.forward_with(&ids, &context).unwrap());
    let largest = values(&alone).iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    // The positions differ, so rotary angles round differently.
    assert_close("isolated", &inside, &alone, 1e-5 * largest);
    assert!(max_difference(&second(&model.forward(&ids).unwrap()), &alone) > 1e-3 * largest);
}
