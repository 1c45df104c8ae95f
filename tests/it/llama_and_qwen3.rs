//! Llama, Qwen3 and an untied GPT-2 against Hugging Face's own, in torch: see tests/fixtures/README.md.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_attention::model::{Architecture, CausalLm, ModelConfig, load_weights};
use candle_attention::nn::Parameters;
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::model::{named, saved};
use crate::support::{assert_close, max_difference, values};

const VARIANTS: [&str; 5] = ["llama_grouped", "llama_tied", "qwen3", "qwen3_untied", "gpt2_untied"];

#[derive(Deserialize)]
struct Oracle {
    inputs: Vec<Vec<u32>>,
    targets: Vec<Vec<u32>>,
    loss: f64,
    logits: Vec<Vec<Vec<f64>>>,
    f32_errors: F32Errors,
}

/// How far torch's f32 strays from its f64.
#[derive(Deserialize)]
struct F32Errors {
    loss: f64,
    logits: f64,
    gradients: f64,
}

fn folder(variant: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(variant)
}

fn weights(variant: &str, config: &ModelConfig, dtype: DType) -> BTreeMap<String, Tensor> {
    let weights = load_weights(&folder(variant).join("model.safetensors"), config, &Device::Cpu).unwrap();
    weights.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap())).collect()
}

fn model(variant: &str, dtype: DType) -> (CausalLm, Parameters) {
    let config = ModelConfig::open(&folder(variant)).unwrap();
    let parameters = Parameters::restored(weights(variant, &config, dtype)).unwrap();
    let model = CausalLm::new(&config, parameters.var_builder(dtype, &Device::Cpu)).unwrap();
    assert!(parameters.unread().is_empty());
    (model, parameters)
}

fn oracle(variant: &str) -> (Oracle, Tensor, Tensor, Tensor) {
    let oracle: Oracle = serde_json::from_slice(&std::fs::read(folder(variant).join("oracle.json")).unwrap()).unwrap();
    let tensor = |ids: &Vec<Vec<u32>>| Tensor::new(ids.clone(), &Device::Cpu).unwrap();
    let (inputs, targets) = (tensor(&oracle.inputs), tensor(&oracle.targets));
    let logits = Tensor::new(oracle.logits.clone(), &Device::Cpu).unwrap();
    (oracle, inputs, targets, logits)
}

/// In f64 the same up to rounding; in f32, within three times the error of torch's f32.
#[test]
fn logits_loss_and_gradients_are_hugging_faces() {
    for variant in VARIANTS {
        let (oracle, inputs, targets, logits) = oracle(variant);
        let errors = &oracle.f32_errors;
        let of_torch = [errors.logits, errors.loss, errors.gradients].map(|error| 3.0 * error);
        for (dtype, [of_logits, of_loss, of_gradients]) in [(DType::F64, [1e-12; 3]), (DType::F32, of_torch)] {
            let (model, parameters) = model(variant, dtype);
            let label = format!("{variant} in {dtype:?}");
            assert_close(&label, &model.forward(&inputs).unwrap(), &logits, of_logits);
            let loss = model.loss(&inputs, &targets).unwrap();
            assert!((values(&loss)[0] - oracle.loss).abs() <= of_loss, "{label}: {loss}, expected {}", oracle.loss);
            let gradients = loss.backward().unwrap();
            let gradient = |(name, var): (String, candle_core::Var)| (name, gradients.get(&var).unwrap().clone());
            let gradients = parameters.vars().into_iter().map(gradient).collect();
            let space = tempfile::tempdir().unwrap();
            let got = saved(model.config(), gradients, space.path());
            let expected = candle_core::safetensors::load(folder(variant).join("gradients.safetensors"), &Device::Cpu);
            let expected = expected.unwrap();
            assert_eq!(got.len(), expected.len());
            for (name, expected) in expected {
                assert_close(&format!("{label}, {name}"), &got[&name], &expected, of_gradients);
            }
        }
    }
}

#[test]
fn step_by_step_the_logits_are_hugging_faces() {
    for variant in VARIANTS {
        let (oracle, inputs, _, logits) = oracle(variant);
        let (model, _) = model(variant, DType::F32);
        let mut decoder = model.decoder();
        for (start, len) in [(0, 4), (4, 1), (5, 1), (6, 5)] {
            let got = decoder.next_token_logits(&inputs.narrow(1, start, len).unwrap()).unwrap();
            let expected = logits.narrow(1, start + len - 1, 1).unwrap().squeeze(1).unwrap();
            assert_close(variant, &got, &expected, 3.0 * oracle.f32_errors.logits);
        }
    }
}

