//! Isolation of documents that share a window.

use std::ops::ControlFlow;

use candle_attention::evaluate::evaluate;
use candle_attention::model::{CausalLm, ForwardContext, ModelConfig};
use candle_attention::nn::Parameters;
use candle_attention::text::{
    Batch, Corpus, CorpusOptions, Document, Rest, Tokenizer, TokenizerChoice, Validation, prepare, windows,
};
use candle_attention::train::{TrainOptions, Trainer, overfit_one_batch};
use candle_core::{DType, Device, Tensor};

use crate::support::values;

const END: u32 = 10;

fn config(vocab_size: usize) -> ModelConfig {
    ModelConfig {
        context_len: 13,
        embed_dim: 12,
        num_heads: 3,
        num_layers: 2,
        hidden_dim: 20,
        end_of_text_id: Some(vocab_size as u32 - 1),
        ..ModelConfig::gpt2(vocab_size)
    }
}

/// A batch of one window that begins with these ids.
fn batch(first: [u32; 5], end_of_text_id: Option<u32>) -> Batch {
    let inputs = [&first[..], &[END, 3, 1, 4, 1, END, 5, 9]].concat();
    let targets = [&inputs[1..], &[2]].concat();
    Batch { inputs, targets, batch_size: 1, seq_len: 13, starts: vec![0], documents: None }
        .with_isolated_documents(end_of_text_id)
}

/// The logits of the positions after the first document.
fn later_logits(model: &CausalLm, batch: &Batch) -> Vec<f64> {
    let context = ForwardContext { documents: batch.documents_tensor(&Device::Cpu).unwrap(), ..Default::default() };
    let logits = model.forward_with(&batch.inputs_tensor(&Device::Cpu).unwrap(), &context).unwrap();
    values(&logits.narrow(1, 6, 7).unwrap())
}

#[test]
fn what_stands_in_one_leaves_another_as_it_is_to_the_last_bit() {
    let parameters = Parameters::new(3);
    let model = CausalLm::new(&config(11), parameters.var_builder(DType::F32, &Device::Cpu)).unwrap();
    let (one, other) = ([1, 2, 3, 4, 5], [9, 8, 7, 7, 0]);
    let apart = [one, other].map(|first| later_logits(&model, &batch(first, Some(END))));
    assert_eq!(apart[0], apart[1]);
    let together = [one, other].map(|first| later_logits(&model, &batch(first, None)));
    assert_ne!(together[0], together[1]);
    assert_ne!(apart[0], together[0]);

    // So does the loss of the later documents: what the first document adds is all that differs.
    let loss = |first: [u32; 5], targets: std::ops::Range<usize>| {
        let batch = batch(first, Some(END));
        let context = ForwardContext { documents: batch.documents_tensor(&Device::Cpu).unwrap(), ..Default::default() };
        let logits = model.forward_with(&batch.inputs_tensor(&Device::Cpu).unwrap(), &context).unwrap();
        let logits = logits.squeeze(0).unwrap().narrow(0, targets.start, targets.len()).unwrap();
        let targets = Tensor::new(&batch.targets[targets], &Device::Cpu).unwrap();
        candle_nn::loss::cross_entropy(&logits, &targets).unwrap().to_scalar::<f32>().unwrap().to_bits()
    };
    assert_eq!(loss(one, 6..13), loss(other, 6..13));
    assert_ne!(loss(one, 0..5), loss(other, 0..5));
}

fn data() -> (Tokenizer, Corpus) {
    let documents: Vec<Document> =
        (0..40).map(|i| Document::new(format!("{i}"), "one two three. ".repeat(1 + i % 3))).collect();
    let options = CorpusOptions::in_memory(13);
    prepare(&documents, &Validation::Fraction(0.3), &TokenizerChoice::Characters, &options, &mut |_| {}).unwrap()
}

#[test]
fn training_and_validation_keep_them_apart() {
    let (tokenizer, corpus) = data();
    let (config, end) = (config(tokenizer.vocab_size()), tokenizer.end_of_text_id());
    assert_eq!(config.end_of_text_id, end);
    let run = |isolate_documents| {
        let options =
            TrainOptions { steps: 5, batch_size: 3, warmup_steps: 1, isolate_documents, ..Default::default() };
        let mut trainer = Trainer::new(&config, &options, corpus.clone(), &Device::Cpu).unwrap();
        // The first step holds the recorded gradients against candle's graph.
        let losses: Vec<f64> = (0..5).map(|_| trainer.train_step().unwrap().loss).collect();
        let validated = trainer.validate().unwrap().validation_loss;
        let expected = |end: Option<u32>| {
            let windows = windows(&corpus.validation, 13, 4, Rest::Drop).unwrap();
            let apart = windows.map(|batch| Ok(batch?.with_isolated_documents(end)));
            evaluate(trainer.model(), apart, &Device::Cpu).unwrap().loss
        };
        assert!((validated - expected(end.filter(|_| isolate_documents))).abs() < 1e-6);
        assert!((validated - expected(end.filter(|_| !isolate_documents))).abs() > 1e-6);
        losses
    };
    assert_ne!(run(true), run(false));
}

