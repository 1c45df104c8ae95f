//! Dropout in the model and in training.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_attention::model::{CausalLm, DropoutRates, DropoutSource, ForwardContext, ModelConfig};
use candle_attention::nn::Parameters;
use candle_attention::ops::{self, AttentionOptions, DropoutOptions, Mask, RandomKey};
use candle_attention::text::{Document, IdsStore, TextOptions, Tokenizer, TokenizerChoice, Validation, prepare};
use candle_attention::train::{Event, Outcome, RunDir, TrainOptions, Trainer, resume, train};
use candle_core::{DType, Device, Result, Tensor};

use crate::model::{ids, random_model, tiny};
use crate::support::{assert_close, check_gradients, values};

const SOURCE: DropoutSource = DropoutSource { seed: 3, step: 5, first_sequence: 7 };

fn context(source: DropoutSource) -> ForwardContext {
    ForwardContext { dropout: Some(source), ..Default::default() }
}

/// GPT-2's places, from the paper's code: the embeddings, the attention weights, and what a block adds to the residual
/// stream, each with random numbers of its own.
fn by_hand(config: &ModelConfig, parameters: &Parameters, ids: &Tensor, documents: Option<Tensor>) -> Result<Tensor> {
    let all = parameters.vars();
    let get = |name: &str| all.iter().find(|(its, _)| its == name).unwrap().1.as_tensor();
    let at =
        |site: u64, rate: f64| DropoutOptions { rate, key: RandomKey { seed: 3, step: 5, site }, first_sequence: 7 };
    let rates = config.dropout;
    let (b, t) = ids.dims2()?;
    let (h, c) = (config.num_heads, config.embed_dim);
    let positions = get("position_embedding.weight").narrow(0, 0, t)?;
    let xs = ops::embedding(ids, get("token_embedding.weight"))?.broadcast_add(&positions)?;
    let mut xs = ops::dropout(&xs, &at(0, rates.embedding))?;
    for i in 0..config.num_layers {
        let part = |name: &str| get(&format!("blocks.{i}.{name}.weight"));
        let site = 1 + 3 * i as u64;
        let ys = ops::layer_norm(&xs, part("attention_norm"), None, config.norm_eps)?;
        let heads = |name: &str| ops::linear(&ys, part(name), None)?.reshape((b, t, h, c / h));
        let [q, k, v] = ["attention.q_proj", "attention.k_proj", "attention.v_proj"].map(|name| heads(name).unwrap());
        let options = AttentionOptions {
            mask: Mask { documents: documents.clone(), ..Mask::causal() },
            dropout: Some(at(site, rates.attention)),
            ..Default::default()
        };
        let ys = ops::attention(&q, &k, &v, &options)?.reshape((b, t, c))?;
        let ys = ops::linear(&ys, part("attention.o_proj"), None)?;
        xs = (xs + ops::dropout(&ys, &at(site + 1, rates.residual))?)?;
        let ys = ops::layer_norm(&xs, part("mlp_norm"), None, config.norm_eps)?;
        let ys = ops::gelu_erf(&ops::linear(&ys, part("mlp.up_proj"), None)?)?;
        let ys = ops::linear(&ys, part("mlp.down_proj"), None)?;
        xs = (xs + ops::dropout(&ys, &at(site + 2, rates.residual))?)?;
    }
    let xs = ops::layer_norm(&xs, get("norm.weight"), None, config.norm_eps)?;
    ops::linear(&xs, get("token_embedding.weight"), None)
}

