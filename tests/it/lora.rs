//! Adapters (LoRA) against PEFT's own, and runs that train them: see tests/fixtures/README.md.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_attention::Result;
use candle_attention::generate::Pipeline;
use candle_attention::model::{Architecture, CausalLm, DropoutRates, ModelConfig, load_weights, save_weights};
use candle_attention::nn::{LoraConfig, LoraLinear, MultiHeadAttention, MultiHeadAttentionConfig, Parameters, linear};
use candle_attention::optim::Schedule;
use candle_attention::text::{Batch, Tokenizer};
use candle_attention::train::{FrozenBase, Outcome, RunDir, TrainOptions, Trainer, resume};
use candle_core::{DType, Device, Module, Tensor};
use serde::Deserialize;
use serde_json::Value;

use crate::support::{assert_close, values};
use crate::training::{self, data, moments, run_in, weights};

const VARIANTS: [&str; 3] = ["gpt2", "llama", "qwen3"];

#[derive(Deserialize)]
struct Oracle {
    ids: Vec<Vec<u32>>,
    logits: Vec<Vec<Vec<f64>>>,
    optimizer: Recipe,
    batches: Vec<Ids>,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    f32_errors: F32Errors,
}

#[derive(Deserialize)]
struct Recipe {
    lr: f64,
    beta1: f64,
    beta2: f64,
    weight_decay: f64,
    clip: f64,
}

#[derive(Deserialize)]
struct Ids {
    inputs: Vec<Vec<u32>>,
    targets: Vec<Vec<u32>>,
}

/// How far torch's f32 strays from its f64.
#[derive(Deserialize)]
struct F32Errors {
    logits: f64,
    losses: f64,
    grad_norms: f64,
    #[serde(rename = "final")]
    last: f64,
}

fn fixture(variant: &str) -> (PathBuf, Oracle) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lora").join(variant);
    let oracle = fs::read(folder.join("oracle.json")).unwrap();
    (folder, serde_json::from_slice(&oracle).unwrap())
}

fn open(folder: &Path) -> Result<CausalLm> {
    let config = ModelConfig::open(folder)?;
    let weights = load_weights(folder, &config, &Device::Cpu)?;
    Ok(CausalLm::new(&config, Parameters::restored(weights)?.frozen(DType::F32, &Device::Cpu))?)
}

/// Ranks and alphas by pattern, rsLoRA, layers without an adapter.
#[test]
fn a_base_with_pefts_adapter_merged_has_pefts_logits() {
    for variant in VARIANTS {
        let (folder, oracle) = fixture(variant);
        let ids = Tensor::new(oracle.ids, &Device::Cpu).unwrap();
        let expected = Tensor::new(oracle.logits, &Device::Cpu).unwrap();
        let tolerance = 3.0 * oracle.f32_errors.logits.max(1e-6);
        let got = open(&folder.join("adapter")).unwrap().forward(&ids).unwrap();
        assert_close(variant, &got, &expected, tolerance);
        let base = open(&folder.join("base")).unwrap().forward(&ids).unwrap();
        let difference = (base.to_dtype(DType::F64).unwrap() - expected).unwrap();
        assert!(values(&difference).iter().any(|x| x.abs() > 0.1), "{variant}: the adapter has no effect");
    }
}

/// A name in PEFT's file as the model has it.
fn in_the_model(name: &str) -> String {
    let pairs = [
        ("base_model.model.transformer.h.", "blocks."),
        ("base_model.model.model.layers.", "blocks."),
        ("attn.c_attn", "attention.qkv_proj"),
        ("attn.c_proj", "attention.o_proj"),
        ("mlp.c_fc", "mlp.up_proj"),
        ("mlp.c_proj", "mlp.down_proj"),
        ("self_attn", "attention"),
    ];
    pairs.into_iter().fold(name.to_string(), |name, (from, to)| name.replace(from, to))
}

