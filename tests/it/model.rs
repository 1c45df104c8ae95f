//! The model: names and shapes in memory and on disk, gradients, and configurations.

use std::collections::BTreeMap;
use std::path::Path;

use candle_attention::model::{
    Activation, Architecture, CausalLm, DropoutRates, ModelConfig, ResidualInit, load_weights, save_weights,
};
use candle_attention::nn::Parameters;
use candle_core::{DType, Device, Tensor};

use crate::support::{assert_close, check_gradients, randn, values};

pub fn tiny() -> ModelConfig {
    ModelConfig { context_len: 7, embed_dim: 6, num_heads: 3, num_layers: 2, hidden_dim: 13, ..ModelConfig::gpt2(11) }
}

/// Every form of the model: tied and untied, with biases, with grouped heads, with a given head width.
pub fn forms() -> Vec<ModelConfig> {
    let tiny_of = |of: ModelConfig| {
        let ModelConfig { context_len, embed_dim, num_heads, num_layers, hidden_dim, .. } = tiny();
        ModelConfig { context_len, embed_dim, num_heads, num_layers, hidden_dim, ..of }
    };
    let (llama, qwen3) = (tiny_of(ModelConfig::llama(11)), tiny_of(ModelConfig::qwen3(11)));
    vec![
        tiny(),
        ModelConfig { bias: true, tie_embeddings: false, activation: Activation::GeluTanh, ..tiny() },
        llama.clone(),
        ModelConfig {
            num_kv_heads: Some(1),
            tie_embeddings: false,
            rope_theta: 5e5,
            bias: true,
            mlp_bias: true,
            ..llama
        },
        qwen3.clone(),
        ModelConfig { num_kv_heads: Some(1), head_dim: Some(4), bias: true, activation: Activation::GeluErf, ..qwen3 },
    ]
}

pub fn ids(rows: usize, t: usize, vocab_size: u32) -> Tensor {
    let ids: Vec<u32> = (0..(rows * t) as u32).map(|i| (i * i + 3 * i + 1) % vocab_size).collect();
    Tensor::from_vec(ids, (rows, t), &Device::Cpu).unwrap()
}

/// A model with random weights, including norms and biases.
pub fn random_model(config: &ModelConfig, dtype: DType) -> (CausalLm, Parameters) {
    let parameters = Parameters::new(3);
    let model = CausalLm::new(config, parameters.var_builder(dtype, &Device::Cpu)).unwrap();
    for (i, (_, var)) in parameters.vars().iter().enumerate() {
        let values = (randn(200 + i as u64, var.dims()) * 0.3).unwrap();
        var.set(&values.to_dtype(dtype).unwrap()).unwrap();
    }
    (model, parameters)
}

#[test]
fn gradients_of_the_model_are_those_of_finite_differences() {
    for config in forms() {
        let (model, parameters) = random_model(&config, DType::F64);
        let (inputs, targets) = (ids(2, 5, 11), ids(2, 5, 10));
        check_gradients(&parameters.vars(), || model.loss(&inputs, &targets));
    }
}

#[test]
fn every_parameter_has_a_finite_gradient_and_all_but_the_excused_a_non_zero_one() {
    for config in forms() {
        let (model, parameters) = random_model(&config, DType::F32);
        let loss = model.loss(&ids(3, 7, 11), &ids(3, 7, 10)).unwrap();
        let gradients = loss.backward().unwrap();
        let excused = config.zero_gradient_parameters();
        for (name, var) in parameters.vars() {
            let gradient = values(gradients.get(&var).unwrap_or_else(|| panic!("{name} has no gradient")));
            assert!(gradient.iter().all(|g| g.is_finite()), "{name}: {gradient:?}");
            let largest = gradient.iter().fold(0.0, |most: f64, g| most.max(g.abs()));
            let is_excused = excused.iter().any(|(excused, _)| *excused == name);
            // What would be zero in exact arithmetic is a rounding error.
            assert_eq!(largest < 1e-8, is_excused, "{name}: largest gradient {largest}");
        }
    }
}

#[test]
fn with_one_position_queries_and_keys_are_excused_and_silent() {
    for config in forms() {
        let config = ModelConfig { context_len: 1, ..config };
        let (model, parameters) = random_model(&config, DType::F64);
        let gradients = model.loss(&ids(3, 1, 11), &ids(3, 1, 10)).unwrap().backward().unwrap();
        let excused: Vec<String> = config.zero_gradient_parameters().into_iter().map(|(name, _)| name).collect();
        for (name, var) in parameters.vars() {
            let largest = values(gradients.get(&var).unwrap()).iter().fold(0.0, |most: f64, g| most.max(g.abs()));
            assert_eq!(largest < 1e-15, excused.contains(&name), "{name}: largest gradient {largest}");
        }
    }
}