/// Keys that only state a default, or follow from the others.
const UNUSED: [&str; 8] = [
    "pad_token_id",
    "pretraining_tp",
    "transformers_version",
    "use_cache",
    "sliding_window",
    "layer_types",
    "max_window_layers",
    "reorder_and_upcast_attn",
];

#[test]
fn names_on_disk_and_config_json_are_hugging_faces() {
    for variant in VARIANTS {
        let config = ModelConfig::open(&folder(variant)).unwrap();
        let space = tempfile::tempdir().unwrap();
        let ours = saved(&config, weights(variant, &config, DType::F32), space.path());
        let theirs = candle_core::safetensors::load(folder(variant).join("model.safetensors"), &Device::Cpu).unwrap();
        assert_eq!(ours.len(), theirs.len());
        for (name, tensor) in theirs {
            assert_eq!(max_difference(&ours[&name], &tensor), 0.0, "{name}");
        }
        let ours: Value = serde_json::from_str(&config.to_json().unwrap()).unwrap();
        let theirs: Value =
            serde_json::from_slice(&std::fs::read(folder(variant).join("config.json")).unwrap()).unwrap();
        for (name, value) in theirs.as_object().unwrap() {
            match ours.get(name) {
                // Without windows, any number will do.
                Some(_) if name == "max_window_layers" => {}
                Some(ours) => assert_eq!(ours, value, "{name}"),
                None => assert!(UNUSED.contains(&name.as_str()) || name.starts_with("summary_"), "{name} is missing"),
            }
        }
        assert_eq!(ModelConfig::from_json(ours.to_string().as_bytes()).unwrap(), config);
    }
}

/// The configuration of a fixture with other values, and without the keys whose value is `absent`.
fn changed(variant: &str, changes: &Value) -> candle_attention::Result<ModelConfig> {
    let mut json: Value = serde_json::from_slice(&std::fs::read(folder(variant).join("config.json")).unwrap()).unwrap();
    let keys = json.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::String(text) if text == "absent" => keys.remove(name),
            value => keys.insert(name.clone(), value.clone()),
        };
    }
    ModelConfig::from_json(json.to_string().as_bytes())
}

#[test]
fn keys_of_older_files_and_absent_ones_mean_what_they_mean_to_hugging_face() {
    let before = ModelConfig::open(&folder("llama_grouped")).unwrap();
    for old in [
        json!({ "rope_parameters": "absent", "rope_theta": 777, "rope_scaling": null }),
        json!({ "rope_parameters": "absent", "rope_theta": 777.0, "rope_scaling": { "type": "default" } }),
        json!({ "rope_parameters": { "rope_theta": 777.0 }, "rope_theta": 5.0 }),
        json!({ "head_dim": "absent", "mlp_bias": "absent", "hidden_act": "absent", "attention_bias": "absent" }),
        json!({ "rms_norm_eps": "absent", "tie_word_embeddings": "absent", "sliding_window": 5 }),
        json!({ "eos_token_id": 31, "head_dim": null }),
        json!({ "architectures": null, "dtype": null, "attention_dropout": null }),
        json!({ "architectures": 3, "dtype": ["any"], "bos_token_id": 31 }),
    ] {
        assert_eq!(changed("llama_grouped", &old).unwrap(), before, "{old}");
    }
    let of = |variant, changes| changed(variant, &changes).unwrap();
    assert_eq!(of("llama_grouped", json!({ "rope_parameters": "absent" })).rope_theta, 1e4);
    assert_eq!(of("llama_grouped", json!({ "num_key_value_heads": "absent" })).kv_heads(), 4);
    assert_eq!(of("llama_grouped", json!({ "num_key_value_heads": null })).kv_heads(), 4);
    // Each once, and only those that the vocabulary of 31 has.
    for (ids, expected) in [
        (json!([3, 5]), (Some(3), vec![5])),
        (json!([99, 7, 3, 7, 5]), (Some(7), vec![3, 5])),
        (json!([99]), (None, vec![])),
        (json!([]), (None, vec![])),
        (json!(null), (None, vec![])),
    ] {
        for variant in ["llama_grouped", "qwen3"] {
            let config = of(variant, json!({ "eos_token_id": ids }));
            assert_eq!((config.end_of_text_id, config.other_end_ids), expected);
        }
    }
    begin_and_end_of_absent_keys_are_hugging_faces();
    let qwen3 = of("qwen3", json!({ "head_dim": "absent", "num_key_value_heads": null, "layer_types": "absent" }));
    assert_eq!((qwen3.architecture, qwen3.head_channels(), qwen3.kv_heads()), (Architecture::Qwen3, 128, 6));
    let qwen3 = of("qwen3", json!({ "num_attention_heads": 64, "num_key_value_heads": "absent" }));
    assert_eq!(qwen3.kv_heads(), 32);
}

