//! Conversations: as text, as data and in generation.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use candle_attention::generate::{AnswerEnd, Chat, Continuation, Pipeline, SamplingOptions};
use candle_attention::model::{ForwardContext, ModelConfig, load_weights};
use candle_attention::ops::CrossEntropyOptions;
use candle_attention::text::{
    Batch, ChatTemplate, Corpus, Document, IdsStore, Message, TextOptions, Tokenizer, Validation, encode, windows,
};
use candle_attention::train::{OptimizerKind, RunDir, TrainOptions, Trainer, evaluate};
use candle_core::Device;
use serde_json::Value;
use tempfile::TempDir;

use crate::training::{resume, run_in, weights as weights_of};

const TEMPLATES: &str = include_str!("../fixtures/chat_templates.json");

#[test]
fn conversations_read_as_transformers_writes_them() {
    let fixture: Value = serde_json::from_str(TEMPLATES).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let tokens = fixture["special_tokens"].as_object().unwrap();
    let tokens: BTreeMap<String, String> = tokens.iter().map(|(name, token)| (name.clone(), text(token))).collect();
    let mut compared = 0;
    for case in fixture["cases"].as_array().unwrap() {
        let template = text(&fixture["templates"][text(&case["template"])]);
        let template = ChatTemplate::new(&template, tokens.clone()).unwrap();
        let messages = fixture["conversations"][text(&case["conversation"])].as_array().unwrap();
        let messages: Vec<Message> =
            messages.iter().map(|message| Message::new(text(&message["role"]), text(&message["content"]))).collect();
        let written = template.render(&messages, case["add_generation_prompt"] == true);
        match case["error"].as_str() {
            Some(error) => assert!(written.unwrap_err().to_string().ends_with(error), "{case}"),
            None => {
                assert_eq!(written.unwrap_or_else(|error| panic!("{error}: {case}")), text(&case["text"]), "{case}")
            }
        }
        compared += 1;
    }
    assert_eq!(compared, 126);
}

/// A model, three conversations, and what transformers makes of them.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/chat");