/// torch and PEFT train all linear layers; the file at the root of the run is then PEFT's.
#[test]
fn five_steps_of_training_are_those_of_torch_and_peft() {
    for variant in VARIANTS {
        let (folder, oracle) = fixture(variant);
        let Recipe { lr, beta1, beta2, weight_decay, clip } = oracle.optimizer;
        let options = TrainOptions {
            steps: 5,
            batch: 4,
            shards: 2,
            lr,
            schedule: Schedule::Constant,
            warmup: 0.0,
            beta1,
            beta2,
            weight_decay,
            clip,
            ..Default::default()
        };
        let config = ModelConfig::open(&folder.join("base")).unwrap();
        let mut trainer = adapters(&folder.join("base"), &config, &options, LoraConfig::new(3));
        for (name, a) in candle_core::safetensors::load(folder.join("start.safetensors"), &Device::Cpu).unwrap() {
            training::set(&trainer, &in_the_model(&name), &a);
        }
        for (step, ids) in oracle.batches.iter().enumerate() {
            let [inputs, targets] =
                [&ids.inputs, &ids.targets].map(|ids| Tensor::new(ids.clone(), &Device::Cpu).unwrap());
            let report = trainer.step(&Batch::from_tensors(inputs, targets)).unwrap();
            for (got, expected, error) in [
                (report.loss, oracle.losses[step], oracle.f32_errors.losses),
                (report.gradient_norm, oracle.grad_norms[step], oracle.f32_errors.grad_norms),
            ] {
                assert!(
                    (got - expected).abs() <= 3.0 * error.max(1e-6),
                    "{variant}, {step}: {got}, expected {expected}"
                );
            }
        }
        let space = tempfile::tempdir().unwrap();
        let mut run = RunDir::create(&space.path().join("run")).unwrap();
        run.begin(&data().0, &trainer, &toml::Table::new()).unwrap();
        let file = space.path().join("run/adapter_model.safetensors");
        let got = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        let expected = candle_core::safetensors::load(folder.join("final.safetensors"), &Device::Cpu).unwrap();
        assert_eq!(got.keys().collect::<std::collections::BTreeSet<_>>(), expected.keys().collect());
        for (name, expected) in expected {
            // What gradients near zero lose in rounding, AdamW turns into steps.
            assert_close(&format!("{variant}: {name}"), &got[&name], &expected, 5.0 * oracle.f32_errors.last.max(2e-6));
        }
    }
}

/// A trainer of adapters on the model in a folder, on an arbitrary text.
fn adapters(base: &Path, config: &ModelConfig, options: &TrainOptions, lora: LoraConfig) -> Trainer {
    let base = FrozenBase::open(base, &lora, config, &Device::Cpu).unwrap();
    Trainer::with_lora(base, config, options, data().1, &Device::Cpu).unwrap()
}

const LORA: LoraConfig = LoraConfig { rank: 2, alpha: 4.0 };

/// A model of random weights in a folder, with the tokenizer of the usual text; with dropout if it is trained.
fn base_in(folder: &Path, architecture: Architecture) -> ModelConfig {
    let tokenizer = data().0;
    let sizes = training::config(&tokenizer);
    let config = ModelConfig {
        context_len: sizes.context_len,
        embed_dim: 12,
        num_layers: 2,
        num_heads: 3,
        num_kv_heads: architecture.is_rotary().then_some(1),
        hidden_dim: 20,
        init_stdev: 0.1,
        ..ModelConfig::of(architecture, tokenizer.vocab_size())
    };
    let parameters = Parameters::new(3);
    CausalLm::new(&config, parameters.var_builder(DType::F32, &Device::Cpu)).unwrap();
    let tensors = parameters.vars().into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect();
    fs::create_dir_all(folder).unwrap();
    save_weights(&folder.join("model.safetensors"), &config, &tensors).unwrap();
    fs::write(folder.join("config.json"), config.to_json().unwrap()).unwrap();
    tokenizer.save(folder, config.context_len).unwrap();
    ModelConfig { dropout: DropoutRates::all(0.1), ..config }
}