#[test]
fn the_listed_parameters_are_those_of_the_model() {
    for config in forms() {
        let (_, parameters) = random_model(&config, DType::F32);
        let mut listed = config.parameters();
        listed.sort();
        let built: Vec<_> = parameters.vars().into_iter().map(|(name, var)| (name, var.dims().to_vec())).collect();
        assert_eq!(listed, built);
        assert_eq!(parameters.count(), config.parameter_count());
    }
}

#[test]
fn names_and_shapes_here_and_on_disk() {
    let config = ModelConfig { num_layers: 1, ..tiny() };
    let (_, parameters) = random_model(&config, DType::F32);
    let here: Vec<_> = config.parameters().into_iter().map(|(name, shape)| format!("{name} {shape:?}")).collect();
    assert_eq!(
        here,
        [
            "token_embedding.weight [11, 6]",
            "position_embedding.weight [7, 6]",
            "blocks.0.attention_norm.weight [6]",
            "blocks.0.attention.q_proj.weight [6, 6]",
            "blocks.0.attention.k_proj.weight [6, 6]",
            "blocks.0.attention.v_proj.weight [6, 6]",
            "blocks.0.attention.o_proj.weight [6, 6]",
            "blocks.0.mlp_norm.weight [6]",
            "blocks.0.mlp.up_proj.weight [13, 6]",
            "blocks.0.mlp.down_proj.weight [6, 13]",
            "norm.weight [6]",
        ]
    );
    let folder = tempfile::tempdir().unwrap();
    let on_disk = saved(&config, named(&parameters), folder.path());
    let on_disk: Vec<_> = on_disk.iter().map(|(name, tensor)| format!("{name} {:?}", tensor.dims())).collect();
    assert_eq!(
        on_disk,
        [
            "transformer.h.0.attn.c_attn.bias [18]",
            "transformer.h.0.attn.c_attn.weight [6, 18]",
            "transformer.h.0.attn.c_proj.bias [6]",
            "transformer.h.0.attn.c_proj.weight [6, 6]",
            "transformer.h.0.ln_1.bias [6]",
            "transformer.h.0.ln_1.weight [6]",
            "transformer.h.0.ln_2.bias [6]",
            "transformer.h.0.ln_2.weight [6]",
            "transformer.h.0.mlp.c_fc.bias [13]",
            "transformer.h.0.mlp.c_fc.weight [6, 13]",
            "transformer.h.0.mlp.c_proj.bias [6]",
            "transformer.h.0.mlp.c_proj.weight [13, 6]",
            "transformer.ln_f.bias [6]",
            "transformer.ln_f.weight [6]",
            "transformer.wpe.weight [7, 6]",
            "transformer.wte.weight [11, 6]",
        ]
    );
}

#[test]
fn weights_come_back_bit_for_bit() {
    for config in forms() {
        let (_, parameters) = random_model(&config, DType::F32);
        let folder = tempfile::tempdir().unwrap();
        saved(&config, named(&parameters), folder.path());
        let back = load_weights(&folder.path().join("model.safetensors"), &config, &Device::Cpu).unwrap();
        for (name, tensor) in named(&parameters) {
            assert_eq!(values(&tensor), values(&back[&name]), "{name}");
        }
        assert_eq!(back.len(), parameters.vars().len());
    }
}

#[test]
fn a_file_that_does_not_fit_is_refused_with_all_its_faults() {
    let config = ModelConfig { num_layers: 1, ..tiny() };
    let (_, parameters) = random_model(&config, DType::F32);
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = saved(&config, named(&parameters), folder.path());
    tensors.remove("transformer.ln_f.weight").unwrap();
    tensors.insert("transformer.wpe.weight".into(), Tensor::zeros((5, 6), DType::F32, &Device::Cpu).unwrap());
    tensors.insert("transformer.h.1.ln_1.weight".into(), Tensor::zeros(6, DType::F32, &Device::Cpu).unwrap());
    tensors.insert("transformer.ln_f.bias".into(), Tensor::ones(6, DType::F32, &Device::Cpu).unwrap());
    let path = folder.path().join("broken.safetensors");
    candle_core::safetensors::save(&tensors.into_iter().collect(), &path).unwrap();
    let message = load_weights(&path, &config, &Device::Cpu).unwrap_err().to_string();
    for fault in [
        "transformer.ln_f.weight is missing",
        "transformer.wpe.weight: expected shape [7, 6], got [5, 6]",
        "transformer.h.1.ln_1.weight has no place in the model",
        "transformer.ln_f.bias: expected zeros",
    ] {
        assert!(message.contains(fault), "{message}");
    }
}

