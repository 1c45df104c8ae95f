//! Models, their training and their text on a GPU.

use std::ops::ControlFlow;

use candle_attention::generate::{Pipeline, Sampler, SamplingOptions, generate};
use candle_attention::inspect::{AttentionMap, WeightReport};
use candle_attention::model::{CausalLm, DropoutRates, ModelConfig, load_weights};
use candle_attention::nn::LoraConfig;
use candle_attention::text::IdsStore;
use candle_attention::train::{self, FrozenBase, OptimizerKind, Outcome, RunDir, TrainOptions, Trainer};
use candle_core::{Device, Tensor};

use super::{GPU, assert_gradients, assert_near, both};
use crate::model::{forms, ids};
use crate::training::{config, data, data_in, options, run_in, steps};

#[test]
fn models() {
    for config in forms() {
        let label = format!("{:?}", config.architecture);
        let [(on_cpu, truth), (on_gpu, here)] = both(|vb| CausalLm::new(&config, vb));
        let (inputs, targets) = (ids(2, 7, 11), ids(2, 7, 10));
        let [inputs_here, targets_here] = [&inputs, &targets].map(|ids| ids.to_device(&GPU).unwrap());
        let expected = on_cpu.forward(&inputs).unwrap();
        assert_near(&label, &on_gpu.forward(&inputs_here).unwrap(), &expected, 1e-5);
        let (loss, loss_here) =
            (on_cpu.loss(&inputs, &targets).unwrap(), on_gpu.loss(&inputs_here, &targets_here).unwrap());
        assert_near(&label, &loss_here, &loss, 1e-5);
        assert_gradients(&label, (&loss, &truth), (&loss_here, &here));

        let text = |model: &CausalLm| {
            let mut sampler = Sampler::new(SamplingOptions { temperature: 0.0, ..Default::default() }, 1, 0).unwrap();
            generate(model, &[4, 1, 9], 20, &mut sampler, &mut |_| ControlFlow::Continue(())).unwrap()
        };
        assert_eq!(text(&on_gpu), text(&on_cpu), "{label}");

        let maps = [&on_gpu, &on_cpu].map(|model| AttentionMap::new(model, &[4, 1, 4, 9, 10]).unwrap());
        assert_near(&label, &maps[0].weights, &maps[1].weights, 1e-5);
        assert_near(&label, &maps[0].lens.probabilities, &maps[1].lens.probabilities, 1e-5);
    }
}

/// The kinds of training: (name, options, dropout).
fn kinds() -> [(&'static str, TrainOptions, f64); 3] {
    let plain = TrainOptions { batch: 6, shards: 2, lr: 1e-2, ..options(20) };
    let muon = TrainOptions {
        optimizer: OptimizerKind::Muon,
        matrix_lr: 2.0,
        average: 0.2,
        label_smoothing: 0.1,
        ..plain.clone()
    };
    let dropout = TrainOptions { accumulate: 2, statistics_every: 5, ..plain.clone() };
    [("AdamW", plain, 0.0), ("Muon", muon, 0.0), ("dropout", dropout, 0.2)]
}

#[test]
fn training_learns_as_on_the_cpu() {
    for (name, options, dropout) in kinds() {
        let losses = |device: &Device| {
            let (tokenizer, corpus) = data();
            let config = ModelConfig { dropout: DropoutRates::all(dropout), ..config(&tokenizer) };
            let mut trainer = Trainer::new(&config, &options, corpus, device).unwrap();
            let losses = steps(&mut trainer, 20);
            let validation = trainer.validate(&mut |_, _| ControlFlow::Continue(())).unwrap().unwrap();
            losses.into_iter().chain([validation.loss]).collect::<Vec<f64>>()
        };
        let (expected, got) = (losses(&Device::Cpu), losses(&GPU));
        assert!(expected[19] < expected[0] - 0.1, "{name}: {expected:?}");
        for (step, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert!((got - expected).abs() < 1e-3, "{name}, step {step}: {got}, expected {expected}");
        }
    }
}

#[test]
fn a_run_is_saved_resumed_and_opened() {
    for (name, options, dropout) in kinds() {
        let space = tempfile::tempdir().unwrap();
        let root = space.path().join("run");
        let mut run = RunDir::create(&root).unwrap();
        let (tokenizer, corpus) = data_in(IdsStore::File(&run.ids_path()));
        let config = ModelConfig { dropout: DropoutRates::all(dropout), ..config(&tokenizer) };
        let mut whole = Trainer::new(&config, &options, data().1, &GPU).unwrap();
        let expected = steps(&mut whole, 20);

        let mut trainer = Trainer::new(&config, &options, corpus, &GPU).unwrap();
        run.begin(&tokenizer, &trainer, &toml::Table::new()).unwrap();
        let (outcome, mut losses) = run_in(&mut run, &mut trainer, Some(9));
        assert_eq!(outcome, Outcome::Interrupted);
        drop((run, trainer));
        let (mut trainer, mut run, damaged) = train::resume(&root, &toml::Table::new(), &GPU, &mut |_| {}).unwrap();
        assert!(damaged.is_empty(), "{damaged:?}");
        let (outcome, rest) = run_in(&mut run, &mut trainer, None);
        assert_eq!(outcome, Outcome::Finished);
        losses.extend(rest);
        assert_eq!(losses.len(), 20);
        for (step, (loss, expected)) in losses.iter().map(|bits| f64::from_bits(*bits)).zip(&expected).enumerate() {
            assert!((loss - expected).abs() < 1e-3, "{name}, step {step}: {loss}, expected {expected}");
        }

        let logits = |device: &Device| {
            let pipeline = Pipeline::open(&root, device).unwrap();
            pipeline.model.forward(&Tensor::new(&[[1u32, 2, 3]], device).unwrap()).unwrap()
        };
        assert_near(name, &logits(&GPU), &logits(&Device::Cpu), 1e-5);
        let reports = [&*GPU, &Device::Cpu].map(|device| {
            let weights = load_weights(&root, &config, device).unwrap();
            let initial = train::initial_weights(&root, &config, device).unwrap();
            WeightReport::new(&config, &weights, Some(&initial), None).unwrap()
        });
        for (got, expected) in reports[0].tensors.iter().zip(&reports[1].tensors) {
            assert!((got.norm - expected.norm).abs() < 1e-5 * expected.norm, "{name}: {got:?}, expected {expected:?}");
        }

        // Adapters on top of it, by AdamW: Muon makes full steps of gradients that are little more than rounding.
        let losses = |device: &Device| {
            let base = FrozenBase::open(&root, &LoraConfig::new(2), &config, device).unwrap();
            let options = TrainOptions { optimizer: OptimizerKind::AdamW, ..options.clone() };
            steps(&mut Trainer::with_lora(base, &config, &options, data().1, device).unwrap(), 8)
        };
        for (got, expected) in losses(&GPU).into_iter().zip(losses(&Device::Cpu)) {
            assert!((got - expected).abs() < 1e-3, "{name}, adapters: {got}, expected {expected}");
        }
    }
}