#[test]
fn the_model_drops_where_gpt2_does() {
    let documents = Tensor::new(&[[0u32, 0, 1, 1, 1], [4, 4, 4, 4, 5]], &Device::Cpu).unwrap();
    let rates = DropoutRates { embedding: 0.2, attention: 0.3, residual: 0.4 };
    let config = ModelConfig { dropout: rates, ..tiny() };
    let (model, parameters) = random_model(&config, DType::F64);
    let ids = ids(2, 5, 11);
    for documents in [None, Some(documents)] {
        let context = ForwardContext { documents: documents.clone(), ..context(SOURCE) };
        let expected = by_hand(&config, &parameters, &ids, documents.clone()).unwrap();
        assert_close("logits", &model.forward_with(&ids, &context).unwrap(), &expected, 1e-12);
        let evaluation = ForwardContext { dropout: None, documents: documents.clone() };
        let without = ModelConfig { dropout: DropoutRates::default(), ..config.clone() };
        let expected = by_hand(&without, &parameters, &ids, documents).unwrap();
        assert_close("evaluation", &model.forward_with(&ids, &evaluation).unwrap(), &expected, 1e-12);
    }
}

#[test]
fn gradients_with_dropout_and_documents_are_those_of_finite_differences() {
    let config = ModelConfig { dropout: DropoutRates::all(0.3), bias: true, ..tiny() };
    let (model, parameters) = random_model(&config, DType::F64);
    let (inputs, targets) = (ids(2, 5, 11), ids(2, 5, 10));
    let documents = Tensor::new(&[[0u32, 0, 1, 1, 1], [4, 4, 4, 4, 5]], &Device::Cpu).unwrap();
    let context = ForwardContext { documents: Some(documents), ..context(SOURCE) };
    check_gradients(&parameters.vars(), || model.loss_with(&inputs, &targets, &Default::default(), &context));
}

/// A document gives what it would give alone, positions aside: here it stands first.
#[test]
fn documents_do_not_see_each_other() {
    let (model, _) = random_model(&tiny(), DType::F64);
    let documents = Tensor::new(&[[0u32, 0, 0, 1, 1]], &Device::Cpu).unwrap();
    let context = ForwardContext { documents: Some(documents), ..Default::default() };
    let with = |first: &[u32], last: &[u32]| {
        let ids = Tensor::new([first, last].concat(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = model.forward_with(&ids, &context).unwrap();
        (values(&logits.narrow(1, 0, 3).unwrap()), values(&logits.narrow(1, 3, 2).unwrap()))
    };
    let (one, other) = (with(&[1, 2, 3], &[4, 5]), with(&[6, 7, 8], &[4, 5]));
    assert!(one.0 != other.0 && one.1 == other.1);
}

/// A text and a model of it with this dropout.
fn start(dropout: f64, options: &TrainOptions, store: IdsStore) -> (Tokenizer, Trainer) {
    let documents = [Document::new("numbers", "one two three four five six seven eight nine ten. ".repeat(40))];
    let (validation, choice) = (Validation::Fraction(0.1), TokenizerChoice::Characters);
    let (tokenizer, corpus) =
        prepare(&documents, &validation, &choice, TextOptions::default(), store, &mut |_| {}).unwrap();
    let dropout = DropoutRates::all(dropout);
    let config = ModelConfig { dropout, vocab_size: tokenizer.vocab_size(), context_len: 13, ..tiny() };
    let trainer = Trainer::new(&config, options, corpus, &Device::Cpu).unwrap();
    (tokenizer, trainer)
}

fn options(steps: u64) -> TrainOptions {
    TrainOptions { steps, batch: 5, warmup: 0.25, eval_every: Some(4), ..Default::default() }
}

fn trained(dropout: f64, shards: usize, threads: usize) -> (Trainer, Vec<f64>) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let options = TrainOptions { shards, ..options(12) };
        let (_, mut trainer) = start(dropout, &options, IdsStore::Temporary);
        let mut step = || trainer.step(&trainer.next_batch().unwrap()).unwrap().loss;
        let losses = (0..options.steps).map(|_| step()).collect();
        (trainer, losses)
    })
}

