//! Ten training steps against Hugging Face's own GPT-2, and Muon against torch's own: see tests/fixtures/README.md.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_attention::model::{CausalLm, ModelConfig, load_weights};
use candle_attention::nn::Parameters;
use candle_attention::optim::{AdamW, Cautious, MuonStep, ParamGroup, ParamsAdamW, muon};
use candle_attention::text::{Batch, Document, IdsStore, TextOptions, TokenizerChoice, Validation, prepare};
use candle_attention::train::{TrainOptions, Trainer};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Optimizer;
use serde::Deserialize;

use crate::model::{named, saved};
use crate::support::{assert_close, max_difference, values};

/// Ten steps of Hugging Face's GPT-2; see tests/fixtures/README.md.
#[derive(Deserialize)]
struct TenSteps {
    optimizer: Recipe,
    batches: Vec<Ids>,
    logits_first: Vec<Vec<Vec<f64>>>,
    losses_f64: Vec<f64>,
    losses_f32: Vec<f64>,
    grad_norms_f32: Vec<f64>,
    grad_norms_f64: Vec<f64>,
    f32_errors: F32Errors,
}

/// How far torch's f32 strays from its f64, by name.
#[derive(Deserialize)]
struct F32Errors {
    logits_first: f64,
    first_gradients: BTreeMap<String, f64>,
    #[serde(rename = "final")]
    last: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Recipe {
    lr: Vec<f64>,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    clip: f64,
}

impl Recipe {
    /// AdamW, under which matrices decay and vectors don't.
    fn optimizer(&self, vars: Vec<(String, Var)>) -> AdamW {
        let &Self { beta1, beta2, eps, weight_decay, clip, .. } = self;
        let (matrices, vectors) = vars.into_iter().partition(|(_, var)| var.rank() >= 2);
        let groups =
            vec![ParamGroup::adamw(matrices), ParamGroup { weight_decay: Some(0.0), ..ParamGroup::adamw(vectors) }];
        let params = ParamsAdamW { beta1, beta2, eps, weight_decay, max_grad_norm: Some(clip), ..Default::default() };
        AdamW::with_groups(groups, params).unwrap()
    }
}

#[derive(Deserialize)]
struct Ids {
    inputs: Vec<Vec<u32>>,
    targets: Vec<Vec<u32>>,
}

impl Ids {
    fn tensors(&self) -> (Tensor, Tensor) {
        let tensor = |rows: &Vec<Vec<u32>>| Tensor::new(rows.clone(), &Device::Cpu).unwrap();
        (tensor(&self.inputs), tensor(&self.targets))
    }
}

fn fixture(variant: &str) -> (PathBuf, ModelConfig, TenSteps) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(variant);
    let config = ModelConfig::open(&folder).unwrap();
    let steps = std::fs::read(folder.join("ten_steps.json")).unwrap();
    (folder, config, serde_json::from_slice(&steps).unwrap())
}

/// Compares tensors, in Hugging Face's layout, with a file of the fixture.
fn assert_like(config: &ModelConfig, tensors: BTreeMap<String, Tensor>, oracle: &Path, tolerance: f64) {
    let folder = tempfile::tempdir().unwrap();
    let got = saved(config, tensors, folder.path());
    for (name, expected) in candle_core::safetensors::load(oracle, &Device::Cpu).unwrap() {
        assert_close(&name, &got[&name], &expected, tolerance);
    }
}

/// Makes the fixture's ten steps in `dtype` and returns losses and norms; checks logits, first gradients and final
/// weights to within `tolerance`.
fn make_ten_steps(variant: &str, dtype: DType, tolerance: f64) -> (Vec<f64>, Vec<f64>) {
    let (folder, config, steps) = fixture(variant);
    let weights = load_weights(&folder.join("model.safetensors"), &config, &Device::Cpu).unwrap();
    let weights = weights.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap()));
    let parameters = Parameters::restored(weights).unwrap();
    let model = CausalLm::new(&config, parameters.var_builder(dtype, &Device::Cpu)).unwrap();
    assert!(parameters.unread().is_empty());
    let vars = parameters.vars();
    let mut optimizer = steps.optimizer.optimizer(vars.clone());

    let (mut losses, mut norms) = (vec![], vec![]);
    for (step, batch) in steps.batches.iter().enumerate() {
        let (inputs, targets) = batch.tensors();
        let loss = model.loss(&inputs, &targets).unwrap();
        let found = loss.backward().unwrap();
        if step == 0 {
            let logits = Tensor::new(steps.logits_first.clone(), &Device::Cpu).unwrap();
            assert_close("logits", &model.forward(&inputs).unwrap(), &logits, tolerance);
            let first = vars.iter().map(|(name, var)| (name.clone(), found.get(var).unwrap().clone())).collect();
            assert_like(&config, first, &folder.join("first_gradients.safetensors"), tolerance);
        }
        optimizer.set_learning_rate(steps.optimizer.lr[step]);
        optimizer.step(&found).unwrap();
        losses.push(values(&loss)[0]);
        norms.extend(optimizer.grad_norm());
    }
    if dtype == DType::F64 {
        assert_like(&config, named(&parameters), &folder.join("final.safetensors"), tolerance);
    }
    (losses, norms)
}

