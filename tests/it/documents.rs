//! Isolation of documents that share a window.

use std::ops::ControlFlow;

use candle_attention::model::{CausalLm, ForwardContext, ModelConfig};
use candle_attention::nn::Parameters;
use candle_attention::text::{
    Batch, Corpus, Document, Ids, IdsStore, TextOptions, Tokenizer, Validation, encode, prepare, windows,
};
use candle_attention::train::{TrainOptions, Trainer};
use candle_core::{DType, Device, Tensor};

const END: u32 = 10;

const CONTEXT: usize = 13;

fn config(vocab_size: usize) -> ModelConfig {
    ModelConfig {
        context_len: CONTEXT,
        embed_dim: 12,
        num_heads: 3,
        num_layers: 2,
        hidden_dim: 20,
        ..ModelConfig::gpt2(vocab_size)
    }
}

/// A batch of one window that begins with these ids.
fn batch(first: [u32; 5], separator: Option<u32>) -> Batch {
    let ids = Ids::from([&first[..], &[END, 3, 1, 4, 1, END, 5, 9, 2]].concat());
    windows(&ids, (1, CONTEXT), true, separator, &Device::Cpu).unwrap().next().unwrap().unwrap()
}

/// The logits of a batch, (B, T, V).
fn logits(model: &CausalLm, batch: &Batch) -> Tensor {
    let context = ForwardContext { documents: batch.documents.clone(), ..Default::default() };
    model.forward_with(&batch.inputs, &context).unwrap()
}

#[test]
fn what_stands_in_one_leaves_another_as_it_is_to_the_last_bit() {
    let parameters = Parameters::new(3);
    let model = CausalLm::new(&config(11), parameters.var_builder(DType::F32, &Device::Cpu)).unwrap();
    // The logits of the positions in a range, bit by bit.
    let bits = |first: [u32; 5], separator, range: std::ops::Range<usize>| -> Vec<u32> {
        let logits = logits(&model, &batch(first, separator)).narrow(1, range.start, range.len()).unwrap();
        logits.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    let (one, other, later) = ([1, 2, 3, 4, 5], [9, 8, 7, 7, 0], 6..CONTEXT);
    assert_eq!(bits(one, Some(END), later.clone()), bits(other, Some(END), later.clone()));
    assert_ne!(bits(one, None, later.clone()), bits(other, None, later.clone()));
    assert_ne!(bits(one, Some(END), later.clone()), bits(one, None, later));
    // The first document is the same either way, and the end of text belongs to it.
    assert_eq!(bits(one, Some(END), 0..6), bits(one, None, 0..6));
    assert_ne!(bits(one, Some(END), 0..6), bits(other, Some(END), 0..6));
}

fn data() -> (Tokenizer, Corpus) {
    let documents: Vec<Document> =
        (0..40).map(|i| Document::new(format!("{i}"), "one two three. ".repeat(1 + i % 3))).collect();
    let (validation, choice) = (Validation::Fraction(0.3), "char".parse().unwrap());
    prepare(&documents, &validation, &choice, TextOptions::default(), IdsStore::Temporary, &mut |_| {}).unwrap()
}

fn options(isolate_documents: bool) -> TrainOptions {
    TrainOptions { steps: 5, batch: 3, warmup: 0.2, lr: 1e-2, isolate_documents, ..Default::default() }
}

fn validation_loss(trainer: &mut Trainer) -> f64 {
    trainer.validate(&mut |_, _| ControlFlow::Continue(())).unwrap().unwrap().loss
}

/// The mean loss over the validation part by candle's own function, in `f64` from the logits on.
fn expected_loss(trainer: &Trainer, separator: Option<u32>) -> f64 {
    let (mut nats, mut tokens) = (0.0, 0);
    for batch in windows(&trainer.corpus().validation, (4, CONTEXT), true, separator, &Device::Cpu).unwrap() {
        let batch = batch.unwrap();
        let logits = logits(trainer.model(), &batch).flatten_to(1).unwrap().to_dtype(DType::F64).unwrap();
        let loss = candle_nn::loss::cross_entropy(&logits, &batch.targets.flatten_all().unwrap()).unwrap();
        nats += loss.to_scalar::<f64>().unwrap() * batch.tokens() as f64;
        tokens += batch.tokens();
    }
    nats / tokens as f64
}

#[test]
fn training_and_validation_keep_them_apart() {
    let (tokenizer, corpus) = data();
    let run = |isolate_documents: bool| {
        let config = config(tokenizer.vocab_size());
        let mut trainer = Trainer::new(&config, &options(isolate_documents), corpus.clone(), &Device::Cpu).unwrap();
        let losses: Vec<f64> = (0..5)
            .map(|_| {
                let batch = trainer.next_batch().unwrap();
                trainer.step(&batch).unwrap().loss
            })
            .collect();
        let validated = validation_loss(&mut trainer);
        let [apart, together] = [corpus.separator, None].map(|separator| expected_loss(&trainer, separator));
        let (expected, other) = if isolate_documents { (apart, together) } else { (together, apart) };
        // The loss of a token is computed from some 20 logits in `f32`; sums of them are rounded a few times more.
        let tolerance = 32.0 * f64::from(f32::EPSILON) * expected;
        assert!((validated - expected).abs() < tolerance, "{validated}, expected {expected} ± {tolerance}");
        assert!((validated - other).abs() > 10.0 * tolerance, "{validated} is also near {other}");
        losses
    };
    assert_ne!(run(true), run(false));
}

/// As with a model to start from whose own end of text is not the token that was written.
#[test]
fn documents_are_isolated_by_the_token_written_between_them() {
    let (tokenizer, corpus) = data();
    let end = tokenizer.end_of_text_id();
    let losses = |end_of_text_id: Option<u32>, isolate_documents| {
        let config = ModelConfig { end_of_text_id, ..config(tokenizer.vocab_size()) };
        let mut trainer = Trainer::new(&config, &options(isolate_documents), corpus.clone(), &Device::Cpu).unwrap();
        let batch = trainer.next_batch().unwrap();
        (trainer.step(&batch).unwrap().loss, validation_loss(&mut trainer))
    };
    let isolated = losses(end, true);
    assert_ne!(isolated, losses(end, false));
    for other in [None, Some(0), Some(3)] {
        assert_eq!(losses(other, true), isolated, "{other:?}");
    }
}

#[test]
fn documents_that_cannot_be_isolated_are_refused() {
    let text = "one two three. ".repeat(9);
    let documents = ["one", "two"].map(|name| Document::new(name, text.clone()));
    let refused = |documents: &[Document], end_of_text| {
        let tokenizer = Tokenizer::characters(&[&text], end_of_text).unwrap();
        let validation = Validation::Fraction(0.3);
        let corpus =
            encode(&tokenizer, documents, &validation, TextOptions::default(), IdsStore::Temporary, &mut |_| {})
                .unwrap();
        let config = config(tokenizer.vocab_size());
        Trainer::new(&config, &options(true), corpus, &Device::Cpu).err().map(|error| error.to_string())
    };
    let expected = "isolate-documents: expected several documents and a tokenizer with an end-of-text token, got none";
    assert_eq!(refused(&documents[..1], true).as_deref(), Some(expected));
    assert_eq!(refused(&documents, false).as_deref(), Some(expected));
    assert_eq!(refused(&documents, true), None);
}