/// transformers 5.23: 1 and 2 for a llama, none for a qwen3, 50256 for a gpt2, here with a vocabulary of 31 or one that
/// has it.
fn begin_and_end_of_absent_keys_are_hugging_faces() {
    let ids = |variant, changes: Value| {
        let config = changed(variant, &changes).unwrap();
        (config.begin_of_text_id, config.end_of_text_id)
    };
    let absent = json!({ "bos_token_id": "absent", "eos_token_id": "absent" });
    let null = json!({ "bos_token_id": null, "eos_token_id": null });
    let large = json!({ "bos_token_id": "absent", "eos_token_id": "absent", "vocab_size": 50257 });
    assert_eq!(ids("llama_grouped", absent.clone()), (Some(1), Some(2)));
    assert_eq!(ids("llama_grouped", json!({ "bos_token_id": "absent", "eos_token_id": null })), (Some(1), None));
    assert_eq!(ids("gpt2_untied", large.clone()), (Some(50256), Some(50256)));
    for variant in ["qwen3", "gpt2_untied"] {
        assert_eq!(ids(variant, absent.clone()), (None, None));
    }
    assert_eq!(ids("qwen3", large), (None, None));
    for variant in VARIANTS {
        assert_eq!(ids(variant, null.clone()), (None, None));
        assert_eq!(ids(variant, json!({ "bos_token_id": 3, "eos_token_id": [5, 3] })), (Some(3), Some(5)));
    }
}