#[test]
fn a_norm_eps_that_f32_does_not_hold_is_refused() {
    for norm_eps in [0.0, -1e-5, f64::NAN, f64::INFINITY, 1e300, 1e-60] {
        let error = ModelConfig { norm_eps, ..tiny() }.validate().unwrap_err().to_string();
        assert!(error.contains("expected norm_eps above 0"), "{norm_eps}: {error}");
    }
    ModelConfig { norm_eps: 1e-12, ..tiny() }.validate().unwrap();
}

#[test]
fn changing_a_token_leaves_the_logits_before_it_as_they_were() {
    for config in forms() {
        let (model, _) = random_model(&config, DType::F32);
        let before = ids(2, 7, 11);
        let changed = Tensor::cat(&[before.narrow(1, 0, 4).unwrap(), ids(2, 3, 5)], 1).unwrap();
        let of = |ids: &Tensor| model.forward(ids).unwrap();
        let until = |logits: Tensor, t| values(&logits.narrow(1, 0, t).unwrap());
        assert_eq!(until(of(&before), 4), until(of(&changed), 4));
        assert_ne!(until(of(&before), 5), until(of(&changed), 5));
        let last = of(&before).narrow(1, 6, 1).unwrap().squeeze(1).unwrap();
        assert_close("last", &model.next_token_logits(&before).unwrap(), &last, 1e-6);
    }
}

#[test]
fn a_new_model_gives_all_tokens_about_the_same_probability() {
    for config in Architecture::ALL.map(|architecture| ModelConfig::of(architecture, 65)) {
        let model = CausalLm::new(&config, Parameters::new(1).var_builder(DType::F32, &Device::Cpu)).unwrap();
        let loss = model.loss(&ids(3, 64, 65), &ids(3, 64, 61)).unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - 65f32.ln()).abs() < 0.1, "{loss}");
    }
}