fn new_run(root: &Path, base: &Path, config: &ModelConfig, options: &TrainOptions) -> (RunDir, Trainer) {
    let mut run = RunDir::create(root).unwrap();
    let (tokenizer, corpus) = training::data_in(candle_attention::text::IdsStore::File(&run.ids_path()));
    let frozen = FrozenBase::open(base, &LORA, config, &Device::Cpu).unwrap();
    let trainer = Trainer::with_lora(frozen, config, options, corpus, &Device::Cpu).unwrap();
    run.begin(&tokenizer, &trainer, &toml::Table::new()).unwrap();
    (run, trainer)
}

/// Trains, stopping after each of these steps; gives losses, weights, moments and the file at the root.
type End = (Vec<u64>, Vec<Vec<f64>>, Vec<Vec<f64>>, Vec<u8>);

fn run(root: &Path, base: &Path, config: &ModelConfig, threads: usize, stops: &[u64]) -> End {
    let options = TrainOptions { shards: 3, accumulate: 2, average: 0.8, lr: 0.02, ..training::options(12) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let (mut run, mut trainer) = new_run(root, base, config, &options);
        let mut losses = vec![];
        for stop in stops {
            losses.extend(run_in(&mut run, &mut trainer, Some(*stop)).1);
            drop(run);
            (run, trainer) = training::resume(root, "").unwrap();
            assert_eq!(trainer.steps_done(), *stop);
        }
        let (outcome, more) = run_in(&mut run, &mut trainer, None);
        assert_eq!(outcome, Outcome::Finished);
        losses.extend(more);
        (losses, weights(&trainer), moments(&trainer), fs::read(root.join("adapter_model.safetensors")).unwrap())
    })
}

#[test]
fn two_halves_of_a_run_of_adapters_are_the_whole_to_the_last_bit() {
    for architecture in [Architecture::Gpt2, Architecture::Llama, Architecture::Qwen3] {
        let space = tempfile::tempdir().unwrap();
        let base = space.path().join("base");
        let config = base_in(&base, architecture);
        let before = fs::read(base.join("model.safetensors")).unwrap();
        let whole = run(&space.path().join("whole"), &base, &config, 1, &[]);
        assert_eq!(whole.0.len(), 12);
        for (i, (threads, stops)) in [(1, &[6][..]), (3, &[4, 7])].into_iter().enumerate() {
            let halves = run(&space.path().join(i.to_string()), &base, &config, threads, stops);
            assert!(halves == whole, "{architecture:?}, {threads} threads, stopped after {stops:?}");
        }
        assert!(fs::read(base.join("model.safetensors")).unwrap() == before);
    }
}

