//! Reports on weights: spectra against numpy's, what a run started from, and gradients against candle's own in `f64`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_attention::inspect::WeightReport;
use candle_attention::model::{Architecture, CausalLm, DropoutRates, ModelConfig, ResidualInit, load_weights};
use candle_attention::nn::{LoraConfig, Parameters};
use candle_attention::text::{Batch, IdsStore};
use candle_attention::train::{FrozenBase, RunDir, TrainOptions, Trainer, first_batch, gradients, initial_weights};
use candle_attention::{Error, Result};
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::support::{randn, values};
use crate::training::{self, data_in, options, run_in};

const CPU: Device = Device::Cpu;

#[derive(Deserialize)]
struct Case {
    name: String,
    architecture: Architecture,
    sizes: Sizes,
    weights: BTreeMap<String, Vec<Vec<f32>>>,
    heads: Vec<Head>,
}

#[derive(Deserialize)]
struct Sizes {
    embed_dim: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

#[derive(Deserialize)]
struct Head {
    qk: Vec<f64>,
    vo: Vec<f64>,
}

/// Grouped heads, heads wider than the model, singular values down to 2^-32 of the largest, and a head of zeros.
#[test]
fn singular_values_are_numpys() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../fixtures/spectra.json")).unwrap();
    for Case { name: case, architecture, sizes, weights: given, heads } in cases {
        let Sizes { embed_dim, num_heads, num_kv_heads, head_dim } = sizes;
        let config = ModelConfig {
            embed_dim,
            num_heads,
            num_kv_heads: Some(num_kv_heads).filter(|_| num_kv_heads != num_heads),
            head_dim: Some(head_dim).filter(|_| head_dim * num_heads != embed_dim),
            num_layers: 2,
            context_len: 5,
            hidden_dim: 11,
            ..ModelConfig::of(architecture, 13)
        };
        let mut weights = drawn(&config, 3);
        for (name, rows) in given {
            weights.insert(format!("blocks.1.attention.{name}.weight"), Tensor::new(rows, &CPU).unwrap());
        }
        let report = WeightReport::new(&config, &weights, None, None).unwrap();
        assert_eq!((report.heads.len(), report.heads[1].len()), (2, heads.len()));
        for (i, (got, expected)) in report.heads[1].iter().zip(&heads).enumerate() {
            for (kind, got, expected) in [("qk", &got.qk, &expected.qk), ("vo", &got.vo, &expected.vo)] {
                let label = format!("{case}, head {i}, {kind}");
                assert_eq!(got.singular_values.len(), expected.len(), "{label}");
                let allowed = 100.0 * f64::EPSILON * expected[0];
                for (got, expected) in got.singular_values.iter().zip(expected) {
                    assert!((got - expected).abs() <= allowed, "{label}: {got}, expected {expected}");
                }
                let squares: f64 = expected.iter().map(|value| value * value).sum();
                let close = |got: f64, expected: f64| assert!((got - expected).abs() <= 1e-12 * expected, "{label}");
                close(got.frobenius_norm(), squares.sqrt());
                let rank = if squares == 0.0 { 0.0 } else { squares / expected[0].powi(2) };
                close(got.stable_rank(), rank);
            }
        }
        assert!(report.tensors.iter().all(|tensor| tensor.change.is_none() && tensor.gradient.is_none()));
    }
}

/// The scores of layer i may be divided by i too, or not at all.
#[test]
fn spectra_follow_the_scale_of_the_scores() {
    let config = ModelConfig { embed_dim: 12, num_heads: 3, num_layers: 3, hidden_dim: 7, ..ModelConfig::gpt2(11) };
    let weights = drawn(&config, 5);
    let norms = |config: &ModelConfig| -> Vec<f64> {
        let report = WeightReport::new(config, &weights, None, None).unwrap();
        report.heads.iter().map(|heads| heads[1].qk.spectral_norm()).collect()
    };
    let plain = norms(&config);
    let by_layer = norms(&ModelConfig { scale_attn_by_inverse_layer_idx: true, ..config.clone() });
    let unscaled = norms(&ModelConfig { scale_attn_weights: false, ..config });
    for (i, plain) in plain.iter().enumerate() {
        let close = |got: f64, expected: f64| assert!((got - expected).abs() <= 1e-12 * expected, "{got} {expected}");
        close(by_layer[i] * (i + 1) as f64, *plain);
        close(unscaled[i], plain * 2.0);
    }
}