#[test]
fn what_is_dropped_does_not_depend_on_shards_and_threads() {
    let (_, one) = trained(0.3, 1, 1);
    let (_, without) = trained(0.0, 1, 1);
    assert!(one.iter().zip(&without).all(|(a, b)| (a - b).abs() > 1e-5), "{one:?} {without:?}");
    for shards in [2, 5] {
        let (_, sharded) = trained(0.3, shards, 1);
        assert_eq!(sharded, trained(0.3, shards, 5).1);
        for (loss, expected) in sharded.iter().zip(&one) {
            assert!((loss - expected).abs() < 1e-4, "{shards} shards: {sharded:?}, expected {one:?}");
        }
    }
}

#[test]
fn evaluation_drops_nothing() {
    let (trainer, _) = trained(0.3, 1, 1);
    let parameters = Parameters::restored(trainer.weights()).unwrap();
    let without = ModelConfig { dropout: DropoutRates::default(), ..trainer.config().clone() };
    let model = CausalLm::new(&without, parameters.frozen(DType::F32, &Device::Cpu)).unwrap();
    let ids = ids(2, 5, 11);
    assert_eq!(values(&model.forward(&ids).unwrap()), values(&trainer.model().forward(&ids).unwrap()));
}

/// Trains to the end or to step `stop`, and gives the losses.
fn losses(run: &mut RunDir, trainer: &mut Trainer, stop: Option<u64>) -> (Outcome, Vec<f64>) {
    let mut losses = vec![];
    let outcome = train(trainer, Some(run), &mut |event| match event {
        Event::Step(report) => {
            losses.push(report.loss);
            if Some(report.step) == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
        _ => ControlFlow::Continue(()),
    });
    (outcome.unwrap(), losses)
}

#[test]
fn a_run_with_dropout_is_resumed_to_the_last_bit() {
    let space = tempfile::tempdir().unwrap();
    let begin = |name: &str| {
        let mut run = RunDir::create(&space.path().join(name)).unwrap();
        let (tokenizer, trainer) = start(0.2, &options(11), IdsStore::File(&run.ids_path()));
        run.begin(&tokenizer, &trainer, &Default::default()).unwrap();
        (run, trainer)
    };
    let bits = |trainer: &Trainer| -> BTreeMap<String, Vec<f64>> {
        trainer.weights().into_iter().map(|(name, weight)| (name, values(&weight))).collect()
    };
    let (mut run, mut whole) = begin("whole");
    let (_, expected) = losses(&mut run, &mut whole, None);

    let (mut run, mut part) = begin("part");
    let (outcome, mut pieces) = losses(&mut run, &mut part, Some(6));
    assert_eq!(outcome, Outcome::Interrupted);
    drop((run, part));
    let root = space.path().join("part");
    let (mut part, mut run, damaged) = resume(&root, &Default::default(), &Device::Cpu, &mut |_| {}).unwrap();
    assert!(damaged.is_empty());
    assert_eq!(part.config().dropout, DropoutRates::all(0.2));
    pieces.extend(losses(&mut run, &mut part, None).1);
    assert_eq!(pieces, expected);
    assert_eq!(bits(&part), bits(&whole));
}

#[test]
fn rates_are_those_of_hugging_faces_configuration() {
    let rates = DropoutRates { embedding: 0.1, attention: 0.25, residual: 0.5 };
    let config = ModelConfig { dropout: rates, ..tiny() };
    let json = config.to_json().unwrap();
    for key in ["\"embd_pdrop\": 0.1", "\"attn_pdrop\": 0.25", "\"resid_pdrop\": 0.5"] {
        assert!(json.contains(key), "{json}");
    }
    assert_eq!(ModelConfig::from_json(json.as_bytes()).unwrap(), config);
    // Absent, they are transformers' defaults.
    let absent = json.replace("\"attn_pdrop\": 0.25,", "");
    assert_eq!(ModelConfig::from_json(absent.as_bytes()).unwrap().dropout.attention, 0.1);
    for rate in [-0.1, 1.0, f64::NAN] {
        let error = ModelConfig { dropout: DropoutRates::all(rate), ..tiny() }.validate().unwrap_err().to_string();
        assert!(error.contains("expected embedding dropout from 0 to below 1"), "{error}");
    }
}