#[test]
fn the_root_is_an_adapter_that_opens_as_the_trained_model() {
    for architecture in [Architecture::Gpt2, Architecture::Llama, Architecture::Qwen3] {
        let space = tempfile::tempdir().unwrap();
        let (base, root) = (space.path().join("base"), space.path().join("run"));
        let config = base_in(&base, architecture);
        let (mut run, mut trainer) = new_run(&root, &base, &config, &TrainOptions { lr: 0.02, ..training::options(8) });
        run_in(&mut run, &mut trainer, None);
        let files: Vec<String> =
            fs::read_dir(&root).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        assert!(!files.iter().any(|file| file == "model.safetensors" || file == "config.json"), "{files:?}");

        let ids = Tensor::new(&[[1u32, 5, 2, 7, 3]], &Device::Cpu).unwrap();
        let expected = trainer.model().forward(&ids).unwrap();
        let opened = Pipeline::open(&root, &Device::Cpu).unwrap();
        assert_close("opened", &opened.model.forward(&ids).unwrap(), &expected, 1e-5);
        let of_base = Pipeline::open(&base, &Device::Cpu).unwrap().model.forward(&ids).unwrap();
        assert!(crate::support::max_difference(&of_base, &expected) > 1e-2);

        // Only adapters are in the checkpoint.
        let checkpoint = root.join("training/step-00000008.safetensors");
        for name in candle_core::safetensors::load(checkpoint, &Device::Cpu).unwrap().keys() {
            assert!(name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight"), "{name}");
        }
        // Without a tokenizer of its own it has the base's.
        fs::remove_file(root.join("tokenizer.json")).unwrap();
        assert_eq!(Tokenizer::open(&root).unwrap().vocab_size(), config.vocab_size);
    }
}

/// B is zero, so no gradient reaches A before the second step, where both have one.
#[test]
fn a_learns_from_the_second_step_on() {
    let space = tempfile::tempdir().unwrap();
    for architecture in [Architecture::Gpt2, Architecture::Llama, Architecture::Qwen3] {
        let config = base_in(space.path(), architecture);
        let options = TrainOptions { statistics_every: 1, ..training::options(12) };
        let mut trainer = adapters(space.path(), &config, &options, LORA);
        for step in 1..=12 {
            let report = trainer.step(&trainer.next_batch().unwrap()).unwrap();
            assert_eq!(report.statistics.len(), config.lora_parameters(&LORA).len());
            for tensor in report.statistics {
                let is_zero = step == 1 && tensor.name.contains("lora_A");
                assert_eq!(tensor.gradient_norm == 0.0, is_zero, "{} at step {step}", tensor.name);
            }
        }
    }
}

#[test]
fn a_run_goes_on_with_the_same_base_only() {
    let space = tempfile::tempdir().unwrap();
    let (base, root) = (space.path().join("base"), space.path().join("run"));
    let config = base_in(&base, Architecture::Llama);
    let (mut run, mut trainer) = new_run(&root, &base, &config, &training::options(8));
    run_in(&mut run, &mut trainer, Some(4));
    drop(run);
    let refused = |expected: &str| {
        let error = resume(&root, &toml::Table::new(), &Device::Cpu, &mut |_| {}).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let file = base.join("model.safetensors");
    let good = fs::read(&file).unwrap();
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&file, changed).unwrap();
    refused("base: its weights, its configuration, or r and lora_alpha");
    fs::write(&file, good).unwrap();
    fs::rename(&base, space.path().join("moved")).unwrap();
    refused("is not here: download it, and write the path of its folder as base_model_name_or_path");
    // Which helps.
    let path = root.join("adapter_config.json");
    let text = fs::read_to_string(&path).unwrap().replace(base.to_str().unwrap(), "../moved");
    fs::write(&path, text).unwrap();
    let (_run, trainer) = training::resume(&root, "").unwrap();
    assert_eq!(trainer.steps_done(), 4);
}

/// A copy of a fixture whose adapter's configuration and tensors are changed.
fn changed(variant: &str, config: &[(&str, Value)], rename: impl Fn(&str) -> Option<String>) -> Result<CausalLm> {
    let (folder, _) = fixture(variant);
    let space = tempfile::tempdir().unwrap();
    let adapter = space.path().join("adapter");
    fs::create_dir(&adapter).unwrap();
    let text = fs::read(folder.join("adapter/adapter_config.json")).unwrap();
    let mut json: serde_json::Map<String, Value> = serde_json::from_slice(&text).unwrap();
    json.insert("base_model_name_or_path".into(), folder.join("base").to_str().unwrap().into());
    json.extend(config.iter().map(|(name, value)| (name.to_string(), value.clone())));
    fs::write(adapter.join("adapter_config.json"), serde_json::to_vec(&json).unwrap()).unwrap();
    let tensors =
        candle_core::safetensors::load(folder.join("adapter/adapter_model.safetensors"), &Device::Cpu).unwrap();
    let tensors = tensors.into_iter().filter_map(|(name, tensor)| Some((rename(&name)?, tensor))).collect();
    candle_core::safetensors::save(&tensors, adapter.join("adapter_model.safetensors")).unwrap();
    open(&adapter)
}

#[test]
fn what_is_more_than_matrices_on_linear_layers_is_refused_by_name() {
    let keep = |name: &str| Some(name.to_string());
    for (name, value, expected) in [
        ("peft_type", "IA3".into(), "expected an adapter of peft_type LORA, got IA3"),
        ("use_dora", true.into(), "use_dora is not supported"),
        ("lora_bias", true.into(), "lora_bias is not supported"),
        ("bias", "all".into(), "bias \"all\" is not supported"),
        ("modules_to_save", vec!["lm_head"].into(), "modules_to_save is not supported"),
        ("layer_replication", vec![vec![0, 1]].into(), "layer_replication is not supported"),
        ("trainable_token_indices", vec![3].into(), "trainable_token_indices is not supported"),
        ("init_lora_weights", "pissa".into(), "init_lora_weights \"pissa\" is not supported"),
        ("a_key_of_tomorrow", 1.into(), "a_key_of_tomorrow is not supported"),
        ("r", 9.into(), "expected lora_A of shape [9, 12]"),
        ("r", "x".into(), "not the configuration of an adapter"),
        ("rank_pattern", serde_json::json!({"(": 2}), "rank_pattern, alpha_pattern: expected a regular expression"),
        ("base_model_name_or_path", Value::Null, "names no base model"),
        (
            "base_model_name_or_path",
            "someone/some-model".into(),
            "the base model someone/some-model of the adapter (LoRA)",
        ),
    ] {
        let error = changed("gpt2", &[(name, value)], keep).err().unwrap().to_string();
        assert!(error.contains("adapter_config.json") || name == "r", "{error}");
        assert!(error.contains(expected) && error.lines().count() == 1, "{name}: {error}");
    }
    let last = "base_model.model.transformer.h.1.mlp.c_proj.lora_A.weight";
    for (to, expected) in [
        ("base_model.model.lm_head.lora_A.weight", "expected adapters on linear layers of the blocks only"),
        ("base_model.model.transformer.h.7.mlp.c_proj.lora_A.weight", "expected adapters on linear layers"),
        ("base_model.model.transformer.wte.lora_embedding_A", "wte.lora_embedding_A is no matrix of an adapter"),
        ("base_model.model.transformer.h.1.mlp.c_proj.lora_magnitude_vector", "is no matrix of an adapter (LoRA)"),
        ("base_model.model.lm_head.weight", "lm_head.weight is no matrix of an adapter (LoRA)"),
        ("", "base_model.model.transformer.h.1.mlp.c_proj.lora_B.weight is without its pair"),
    ] {
        let rename =
            |name: &str| if name == last { Some(to.to_string()).filter(|to| !to.is_empty()) } else { keep(name) };
        let error = changed("gpt2", &[], rename).err().unwrap().to_string();
        assert!(error.contains("adapter_model.safetensors") && error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn names_with_an_adapters_name_in_them_or_without_a_prefix_are_the_same_tensors() {
    let (_, oracle) = fixture("llama");
    let (ids, expected) =
        (Tensor::new(oracle.ids, &Device::Cpu).unwrap(), Tensor::new(oracle.logits, &Device::Cpu).unwrap());
    let renamed: [fn(&str) -> Option<String>; 3] = [
        |name| Some(name.replace(".weight", ".default.weight")),
        |name| Some(name.replace("base_model.model.", "")),
        |name| Some(name.replace("base_model.model.model.", "base_model.model.")),
    ];
    for rename in renamed {
        assert_close("renamed", &changed("llama", &[], rename).unwrap().forward(&ids).unwrap(), &expected, 1e-5);
    }
    // Another spelling of the layers: the tensors say which they are.
    for targets in [serde_json::json!("all-linear"), serde_json::json!(["q_proj", "v_proj", "down_proj"])] {
        let model = changed("llama", &[("target_modules", targets)], |name| Some(name.to_string())).unwrap();
        assert_close("targets", &model.forward(&ids).unwrap(), &expected, 1e-5);
    }
}

#[test]
fn an_adapter_is_no_base() {
    let space = tempfile::tempdir().unwrap();
    let (folder, _) = fixture("llama");
    let config = ModelConfig::open(&folder.join("adapter")).unwrap();
    let error = FrozenBase::open(&folder.join("adapter"), &LORA, &config, &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("cannot be trained on top of an adapter"), "{error}");
    let json = serde_json::json!({"peft_type": "LORA", "base_model_name_or_path": folder.join("adapter")});
    fs::write(space.path().join("adapter_config.json"), json.to_string()).unwrap();
    let error = ModelConfig::open(space.path()).unwrap_err().to_string();
    assert!(error.contains("expected a whole model as the base of an adapter, got another adapter"), "{error}");
    // It is an --init like any other where the whole model is trained.
    load_weights(&folder.join("adapter"), &config, &Device::Cpu).unwrap();
}

#[test]
fn a_linear_layer_with_an_adapter_has_the_formulas_value_and_gradients() {
    let vb = Parameters::new(1).var_builder(DType::F64, &Device::Cpu);
    let (base, parameters) = (linear(5, 7, vb).unwrap(), Parameters::new(2));
    let config = LoraConfig { rank: 3, alpha: 1.5 };
    let layer = LoraLinear::new(base.clone(), &config, parameters.var_builder(DType::F64, &Device::Cpu)).unwrap();
    let xs = crate::support::randn(4, &[2, 11, 5]);
    assert_close("at first", &layer.forward(&xs).unwrap(), &base.forward(&xs).unwrap(), 0.0);
    for (i, (_, var)) in parameters.vars().iter().enumerate() {
        var.set(&crate::support::randn(10 + i as u64, var.dims())).unwrap();
    }
    let merged = layer.merged().unwrap().forward(&xs).unwrap();
    assert_close("merged", &layer.forward(&xs).unwrap(), &merged, 1e-12);
    let loss = || crate::support::weighted_sum(&layer.forward(&xs).unwrap());
    let gradients = loss().unwrap().backward().unwrap();
    assert!(gradients.get(base.weight()).is_none() && gradients.get(base.bias().unwrap()).is_none());
    let vars = parameters.vars();
    crate::support::check_gradients(&vars, loss);
}

/// Packed or not, an adapter on each projection is that of the merged layer.
#[test]
fn attention_with_adapters_is_attention_with_merged_weights() {
    for (num_kv_heads, names) in [(None, 1), (Some(2), 3)] {
        let config = MultiHeadAttentionConfig { num_kv_heads, bias: true, ..MultiHeadAttentionConfig::new(12, 4) };
        let (whole, adapters) = (Parameters::new(1), Parameters::new(2));
        let layer = MultiHeadAttention::new(&config, whole.var_builder(DType::F64, &Device::Cpu)).unwrap();
        let xs = crate::support::randn(3, &[2, 5, 12]);
        let before = layer.forward(&xs).unwrap();
        let layer = layer.with_lora(&LORA, adapters.var_builder(DType::F64, &Device::Cpu)).unwrap();
        assert_close("at first", &layer.forward(&xs).unwrap(), &before, 1e-12);
        let mut merged: BTreeMap<String, Tensor> =
            whole.vars().into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect();
        let vars: BTreeMap<String, _> = adapters.vars().into_iter().collect();
        assert_eq!(vars.keys().filter(|name| name.contains("lora_A")).count(), names + 1);
        for (i, var) in vars.values().enumerate() {
            var.set(&crate::support::randn(20 + i as u64, var.dims())).unwrap();
        }
        for (name, b) in vars.iter().filter(|(name, _)| name.contains("lora_B")) {
            let a = vars.get(&name.replace("lora_B", "lora_A")).unwrap_or_else(|| &vars["qkv_proj.lora_A.weight"]);
            let weight = merged.get_mut(&name.replace(".lora_B", "")).unwrap();
            *weight = (&*weight + (b.matmul(a).unwrap() * LORA.scale()).unwrap()).unwrap();
        }
        let vb = Parameters::restored(merged).unwrap().frozen(DType::F64, &Device::Cpu);
        let expected = MultiHeadAttention::new(&config, vb).unwrap().forward(&xs).unwrap();
        assert_close("merged", &layer.forward(&xs).unwrap(), &expected, 1e-10);
        let gradients = layer.forward(&xs).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert!(vars.values().all(|var| gradients.get(var).is_some()));
        assert!(whole.vars().iter().all(|(_, var)| gradients.get(var).is_none()));
    }
}