#[test]
fn weights_that_are_not_the_models_are_refused() {
    let config = ModelConfig { embed_dim: 12, num_heads: 3, num_layers: 1, ..ModelConfig::gpt2(11) };
    let weights = drawn(&config, 5);
    let error = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut changed = weights.clone();
        change(&mut changed);
        let of_weights = WeightReport::new(&config, &changed, None, None).unwrap_err().to_string();
        let of_initial = WeightReport::new(&config, &weights, Some(&changed), None).unwrap_err().to_string();
        assert_eq!(of_initial, format!("initial {of_weights}"));
        of_weights
    };
    let name = "blocks.0.attention.k_proj.weight";
    assert_eq!(error(&|weights| drop(weights.remove(name))), format!("weights: {name} is missing"));
    let other = |weights: &mut BTreeMap<String, Tensor>| {
        weights.insert(name.into(), Tensor::zeros((12, 13), DType::F32, &CPU).unwrap());
    };
    assert_eq!(error(&other), format!("weights: expected {name} of shape [12, 12], got [12, 13]"));
    for value in [f32::NAN, f32::INFINITY] {
        let broken = Tensor::full(value, (12, 12), &CPU).unwrap();
        let error = error(&|weights| drop(weights.insert(name.into(), broken.clone())));
        assert!(error.starts_with(&format!("weights: expected finite values in {name}")), "{error}");
    }
}

/// Weights as a new model of this configuration has them.
fn drawn(config: &ModelConfig, seed: u64) -> BTreeMap<String, Tensor> {
    let parameters = Parameters::new(seed);
    CausalLm::new(config, parameters.var_builder(DType::F32, &CPU)).unwrap();
    parameters.vars().into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect()
}

/// Small models of all architectures, with grouped heads, biases and an untied head among them.
fn forms(vocab_size: usize) -> [ModelConfig; 3] {
    [Architecture::Gpt2, Architecture::Llama, Architecture::Qwen3].map(|architecture| {
        let config = ModelConfig {
            context_len: 13,
            embed_dim: 12,
            num_heads: 3,
            num_layers: 2,
            hidden_dim: 20,
            ..ModelConfig::of(architecture, vocab_size)
        };
        match architecture {
            Architecture::Gpt2 => ModelConfig { bias: true, dropout: DropoutRates::all(0.2), ..config },
            Architecture::Llama => ModelConfig { tie_embeddings: false, num_kv_heads: Some(1), ..config },
            _ => ModelConfig { head_dim: Some(6), residual_init: ResidualInit::Zero, ..config },
        }
    })
}

/// A run of some steps in a new folder, from `begin` on, with these settings beside its options.
fn run(
    steps: u64,
    settings: &str,
    begin: impl Fn(candle_attention::text::Corpus, &TrainOptions) -> Trainer,
) -> (tempfile::TempDir, PathBuf) {
    let space = tempfile::tempdir().unwrap();
    let root = space.path().join("run");
    let mut run = RunDir::create(&root).unwrap();
    let (tokenizer, corpus) = data_in(IdsStore::File(&run.ids_path()));
    let mut trainer = begin(corpus, &options(4));
    run.begin(&tokenizer, &trainer, &settings.parse().unwrap()).unwrap();
    if steps > 0 {
        run_in(&mut run, &mut trainer, Some(steps));
    }
    (space, root)
}

/// A run of a new model.
fn new_run(config: &ModelConfig, steps: u64) -> (tempfile::TempDir, PathBuf) {
    let settings = format!("zero-residual = {}", config.residual_init == ResidualInit::Zero);
    run(steps, &settings, |corpus, options| Trainer::new(config, options, corpus, &CPU).unwrap())
}

/// How far each tensor has moved since the start.
fn changes(root: &Path) -> Result<BTreeMap<String, f64>> {
    let config = ModelConfig::open(root)?;
    let weights = load_weights(root, &config, &CPU)?;
    let report = WeightReport::new(&config, &weights, Some(&initial_weights(root, &config, &CPU)?), None)?;
    Ok(report.tensors.into_iter().map(|tensor| (tensor.name, tensor.change.unwrap())).collect())
}

#[test]
fn a_new_run_has_not_moved_and_a_trained_one_has() {
    for config in forms(training::data().0.vocab_size()) {
        let (_space, root) = new_run(&config, 0);
        let expected: Vec<String> = config.parameters().into_iter().map(|(name, _)| name).collect();
        let start = changes(&root).unwrap();
        assert!(expected.iter().all(|name| start[name] == 0.0) && start.len() == expected.len(), "{start:?}");
        let (_space, root) = new_run(&config, 4);
        let moved = changes(&root).unwrap();
        assert!(moved.values().all(|change| *change > 0.0), "{moved:?}");
        // What started at zero has moved infinitely far.
        for (name, change) in moved {
            let from_zero = name.ends_with("bias")
                || (config.residual_init == ResidualInit::Zero
                    && (name.contains("o_proj") || name.contains("down_proj")));
            assert_eq!(change.is_infinite(), from_zero, "{name}: {change}");
        }
    }
}