#[test]
fn ten_steps_in_f64_are_those_of_hugging_faces_gpt2() {
    for variant in ["with_bias", "nanogpt"] {
        let (_, _, oracle) = fixture(variant);
        let (losses, norms) = make_ten_steps(variant, DType::F64, 1e-9);
        for (step, expected) in oracle.losses_f64.iter().enumerate() {
            assert!((losses[step] - expected).abs() < 1e-10, "{variant}, step {step}: {losses:?}, expected {expected}");
        }
        for (step, expected) in oracle.grad_norms_f64.iter().enumerate() {
            assert!((norms[step] - expected).abs() < 1e-9, "{variant}, step {step}: {norms:?}, expected {expected}");
        }
    }
}

/// The trainer itself, in f32 and in three uneven shards, has at most three times the error of torch's f32, in losses,
/// norms and final weights.
#[test]
fn ten_steps_of_the_trainer_stay_as_close_as_torch_does() {
    for variant in ["with_bias", "nanogpt"] {
        let (folder, config, oracle) = fixture(variant);
        let errors = &oracle.f32_errors;
        make_ten_steps(variant, DType::F32, 3.0 * errors.logits_first.max(most(&errors.first_gradients)));

        let Recipe { ref lr, beta1, beta2, eps, weight_decay, clip } = oracle.optimizer;
        assert_eq!(eps, 1e-8, "the trainer's");
        let options = TrainOptions {
            steps: 10,
            batch: 7,
            shards: 3,
            lr: 3e-3,
            min_lr: 0.1,
            warmup: 0.3,
            beta1,
            beta2,
            weight_decay,
            clip,
            ..Default::default()
        };
        // The batches below are the fixture's; this text is not read.
        let (document, none) = (Document::new("text", "a".repeat(99)), Validation::Fraction(0.0));
        let prepared = prepare(
            &[document],
            &none,
            &TokenizerChoice::Bytes,
            TextOptions::default(),
            IdsStore::Temporary,
            &mut |_| {},
        );
        let (_, corpus) = prepared.unwrap();
        let weights = load_weights(&folder.join("model.safetensors"), &config, &Device::Cpu).unwrap();
        let mut trainer = Trainer::from_weights(weights, &config, &options, corpus, &Device::Cpu).unwrap();
        let torch_error =
            |f32s: &[f64], f64s: &[f64]| f32s.iter().zip(f64s).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let loss_error = 3.0 * torch_error(&oracle.losses_f32, &oracle.losses_f64);
        let norm_error = 3.0 * torch_error(&oracle.grad_norms_f32, &oracle.grad_norms_f64);
        for (step, ids) in oracle.batches.iter().enumerate() {
            let (inputs, targets) = ids.tensors();
            let report = trainer.step(&Batch::from_tensors(inputs, targets)).unwrap();
            assert!(
                (report.learning_rate - lr[step]).abs() < 1e-15,
                "{variant}, step {step}: {report:?}, expected {}",
                lr[step]
            );
            let (loss, norm) = (oracle.losses_f64[step], oracle.grad_norms_f64[step]);
            assert!(
                (report.loss - loss).abs() <= loss_error,
                "{variant}, step {step}: {report:?}, expected {loss} ± {loss_error}"
            );
            assert!(
                (report.gradient_norm - norm).abs() <= norm_error,
                "{variant}, step {step}: {report:?}, expected {norm} ± {norm_error}"
            );
        }
        let final_error = 3.0 * most(&errors.last);
        let space = tempfile::tempdir().unwrap();
        let got = saved(&config, trainer.weights(), space.path());
        for (name, expected) in candle_core::safetensors::load(folder.join("final.safetensors"), &Device::Cpu).unwrap()
        {
            // The gradient of a key bias is zero up to rounding, which AdamW turns into steps.
            if name.ends_with("c_attn.bias") {
                for part in [0, 2] {
                    let third = |tensor: &Tensor| tensor.narrow(0, part * config.embed_dim, config.embed_dim).unwrap();
                    assert_close(&name, &third(&got[&name]), &third(&expected), final_error);
                }
            } else {
                assert_close(&name, &got[&name], &expected, final_error);
            }
        }
    }
}