fn expected() -> Value {
    let text = std::fs::read_to_string(Path::new(FOLDER).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The folder, with the template that marks the assistant's turns itself or with that which does not.
fn folder(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(Path::new(FOLDER).join(file), dir.path().join(file)).unwrap();
    }
    if name == "generation" {
        let template = expected()["generation_template"].as_str().unwrap().to_string();
        std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    }
    dir
}

fn conversations() -> Document {
    Document::open(Path::new(FOLDER).join("conversations.jsonl")).unwrap()
}

fn corpus(tokenizer: &Tokenizer) -> Corpus {
    encode(
        tokenizer,
        &[conversations()],
        &Validation::Fraction(0.0),
        TextOptions::default(),
        IdsStore::Temporary,
        &mut |_| {},
    )
    .unwrap()
}

#[test]
fn ids_turns_and_losses_of_conversations_are_those_of_transformers() {
    for name in ["plain", "generation"] {
        let (expected, dir) = (&expected()[name], folder(name));
        let Pipeline { model, tokenizer, .. } = Pipeline::open(dir.path(), &Device::Cpu).unwrap();
        let corpus = corpus(&tokenizer);
        let numbers = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
        let (mut ids, mut learned) = (vec![], vec![]);
        for (one, mask) in expected["ids"].as_array().unwrap().iter().zip(expected["learned"].as_array().unwrap()) {
            ids.extend(numbers(one).into_iter().chain(corpus.separator));
            learned.extend(numbers(mask).into_iter().chain([0]));
        }
        assert_eq!(corpus.train.to_vec().unwrap(), ids, "{name}");
        let batch =
            windows(&corpus.train, (1, ids.len() - 1), true, None, &Device::Cpu).unwrap().next().unwrap().unwrap();
        let targets: Vec<u32> = batch.targets.flatten_all().unwrap().to_vec1().unwrap();
        let counting: Vec<u32> = targets.iter().map(|target| u32::from(*target != Batch::IGNORED)).collect();
        assert_eq!(counting, learned[1..], "{name}");
        for (separator, key) in [(None, "together"), (corpus.separator, "isolated")] {
            let go_on = &mut |_, _| ControlFlow::Continue(());
            let got = evaluate(&model, &corpus.train, false, separator, go_on).unwrap().unwrap();
            assert_eq!(got.tokens as u64, expected[key]["tokens"], "{name}, {key}");
            let loss = expected[key]["loss"].as_f64().unwrap();
            assert!((got.loss - loss).abs() < 1e-5, "{name}, {key}: {} and {loss}", got.loss);
        }
    }
}

/// A trainer on the conversations, in windows of 17.
fn trainer(options: TrainOptions) -> Trainer {
    let Pipeline { model, tokenizer, .. } = Pipeline::open(Path::new(FOLDER), &Device::Cpu).unwrap();
    let config = ModelConfig { context_len: 17, ..model.config().clone() };
    let weights = load_weights(Path::new(FOLDER), &config, &Device::Cpu).unwrap();
    Trainer::from_weights(weights, &config, &options, corpus(&tokenizer), &Device::Cpu).unwrap()
}

fn options() -> TrainOptions {
    TrainOptions { batch: 7, steps: 3, shards: 1, warmup: 0.0, ..Default::default() }
}

/// The shards of a batch have different numbers of targets that count; each weighs as much as every other.
#[test]
fn every_target_that_counts_weighs_the_same_wherever_a_batch_is_cut() {
    let step = |options: TrainOptions| {
        let mut trainer = trainer(options);
        let batch = trainer.next_batch().unwrap();
        let counting: Vec<usize> = (0..7).map(|i| batch.narrow(i, 1).unwrap().learned().unwrap()).collect();
        assert!(counting.iter().min() != counting.iter().max(), "{counting:?}");
        let (mut nats, mut learned) = (0.0, 0);
        for (i, count) in counting.iter().enumerate() {
            let one = batch.narrow(i, 1).unwrap();
            let options = CrossEntropyOptions { ignore_index: Some(Batch::IGNORED.into()), ..Default::default() };
            let context = ForwardContext::default();
            let loss = trainer.model().loss_with(&one.inputs, &one.targets, &options, &context).unwrap();
            nats += f64::from(loss.to_scalar::<f32>().unwrap()) * *count as f64;
            learned += count;
        }
        let report = trainer.step(&batch).unwrap();
        assert!((report.loss - nats / learned as f64).abs() < 1e-5, "{} and {}", report.loss, nats / learned as f64);
        report
    };
    let whole = step(options());
    for cut in [TrainOptions { shards: 3, ..options() }, TrainOptions { accumulate: 4, shards: 2, ..options() }] {
        let report = step(cut);
        assert!((report.loss - whole.loss).abs() < 1e-5 * whole.loss, "{} and {}", report.loss, whole.loss);
        let (got, expected) = (report.gradient_norm, whole.gradient_norm);
        assert!((got - expected).abs() < 1e-5 * expected, "{got} and {expected}");
    }
}

#[test]
fn a_batch_in_which_nothing_counts_has_a_loss_of_0_and_does_no_harm() {
    for optimizer in [OptimizerKind::Muon, OptimizerKind::AdamW] {
        let mut trainer = trainer(TrainOptions { optimizer, shards: 2, ..options() });
        let batch = trainer.next_batch().unwrap();
        let nothing = (batch.targets.zeros_like().unwrap() + f64::from(Batch::IGNORED)).unwrap();
        let silent = Batch { targets: nothing, ..batch.clone() };
        assert_eq!((silent.learned().unwrap(), silent.tokens()), (0, 7 * 17));
        trainer.step(&batch).unwrap();
        let report = trainer.step(&silent).unwrap();
        assert_eq!((report.loss, report.gradient_norm), (0.0, 0.0), "{optimizer:?}");
        assert!(trainer.step(&batch).unwrap().loss.is_finite(), "{optimizer:?}");
    }
}

#[test]
fn a_run_on_conversations_that_is_stopped_and_resumed_ends_as_one_that_is_not() {
    let options = TrainOptions { steps: 6, shards: 2, isolate_documents: true, eval_every: Some(2), ..options() };
    let end = |stop: Option<u64>| {
        let dir = tempfile::tempdir().unwrap();
        let mut run = RunDir::create(dir.path()).unwrap();
        let (documents, validation) = ([conversations()], Validation::Documents(vec![conversations()]));
        let Pipeline { model, tokenizer, .. } = Pipeline::open(Path::new(FOLDER), &Device::Cpu).unwrap();
        let store = IdsStore::File(&run.ids_path());
        let corpus = encode(&tokenizer, &documents, &validation, TextOptions::default(), store, &mut |_| {}).unwrap();
        let weights = load_weights(Path::new(FOLDER), model.config(), &Device::Cpu).unwrap();
        let mut trainer = Trainer::from_weights(weights, model.config(), &options, corpus, &Device::Cpu).unwrap();
        run.begin(&tokenizer, &trainer, &toml::Table::new()).unwrap();
        let mut losses = vec![];
        if stop.is_some() {
            losses.extend(run_in(&mut run, &mut trainer, stop).1);
            drop(run);
            (run, trainer) = resume(dir.path(), "").unwrap();
        }
        losses.extend(run_in(&mut run, &mut trainer, None).1);
        (losses, weights_of(&trainer), trainer.best().unwrap().loss.to_bits())
    };
    assert_eq!(end(Some(3)), end(None));
}

#[test]
fn a_chat_answers_as_transformers_does_and_ends_its_turns() {
    let pipeline = Pipeline::open(Path::new(FOLDER), &Device::Cpu).unwrap();
    let mut chat = Chat::new(&pipeline, Some("You grow beans.")).unwrap();
    let sampling = SamplingOptions { temperature: 0.0, ..Default::default() };
    let greedy = Continuation { sampling, max_tokens: 24, ..Default::default() };
    let ask = |chat: &mut Chat, question: &str, how: &Continuation| {
        let mut answer = String::new();
        let end = chat.answer(question, how, &mut |text| {
            answer.push_str(text);
            ControlFlow::Continue(())
        });
        end.map(|end| (answer, end))
    };
    for (question, expected) in ["When?", "Where?"].into_iter().zip(expected()["answers"].as_array().unwrap()) {
        let (answer, end) = ask(&mut chat, question, &greedy).unwrap();
        assert_eq!((answer.as_str(), end), (expected.as_str().unwrap(), AnswerEnd::Turn));
    }
    assert_eq!(chat.messages().len(), 5);
    // The context is of 72 tokens.
    let error = ask(&mut chat, &"Where? ".repeat(20), &greedy).unwrap_err().to_string();
    assert!(error.contains("the context is full") && error.ends_with("the model reads 72; start a new one"), "{error}");
    assert_eq!(chat.messages().len(), 5);
    let mut other = Chat::new(&pipeline, None).unwrap();
    let short = Continuation { max_tokens: 2, ..greedy.clone() };
    assert_eq!(ask(&mut other, "Which colour?", &short).unwrap().1, AnswerEnd::MaxTokens);
    let mut long = Chat::new(&pipeline, None).unwrap();
    let (answer, end) = ask(&mut long, &"z".repeat(55), &Continuation { max_tokens: 99, ..greedy }).unwrap();
    assert_eq!(end, AnswerEnd::Context, "{answer}");
    let plain = Pipeline::new(pipeline.model.clone(), Tokenizer::bytes(true).unwrap());
    let error = Chat::new(&plain, None).unwrap_err().to_string();
    assert!(
        error.contains("the model has no chat template: expected chat_template in tokenizer_config.json"),
        "{error}"
    );
}
