//! Bits per byte: of models with known predictions, with every kind of tokenizer.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_attention::model::ModelConfig;
use candle_attention::text::{
    Corpus, Document, IdsStore, TextOptions, Tokenizer, TokenizerChoice, Validation, prepare,
};
use candle_attention::train::{Event, TrainOptions, Trainer, bits_per_byte, evaluate, train};
use candle_core::{DType, Device, Tensor};

const CONTEXT_LEN: usize = 7;

/// A model with all weights zero, for which all tokens are equally likely.
fn uniform(tokenizer: &Tokenizer, corpus: Corpus) -> Trainer {
    let config = ModelConfig {
        context_len: CONTEXT_LEN,
        end_of_text_id: tokenizer.end_of_text_id(),
        vocab_size: tokenizer.vocab_size(),
        ..crate::model::tiny()
    };
    let zeros = |(name, shape): (String, Vec<usize>)| (name, Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
    let weights: BTreeMap<String, Tensor> = config.parameters().into_iter().map(zeros).collect();
    Trainer::from_weights(weights, &config, &TrainOptions::default(), corpus, &Device::Cpu).unwrap()
}

/// In validation, which drops the last, incomplete window, and over the same text to its end.
fn measured(documents: &[Document], validation: &Document, choice: &TokenizerChoice) -> (Tokenizer, [f64; 2]) {
    let cut = Validation::Documents(vec![validation.clone()]);
    let (tokenizer, corpus) =
        prepare(documents, &cut, choice, TextOptions::default(), IdsStore::Temporary, &mut |_| {}).unwrap();
    let mut trainer = uniform(&tokenizer, corpus.clone());
    let ids = &corpus.validation;
    let go_on = &mut |_, _| ControlFlow::Continue(());
    let to_the_end = evaluate(trainer.model(), ids, false, None, go_on).unwrap().unwrap();
    assert_eq!(to_the_end.tokens, ids.len() - 1);
    let bits = [
        trainer.validate(go_on).unwrap().unwrap().bits_per_byte,
        bits_per_byte(to_the_end.loss, ids.len(), corpus.validation_bytes),
    ];
    (tokenizer, bits)
}

fn assert_bits(label: &str, got: [f64; 2], expected: f64) {
    for got in got {
        // The loss is a mean in f32.
        assert!((got - expected).abs() < 1e-6 * expected, "{label}: {got}, expected {expected}");
    }
}

/// Each of V equally likely tokens costs log2(V) bits.
#[test]
fn of_a_uniform_model_they_are_computed_by_hand() {
    let text = "mañã, 🦀 não; \n".repeat(23);
    let (chars, bytes) = (23.0 * 14.0, 23.0 * 20.0);
    assert_eq!((text.chars().count() as f64, text.len() as f64), (chars, bytes));
    let whole = Document::new("validation", text.clone());
    let train = [Document::new("train", text.clone())];

    // m a ñ ã , 🦀 n o ; a space and a line break.
    let (tokenizer, bits) = measured(&train, &whole, &TokenizerChoice::Characters);
    assert_eq!(tokenizer.vocab_size(), 11);
    assert_bits("char", bits, 11f64.log2() * chars / bytes);

    // A byte costs the 8 bits it has.
    let (_, bits) = measured(&train, &whole, &TokenizerChoice::Bytes);
    assert_bits("byte", bits, 8.0);

    let (tokenizer, bits) = measured(&train, &whole, &"bpe:261".parse().unwrap());
    let tokens = tokenizer.encode(&text).unwrap().len() as f64;
    assert!(tokens < bytes, "nothing is merged");
    assert_bits("bpe", bits, (tokenizer.vocab_size() as f64).log2() * tokens / bytes);

    // With several texts the ends count too, as tokens without bytes.
    let several = [train[0].clone(), Document::new("more", "não ".repeat(9))];
    let (tokenizer, bits) = measured(&several, &whole, &TokenizerChoice::Bytes);
    assert_eq!(tokenizer.vocab_size(), 257);
    assert_bits("byte, with an end", bits, 257f64.log2() * (bytes + 1.0) / bytes);
}

/// A text of two characters, chosen by coin tosses, has one bit per character whatever the tokens are: models of
/// characters, of bytes and of a BPE come equally close to that.
#[test]
fn models_that_know_the_same_have_the_same() {
    // A linear congruential generator's high bit, for a coin.
    let mut state = 1u64;
    let mut toss = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        if state >> 63 == 0 { 'a' } else { 'ß' }
    };
    let mut text = |len: usize| (0..len).map(|_| toss()).collect::<String>();
    let (learned, held_out) = (text(20_000), text(4000));
    let expected = 4000.0 / held_out.len() as f64;
    let documents = [Document::new("train", learned)];
    let cut = Validation::Documents(vec![Document::new("validation", held_out)]);
    for choice in [TokenizerChoice::Characters, TokenizerChoice::Bytes, TokenizerChoice::Bpe(259)] {
        let (tokenizer, corpus) =
            prepare(&documents, &cut, &choice, TextOptions::default(), IdsStore::Temporary, &mut |_| {}).unwrap();
        let config = ModelConfig {
            context_len: CONTEXT_LEN,
            embed_dim: 48,
            hidden_dim: 96,
            ..ModelConfig { vocab_size: tokenizer.vocab_size(), ..crate::model::tiny() }
        };
        let options = TrainOptions { lr: 1e-2, batch: 16, steps: 400, ..Default::default() };
        let mut trainer = Trainer::new(&config, &options, corpus, &Device::Cpu).unwrap();
        let mut got = f64::NAN;
        train(&mut trainer, None, &mut |event| {
            if let Event::Validation(report) = event {
                got = report.bits_per_byte;
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!((got - expected).abs() < 0.02, "{choice:?}: {got}, expected {expected}");
    }
}
