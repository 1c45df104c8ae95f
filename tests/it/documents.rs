//! Documents that share a window and are kept apart.

use candle_attention::evaluate::evaluate;
use candle_attention::model::{CausalLm, ForwardContext, ModelConfig};
use candle_attention::nn::Parameters;
use candle_attention::text::{
    Batch, Corpus, CorpusOptions, Document, Rest, Tokenizer, TokenizerChoice, Validation, prepare, windows,
};
use candle_attention::train::{TrainOptions, Trainer};
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

/// The logits of the positions behind the first document.
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

    let options = TrainOptions { isolate_documents: true, ..Default::default() };
    let undivided = ModelConfig { end_of_text_id: None, ..config.clone() };
    let error = Trainer::new(&undivided, &options, corpus.clone(), &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("isolate_documents expects several documents"), "{error}");
}