#[test]
fn initial_weights_have_the_spread_of_gpt2_or_add_nothing_at_first() {
    for (form, residual_init, residual) in [
        (ModelConfig::gpt2(101), ResidualInit::Scaled, 0.02 / 6f64.sqrt()),
        (ModelConfig::qwen3(101), ResidualInit::Scaled, 0.02 / 6f64.sqrt()),
        (ModelConfig::gpt2(101), ResidualInit::Zero, 0.0),
        (ModelConfig::llama(101), ResidualInit::Zero, 0.0),
    ] {
        let config = ModelConfig { embed_dim: 96, num_layers: 3, hidden_dim: 384, residual_init, ..form };
        let parameters = Parameters::new(4);
        let model = CausalLm::new(&config, parameters.var_builder(DType::F32, &Device::Cpu)).unwrap();
        for (name, var) in parameters.vars().into_iter().filter(|(_, var)| var.rank() == 2) {
            let values = values(&var);
            let spread = (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt();
            let is_residual = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
            let expected = if is_residual { residual } else { 0.02 };
            assert!((spread - expected).abs() <= 0.05 * expected, "{name}: {spread}, expected {expected}");
        }
        if residual_init == ResidualInit::Zero {
            // The blocks still have no effect: what follows a token depends only on it and its position.
            let logits = model.forward(&Tensor::new(&[[1u32, 2, 3], [4, 2, 3]], &Device::Cpu).unwrap()).unwrap();
            let [one, other] = [0, 1].map(|row| values(&logits.narrow(0, row, 1).unwrap().narrow(1, 1, 2).unwrap()));
            assert_eq!(one, other);
        }
    }
}

#[test]
fn sizes_and_ids_out_of_range_are_refused() {
    let (model, _) = random_model(&tiny(), DType::F32);
    assert!(model.forward(&ids(1, 8, 11)).unwrap_err().to_string().contains("expected 1 to 7 positions, got 8"));
    assert!(model.forward(&(ids(1, 3, 11) + 11.0).unwrap()).is_err());
    let refusal = |config: ModelConfig| config.validate().unwrap_err().to_string();
    assert!(refusal(ModelConfig { num_heads: 4, ..tiny() }).contains("num_heads 4 and embed_dim 6"));
    assert!(refusal(ModelConfig { hidden_dim: 0, ..tiny() }).contains("hidden_dim"));
    assert!(refusal(ModelConfig { num_layers: usize::MAX, ..tiny() }).contains("num_layers"));
    let of = |form: ModelConfig| ModelConfig { embed_dim: 6, num_heads: 3, ..form };
    let (llama, qwen3) = (of(ModelConfig::llama(11)), of(ModelConfig::qwen3(11)));
    assert!(ModelConfig { num_heads: 4, head_dim: Some(2), ..qwen3.clone() }.validate().is_ok());
    for (config, message) in [
        (ModelConfig { num_kv_heads: Some(2), ..llama.clone() }, "num_kv_heads to divide num_heads, got 2 and 3"),
        (ModelConfig { num_kv_heads: Some(0), ..llama.clone() }, "num_kv_heads between 1 and"),
        (ModelConfig { num_heads: 2, ..llama.clone() }, "an even head_dim for rotary positions, got 3"),
        (ModelConfig { num_heads: 4, head_dim: Some(2), ..llama.clone() }, "num_heads 4 and embed_dim 6"),
        (ModelConfig { head_dim: Some(1 << 23), ..qwen3.clone() }, "got 3 of 8388608"),
        (ModelConfig { rope_theta: 0.0, ..llama }, "rope_theta above 0, got 0"),
        (ModelConfig { mlp_bias: true, ..qwen3 }, "mlp_bias only with llama, got it with qwen3"),
        (
            ModelConfig { num_kv_heads: Some(1), ..tiny() },
            "3 heads of keys and values of 2 channels in gpt2, got 1 of 2",
        ),
        (ModelConfig { head_dim: Some(4), ..tiny() }, "got 3 of 4"),
        (ModelConfig { init_stdev: f64::NAN, ..tiny() }, "init_stdev from 0 to 1, got NaN"),
    ] {
        let error = refusal(config);
        assert!(error.contains(message), "{error}");
    }
    assert!(refusal(ModelConfig { end_of_text_id: Some(11), ..tiny() }).contains("end-of-text"));
    let with_others = ModelConfig { end_of_text_id: Some(1), other_end_ids: vec![2, 11], ..tiny() };
    assert!(refusal(with_others.clone()).contains("expected an end-of-text id below vocab_size 11, got 11"));
    let alone = ModelConfig { end_of_text_id: None, other_end_ids: vec![2], ..with_others };
    assert!(refusal(alone).contains("only with an end_of_text_id, got them alone"));
    let begin = ModelConfig { begin_of_text_id: Some(11), ..tiny() };
    assert!(refusal(begin).contains("expected a begin-of-text id below vocab_size 11, got 11"));
}

#[test]
fn config_json_comes_back_and_refuses_what_is_not_computed() {
    for form in forms() {
        let config =
            ModelConfig { dropout: DropoutRates { embedding: 0.1, attention: 0.2, residual: 0.3 }, ..form.clone() };
        assert_eq!(ModelConfig::from_json(config.to_json().unwrap().as_bytes()).unwrap(), config);
        let config = ModelConfig {
            begin_of_text_id: Some(4),
            end_of_text_id: Some(10),
            init_stdev: 0.3,
            norm_eps: 1e-3,
            ..form
        };
        assert_eq!(ModelConfig::from_json(config.to_json().unwrap().as_bytes()).unwrap(), config);
        let config = ModelConfig { other_end_ids: vec![3, 0], ..config };
        let (json, generation) = (config.to_json().unwrap(), config.generation_json().unwrap());
        assert_eq!(ModelConfig::from_json(json.as_bytes()).unwrap(), config);
        for json in [json, generation] {
            let json: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!((&json["eos_token_id"], &json["bos_token_id"]), (&[10, 3, 0][..].into(), &4.into()));
        }
    }
    let json = tiny().to_json().unwrap();
    for (from, to, message) in [
        ("\"gpt2\"", "\"bert\"", "model_type gpt2, llama or qwen3, got bert"),
        ("\"gelu\"", "\"wobble\"", "wobble"),
        ("\"add_cross_attention\": false", "\"add_cross_attention\": true", "add_cross_attention"),
        ("\"n_embd\": 6", "\"n_embd\": -6", "-6"),
        ("{", "", "expected"),
    ] {
        let error = ModelConfig::from_json(json.replacen(from, to, 1).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

/// The values of all parameters, by name.
pub fn named(parameters: &Parameters) -> BTreeMap<String, Tensor> {
    parameters.vars().into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect()
}

/// Saves tensors in Hugging Face's layout and reads them back by the names on disk.
pub fn saved(config: &ModelConfig, tensors: BTreeMap<String, Tensor>, folder: &Path) -> BTreeMap<String, Tensor> {
    let path = folder.join("model.safetensors");
    save_weights(&path, config, &tensors).unwrap();
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}