#[test]
fn a_run_on_another_model_starts_from_that() {
    let [config, ..] = forms(training::data().0.vocab_size());
    let (space, base) = new_run(&config, 4);
    let weights = load_weights(&base, &config, &CPU).unwrap();
    let settings = format!("init = {:?}", base.display().to_string());
    let from_base = |corpus: candle_attention::text::Corpus, options: &TrainOptions| {
        Trainer::from_weights(weights.clone(), &config, options, corpus, &CPU).unwrap()
    };
    let (_own, root) = run(0, &settings, from_base);
    assert!(changes(&root).unwrap().values().all(|change| *change == 0.0));
    let (_own, root) = run(4, &settings, from_base);
    let moved = changes(&root).unwrap();
    assert!(moved.values().all(|change| *change > 0.0 && change.is_finite()), "{moved:?}");
    drop(space);
    let error = changes(&root).unwrap_err().to_string();
    assert!(error.starts_with(&base.display().to_string()) && error.ends_with("got nothing"), "{error}");
}

#[test]
fn an_adapter_starts_from_its_base_and_its_effect_is_the_change() {
    let [_, config, _] = forms(training::data().0.vocab_size());
    let (_space, base) = new_run(&config, 4);
    let with_lora = |corpus: candle_attention::text::Corpus, options: &TrainOptions| {
        let frozen = FrozenBase::open(&base, &LoraConfig::new(2), &config, &CPU).unwrap();
        Trainer::with_lora(frozen, &config, options, corpus, &CPU).unwrap()
    };
    let (_own, root) = run(0, "", with_lora);
    assert!(changes(&root).unwrap().values().all(|change| *change == 0.0));
    let (_own, root) = run(4, "", with_lora);
    for (name, change) in changes(&root).unwrap() {
        let is_adapted = name.contains("_proj.weight");
        assert_eq!(change > 0.0, is_adapted, "{name}: {change}");
    }
    assert!(first_batch(&root, &config, &CPU, &mut |_| {}).is_ok());
}

/// The model composed of candle's own operations in `f64`, and candle's own backward pass.
#[test]
fn gradients_are_those_of_candle_in_f64() {
    for (i, config) in forms(training::data().0.vocab_size()).into_iter().enumerate() {
        let (_space, root) = new_run(&config, 0);
        let batch = first_batch(&root, &config, &CPU, &mut |_| {}).unwrap();
        assert_eq!(batch.inputs.dims(), [5, 13]);
        let of_run = Trainer::new(&config, &options(4), data_in(IdsStore::Temporary).1, &CPU).unwrap();
        assert_eq!(values(&batch.inputs), values(&of_run.next_batch().unwrap().inputs));
        // Weights of one and zero would hide mistakes.
        let weights: BTreeMap<String, Tensor> = config
            .parameters()
            .iter()
            .enumerate()
            .map(|(j, (name, shape))| {
                (name.clone(), (randn((100 * i + j) as u64, shape) * 0.3).unwrap().to_dtype(DType::F32).unwrap())
            })
            .collect();
        let (loss, gradients) = gradients(&config, &weights, &batch).unwrap();
        let exact = Parameters::restored(
            weights.iter().map(|(name, tensor)| (name.clone(), tensor.to_dtype(DType::F64).unwrap())),
        )
        .unwrap();
        let still = ModelConfig { dropout: DropoutRates::default(), ..config.clone() };
        let model = CausalLm::new(&still, exact.var_builder(DType::F64, &CPU)).unwrap();
        let expected_loss = model.loss(&batch.inputs, &batch.targets).unwrap();
        let expected = expected_loss.backward().unwrap();
        assert!((loss - expected_loss.to_scalar::<f64>().unwrap()).abs() < 1e-5);
        let report = WeightReport::new(&config, &weights, None, Some(&gradients)).unwrap();
        let norm = |tensor: &Tensor| values(tensor).iter().map(|x| x * x).sum::<f64>().sqrt();
        let norms: Vec<(String, f64)> =
            exact.vars().iter().map(|(name, var)| (name.clone(), norm(expected.get(var).unwrap()))).collect();
        let largest = norms.iter().map(|(_, norm)| *norm).fold(0.0, f64::max);
        for (name, expected) in norms {
            let tensor = report.tensors.iter().find(|tensor| tensor.name == name).unwrap();
            let got = tensor.gradient.unwrap();
            // Key biases have none but rounding.
            assert!((got - expected).abs() <= 1e-5 * largest, "{name}: {got}, expected {expected}");
            assert!((tensor.norm - norm(&weights[&name])).abs() <= 1e-6 * tensor.norm, "{name}");
        }
    }
}