#[derive(Deserialize)]
struct MuonFixture {
    options: MuonOptions,
    cases: Vec<MuonCase>,
}

#[derive(Deserialize)]
struct MuonOptions {
    lr: f64,
    weight_decay: f64,
    momentum: f64,
}

#[derive(Deserialize)]
struct MuonCase {
    weights: Vec<Vec<f64>>,
    gradients: Vec<Vec<Vec<f64>>>,
    after: Vec<Vec<Vec<f64>>>,
    f32_error: f64,
    first_with_torchs_polynomials: Vec<Vec<f64>>,
}

fn muon_fixture() -> (MuonStep, Vec<MuonCase>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/muon.json");
    let MuonFixture { options, cases } = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let MuonOptions { lr, weight_decay, momentum } = options;
    let cautious = Cautious::default();
    (MuonStep { learning_rate: lr, momentum, weight_decay, gradient_scale: 1.0, cautious }, cases)
}

/// `tests/fixtures/muon.py` runs torch's own Muon with this crate's polynomials. In f32, within three times the largest
/// error of torch's f32.
#[test]
fn steps_of_muon_are_those_of_torch() {
    let (step, cases) = muon_fixture();
    assert_eq!(cases.len(), 3);
    let f32_error = cases.iter().map(|case| case.f32_error).fold(0.0, f64::max);
    for case in cases {
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 3.0 * f32_error)] {
            let tensor =
                |rows: &Vec<Vec<f64>>| Tensor::new(rows.clone(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let var = Var::from_tensor(&tensor(&case.weights)).unwrap();
            let mut mean = var.zeros_like().unwrap().detach();
            for (i, (gradient, after)) in case.gradients.iter().zip(&case.after).enumerate() {
                muon(&var, &tensor(gradient), &mut mean, &step).unwrap();
                let after = Tensor::new(after.clone(), &Device::Cpu).unwrap();
                assert_close(&format!("{:?} in {dtype:?}, step {i}", var.dims()), &var, &after, tolerance);
            }
        }
    }
}

/// With torch's own polynomials the singular vectors are the same, and the singular values, of which ours lie between
/// 0.873 and 1.127 and torch's between 0.68 and 1.21, differ by at most 0.447.
#[test]
fn a_step_of_muon_has_the_direction_of_torchs() {
    let (step, cases) = muon_fixture();
    for case in cases {
        let tensor = |rows: &Vec<Vec<f64>>| Tensor::new(rows.clone(), &Device::Cpu).unwrap();
        let var = Var::from_tensor(&tensor(&case.weights)).unwrap();
        muon(&var, &tensor(&case.gradients[0]), &mut var.zeros_like().unwrap().detach(), &step).unwrap();
        let (rows, cols) = var.dims2().unwrap();
        let rate = step.learning_rate * (rows as f64 / cols as f64).max(1.0).sqrt();
        let difference = values(&(var.as_tensor() - tensor(&case.first_with_torchs_polynomials)).unwrap());
        let norm = difference.iter().map(|x| x * x).sum::<f64>().sqrt() / rate;
        let most = 0.447 * (rows.min(cols) as f64).sqrt();
        assert!(norm > 0.0 && norm < most, "{rows} x {cols}: {norm}, expected below {most}");
    }
}

fn most(errors: &BTreeMap<String, f64>) -> f64 {
    errors.values().copied().fold(0.0, f64::max)
}

#[test]
fn a_fixture_differs_from_its_untrained_self() {
    // Guards the tests above against comparing a file with itself.
    let (folder, config, _) = fixture("nanogpt");
    let start = load_weights(&folder.join("model.safetensors"), &config, &Device::Cpu).unwrap();
    let end = load_weights(&folder.join("final.safetensors"), &config, &Device::Cpu).unwrap();
    assert!(start.iter().all(|(name, tensor)| max_difference(tensor, &end[name]) > 1e-4));
}