/// As with a model to start from: its own end of text is not the token that the tokenizer writes.
#[test]
fn documents_are_isolated_by_the_token_written_between_them() {
    let (tokenizer, corpus) = data();
    let end = tokenizer.end_of_text_id();
    let losses = |end_of_text_id: Option<u32>, isolate_documents| {
        let options =
            TrainOptions { steps: 3, batch_size: 3, warmup_steps: 1, isolate_documents, ..Default::default() };
        let config = ModelConfig { end_of_text_id, ..config(tokenizer.vocab_size()) };
        let mut trainer = Trainer::new(&config, &options, corpus.clone(), &Device::Cpu).unwrap();
        let losses: Vec<f64> = (0..3).map(|_| trainer.train_step().unwrap().loss).collect();
        (losses, trainer.validate().unwrap().validation_loss)
    };
    let isolated = losses(end, true);
    assert_ne!(isolated, losses(end, false));
    for other in [None, Some(0), Some(3)] {
        assert_eq!(losses(other, true), isolated, "{other:?}");
    }
}

#[test]
fn documents_that_cannot_be_isolated_are_refused() {
    let isolate = TrainOptions { isolate_documents: true, ..Default::default() };
    let documents = ["one", "two"].map(|name| Document::new(name, "one two three. ".repeat(9)));
    let refused = |documents: &[Document]| {
        let tokenizer = Tokenizer::characters(&["one two three. "], false).unwrap();
        let options = CorpusOptions::in_memory(13);
        let corpus = Corpus::new(&tokenizer, documents, &Validation::Fraction(0.3), &options, &mut |_| {}).unwrap();
        let trainer = Trainer::new(&config(tokenizer.vocab_size()), &isolate, corpus, &Device::Cpu);
        trainer.err().unwrap().to_string()
    };
    assert!(refused(&documents[..1]).contains("isolate_documents expects several documents, got one"));
    let error = refused(&[&documents[..], &documents[..1]].concat());
    assert!(error.contains("expects an end-of-text token between documents, got a tokenizer without one"), "{error}");
}

/// With rotary positions, documents that begin alike are the same to the model wherever they are in the window: the
/// floor of the loss must know.
#[test]
fn a_batch_of_isolated_documents_is_overfitted_with_rotary_positions() {
    let (tokenizer, corpus) = {
        let documents: Vec<Document> =
            (0..40u8).map(|i| Document::new(format!("{i}"), format!("a{}", char::from(b'b' + i % 6)))).collect();
        let options = CorpusOptions::in_memory(13);
        prepare(&documents, &Validation::Fraction(0.3), &TokenizerChoice::Characters, &options, &mut |_| {}).unwrap()
    };
    let options = TrainOptions {
        steps: 400,
        batch_size: 3,
        warmup_steps: 5,
        learning_rate: 1e-2,
        isolate_documents: true,
        ..Default::default()
    };
    let sizes = config(tokenizer.vocab_size());
    let ModelConfig { context_len, embed_dim, num_heads, num_layers, hidden_dim, .. } = sizes;
    let llama = ModelConfig::llama(tokenizer.vocab_size());
    let config = ModelConfig { context_len, embed_dim, num_heads, num_layers, hidden_dim, ..llama };
    let mut trainer = Trainer::new(&config, &options.for_overfitting(), corpus, &Device::Cpu).unwrap();
    let report = overfit_one_batch(&mut trainer, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(report.lowest_possible > 0.3 && report.succeeded(), "{report:?}");
}

#[cfg(feature = "cli")]
#[test]
fn texts_without_a_token_between_them_are_reported() {
    let space = crate::command::Space::new();
    space.write("other.txt", "O gato correu. ".repeat(60).as_bytes());
    let text = std::fs::read_to_string(space.path("text.txt")).unwrap();
    std::fs::create_dir(space.path("plain")).unwrap();
    Tokenizer::characters(&[&text], false).unwrap().save(&space.path("plain"), 16).unwrap();
    let line = "train text.txt other.txt --layers 1 --heads 2 --dim 16 --context 16 --steps 2 --dry-run --tokenizer";
    let told = |tokenizer: &str| String::from_utf8(space.attn(&format!("{line} {tokenizer}")).stderr).unwrap();
    assert!(told("plain").contains("no end-of-text token: the texts follow one another"), "{}", told("plain"));
    assert!(!told("char").contains("end-of-text"));
    space.refuses(&format!("{line} plain --isolate-documents"), "got a tokenizer without one");
}

#[cfg(feature = "cli")]
#[test]
fn texts_to_validate_on_are_left_out_of_training() {
    let space = crate::command::Space::new();
    std::fs::create_dir(space.path("texts")).unwrap();
    space.write("texts/a.txt", "aaa bbb ".repeat(50).as_bytes());
    space.write("texts/val.txt", "abc abc ".repeat(20).as_bytes());
    let line =
        "--layers 1 --heads 2 --dim 16 --context 16 --batch 2 --steps 2 --dry-run --validation texts/../texts/val.txt";
    let output = space.attn(&format!("train texts {line}"));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("not trained on, as --validation has them: texts/val.txt"), "{told}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("400 tokens for training, 160 for validation"), "{printed}");
    space.refuses(&format!("train texts/val.txt {line}"), "texts to train on besides those of --validation, got none");
}