/// The gradient of each tensor at the first step is the one that training reports.
#[test]
fn the_first_gradients_are_those_of_training() {
    let [_, _, config] = forms(training::data().0.vocab_size());
    let (_space, root) = new_run(&config, 0);
    let weights = load_weights(&root, &config, &CPU).unwrap();
    let batch = first_batch(&root, &config, &CPU, &mut |_| {}).unwrap();
    let (loss, gradients) = gradients(&config, &weights, &batch).unwrap();
    let options = TrainOptions { statistics_every: 1, ..options(4) };
    let mut trainer = Trainer::new(&config, &options, data_in(IdsStore::Temporary).1, &CPU).unwrap();
    let told = trainer.step(&trainer.next_batch().unwrap()).unwrap();
    assert!((told.loss - loss).abs() < 1e-5);
    let report = WeightReport::new(&config, &weights, None, Some(&gradients)).unwrap();
    for told in told.statistics {
        let got = report.tensors.iter().find(|tensor| tensor.name == told.name).unwrap().gradient.unwrap();
        assert!((got - told.gradient_norm).abs() <= 1e-4 * told.gradient_norm + 1e-9, "{}: {got}", told.name);
    }
}

#[test]
fn an_id_that_is_none_of_the_models_is_an_error() {
    let [config, ..] = forms(7);
    let ids = Tensor::new(&[[1u32, 7]], &CPU).unwrap();
    assert!(gradients(&config, &drawn(&config, 1), &Batch::from_tensors(ids.clone(), ids)).is_err());
}

/// Settings and files that somebody has changed: an error in one line.
#[test]
fn folders_that_lie_give_a_reason() {
    let [config, other, _] = forms(training::data().0.vocab_size());
    let (_space, root) = new_run(&config, 0);
    let path = root.join("training/settings.toml");
    let settings = fs::read_to_string(&path).unwrap();
    let reasons = |settings: &str| -> [Option<Error>; 2] {
        fs::write(&path, settings).unwrap();
        let start = initial_weights(&root, &config, &CPU).err();
        [start, first_batch(&root, &config, &CPU, &mut |_| {}).err()]
    };
    let changed = |name: &str, value: &str| -> String {
        let line = |line: &str| match line.split(" = ").next() {
            Some(this) if this == name => format!("{name} = {value}"),
            _ => line.to_string(),
        };
        settings.lines().map(line).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(reasons(&settings).map(|reason| reason.map(|error| error.to_string())), [None, None]);
    let without_seed: String =
        settings.lines().filter(|line| !line.starts_with("seed")).map(|x| format!("{x}\n")).collect();
    let (_space, llama) = new_run(&other, 0);
    let both = [Some("damaged"), Some("damaged")];
    for (settings, expected) in [
        ("".to_string(), both),
        ("seed = ".to_string(), both),
        (without_seed, both),
        (changed("seed", "-1"), both),
        (changed("seed", "'seven'"), both),
        (changed("batch", "16000000"), [None, Some("memory")]),
        (changed("batch", "9223372036854775807"), [Some("batch"), Some("batch")]),
        (changed("batch", "0"), [Some("batch"), Some("batch")]),
        (changed("context", "14"), [None, Some("context")]),
        (format!("init = '/nowhere/at/all'\n{settings}"), [Some("got nothing"), None]),
        (format!("init = {:?}\n{settings}", llama.display().to_string()), [Some("model.safetensors"), None]),
        // Not what `attn` writes there.
        (format!("init = 3\n{settings}"), [None, None]),
    ] {
        for (reason, expected) in reasons(&settings).into_iter().zip(expected) {
            let reason = reason.map(|error| error.to_string());
            let is_as_expected = match (&reason, expected) {
                (Some(reason), Some(expected)) => reason.contains(expected) && !reason.contains('\n'),
                (reason, expected) => reason.is_none() && expected.is_none(),
            };
            assert!(is_as_expected, "{reason:?}, expected {expected:?}, of {settings}");
        }
    }
    fs::write(&path, &settings).unwrap();
    fs::write(root.join("training/ids.safetensors"), "no ids").unwrap();
    assert!(first_batch(&root, &config, &CPU, &mut |_| {}).is_err());
    // A folder that is no run.
    fs::remove_dir_all(root.join("training")).unwrap();
    let not_a_run = format!("{} is not a run: it has no training/lock", root.display());
    assert_eq!(initial_weights(&root, &config, &CPU).unwrap_err().to_string(), not_a_run);
    assert_eq!(first_batch(&root, &config, &CPU, &mut |_| {}).unwrap_err().to_string(), not_a_run);
}