/// In place of those of `config.json`, each once and only if the vocabulary has them.
#[test]
fn ids_of_the_generation_config_end_a_text() {
    let space = tempfile::tempdir().unwrap();
    let ends = |config: Value, generation: &str| {
        let json = changed("llama_tied", &json!({ "eos_token_id": config })).unwrap().to_json().unwrap();
        std::fs::write(space.path().join("config.json"), json).unwrap();
        std::fs::write(space.path().join("generation_config.json"), generation).unwrap();
        ModelConfig::open(space.path()).map(|config| config.end_ids().collect::<Vec<_>>())
    };
    assert_eq!(ends(json!(5), r#"{ "eos_token_id": [7, 5, 31, 9, 7] }"#).unwrap(), [7, 5, 9]);
    assert_eq!(ends(json!([5, 6]), r#"{ "eos_token_id": 3, "do_sample": true }"#).unwrap(), [3]);
    assert_eq!(ends(json!(null), r#"{ "eos_token_id": 3 }"#).unwrap(), [3]);
    for nothing in ["{}", r#"{ "eos_token_id": null, "_from_model_config": true }"#] {
        assert_eq!(ends(json!([5, 6]), nothing).unwrap(), [5, 6]);
    }
    for (generation, expected) in
        [("[", "EOF"), (r#"{ "eos_token_id": -1 }"#, "expected eos_token_id to be null, an id or")]
    {
        let error = ends(json!(5), generation).unwrap_err().to_string();
        assert!(error.contains("generation_config.json: ") && error.contains(expected), "{error}");
    }
    std::fs::remove_file(space.path().join("generation_config.json")).unwrap();
    assert_eq!(ModelConfig::open(space.path()).unwrap().end_of_text_id, Some(5));
}

#[test]
fn what_is_not_computed_is_refused() {
    for (variant, changes, message) in [
        ("qwen3", json!({ "rope_parameters": { "full_attention": {} } }), "of all layers, got them by kind of layer"),
        ("qwen3", json!({ "rope_parameters": { "rope_theta": -1.0 } }), "rope_theta above 0, got -1"),
        ("qwen3", json!({ "model_type": "qwen3_moe" }), "gpt2, llama or qwen3, got qwen3_moe"),
        ("qwen3", json!({ "num_key_value_heads": 4 }), "num_kv_heads to divide num_heads, got 4 and 6"),
        ("qwen3", json!({ "head_dim": 7 }), "even head_dim for rotary positions, got 7"),
        ("qwen3", json!({ "hidden_size": -20 }), "hidden_size"),
        ("qwen3", json!({ "eos_token_id": -1 }), "expected eos_token_id to be null, an id or a list of ids"),
        (
            "gpt2_untied",
            json!({ "eos_token_id": [1, "2"] }),
            "expected eos_token_id to be null, an id or a list of ids",
        ),
        ("qwen3", json!({ "initializer_range": -0.1 }), "init_stdev from 0 to 1, got -0.1"),
    ] {
        let error = changed(variant, &changes).unwrap_err().to_string();
        assert!(error.contains(message), "{changes}: {error}");
    }
}

/// As in some files: without the prefix, with an obsolete table, and with a copy of the embedding as the tied head.
#[test]
fn weights_are_found_under_the_names_of_other_files() {
    for variant in ["llama_tied", "qwen3"] {
        let config = ModelConfig::open(&folder(variant)).unwrap();
        let theirs = candle_core::safetensors::load(folder(variant).join("model.safetensors"), &Device::Cpu).unwrap();
        let mut other: std::collections::HashMap<String, Tensor> =
            theirs.iter().map(|(name, tensor)| (name.replace("model.", ""), tensor.clone())).collect();
        other.insert("lm_head.weight".into(), theirs["model.embed_tokens.weight"].clone());
        other.insert(
            "layers.0.self_attn.rotary_emb.inv_freq".into(),
            Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap(),
        );
        let space = tempfile::tempdir().unwrap();
        let path = space.path().join("model.safetensors");
        candle_core::safetensors::save(&other, &path).unwrap();
        let back = load_weights(&path, &config, &Device::Cpu).unwrap();
        for (name, tensor) in weights(variant, &config, DType::F32) {
            assert_eq!(max_difference(&back[&name], &tensor), 0.0, "{name}");
        }
        other.insert(
            "layers.0.mlp.experts.gate_proj.weight".into(),
            Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap(),
        );
        other.remove("norm.weight");
        candle_core::safetensors::save(&other, &path).unwrap();
        let error = load_weights(&path, &config, &Device::Cpu).unwrap_err().to_string();
        for fault in ["model.norm.weight is missing", "layers.0.mlp.experts.gate_proj.weight has no place"] {
            assert!(error.contains(fault), "{error}");
        }
    }
}

#[test]
fn a_head_that_is_not_the_embedding_it_is_tied_to_is_refused() {
    let config = ModelConfig::open(&folder("llama_tied")).unwrap();
    let theirs = folder("llama_tied").join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&theirs, &Device::Cpu).unwrap();
    let embedding = tensors["model.embed_tokens.weight"].clone();
    let (v, c) = embedding.dims2().unwrap();
    let space = tempfile::tempdir().unwrap();
    let path = space.path().join("model.safetensors");
    let last = (embedding.narrow(0, v - 1, 1).unwrap() + 1e-3).unwrap();
    let other = Tensor::cat(&[embedding.narrow(0, 0, v - 1).unwrap(), last], 0).unwrap();
    for head in [other, Tensor::zeros((v + 1, c), DType::F32, &Device::Cpu).unwrap()] {
        tensors.insert("lm_head.weight".into(), head);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let error = load_weights(&path, &config, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("lm_head.weight is not the token embedding"), "{error}");
    }
}

#[test]
fn a_new_model_has_the_names_of_a_fixture() {
    // Guards against a fixture compared with itself: what is built here lists the same tensors.
    let config = ModelConfig::open(&folder("qwen3")).unwrap();
    let parameters = Parameters::new(1);
    CausalLm::new(&config, parameters.var_builder(DType::F32, &Device::Cpu)).unwrap();
    let space = tempfile::tempdir().unwrap();
    let ours = saved(&config, named(&parameters), space.path());
    let theirs = candle_core::safetensors::load(folder("qwen3").join("model.safetensors"), &Device::Cpu).unwrap();
    assert!(theirs.iter().all(|(name, tensor)| ours[name].dims() == tensor.dims() && ours.len() == theirs.len()));
}
