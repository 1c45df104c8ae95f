//! Bits per byte: of models with known predictions, with every kind of tokenizer, and as the command prints them.

use std::collections::BTreeMap;

use candle_attention::evaluate::evaluate;
use candle_attention::model::ModelConfig;
use candle_attention::text::{
    Corpus, CorpusOptions, Document, Rest, Tokenizer, TokenizerChoice, Validation, prepare, windows,
};
use candle_attention::train::{TrainOptions, Trainer};
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
    let options = CorpusOptions::in_memory(CONTEXT_LEN);
    let cut = Validation::Documents(vec![validation.clone()]);
    let (tokenizer, corpus) = prepare(documents, &cut, choice, &options, &mut |_| {}).unwrap();
    let mut trainer = uniform(&tokenizer, corpus.clone());
    let to_the_end = windows(&corpus.validation, CONTEXT_LEN, 3, Rest::Keep).unwrap();
    let to_the_end = evaluate(trainer.model(), to_the_end, &Device::Cpu).unwrap();
    let bits = [
        trainer.validate().unwrap().validation_bits_per_byte,
        to_the_end.bits_per_byte(corpus.validation.len(), corpus.validation_bytes),
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
    let (train, validation) = (text(20_000), text(4000));
    let expected = 4000.0 / validation.len() as f64;
    let documents = [Document::new("train", train)];
    let cut = Validation::Documents(vec![Document::new("validation", validation)]);
    for choice in [TokenizerChoice::Characters, TokenizerChoice::Bytes, TokenizerChoice::Bpe(259)] {
        let options = CorpusOptions::in_memory(CONTEXT_LEN);
        let (tokenizer, corpus) = prepare(&documents, &cut, &choice, &options, &mut |_| {}).unwrap();
        let config = ModelConfig {
            context_len: CONTEXT_LEN,
            embed_dim: 48,
            hidden_dim: 96,
            ..ModelConfig { vocab_size: tokenizer.vocab_size(), ..crate::model::tiny() }
        };
        let options = TrainOptions { learning_rate: 1e-2, batch_size: 16, steps: 400, ..Default::default() };
        let mut trainer = Trainer::new(&config, &options, corpus, &Device::Cpu).unwrap();
        for _ in 0..options.steps {
            trainer.train_step().unwrap();
        }
        let got = trainer.validate().unwrap().validation_bits_per_byte;
        assert!((got - expected).abs() < 0.02, "{choice:?}: {got}, expected {expected}");
    }
}

/// The values that `attn eval` and the metrics give, computed from the loss, the tokens and the bytes.
#[cfg(feature = "cli")]
#[test]
fn the_command_prints_bits_per_byte() {
    let space = crate::command::Space::new();
    space.write("a.txt", "A ação não é só pão.\n".repeat(21).as_bytes());
    space.write("b.txt", "não é o gato\n".repeat(8).as_bytes());
    space.write("one.txt", b"A");
    let small = "--layers 1 --heads 2 --dim 16 --context 16 --batch 4 --steps 6 --eval-every 6";
    space.works(&format!("train a.txt b.txt --validation-fraction 0.2 {small} --tokenizer bpe:270 --out run"));

    let number = |text: &str| -> f64 { text.split_whitespace().next().unwrap().parse().unwrap() };
    let labelled = |printed: &str, label: &str| {
        let line = printed.lines().find_map(|line| line.strip_prefix(label));
        number(line.unwrap_or_else(|| panic!("{label}: {printed}")))
    };
    // Tokens that are predicted, all but the first of each text.
    let tokenizer = Tokenizer::from_file(space.path("run")).unwrap();
    let lens = ["a.txt", "b.txt"].map(|name| {
        let text = std::fs::read_to_string(space.path(name)).unwrap();
        (tokenizer.encode(&text).unwrap().len() as f64, text.len() as f64)
    });
    let bits = |loss: f64, (tokens, bytes): (f64, f64)| loss / std::f64::consts::LN_2 * tokens / bytes;
    // Printed with four digits.
    let assert_near = |got: f64, expected: f64| assert!((got - expected).abs() < 2e-4, "{got}, expected {expected}");

    let one = space.works("eval run a.txt");
    assert!(one.contains(&format!("{} predicted, in {} bytes", lens[0].0 - 1.0, lens[0].1)), "{one}");
    let expected = bits(labelled(&one, "loss"), lens[0]);
    assert!(expected > 1.0);
    assert_near(labelled(&one, "bits per byte"), expected);

    // A text with nothing to predict is left out.
    let output = space.attn("eval run a.txt one.txt b.txt");
    let (printed, told) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && told.contains("left out, as it has 1 token: one.txt"), "{told}");
    let row = |name: &str| -> Vec<f64> {
        let line = printed.lines().find(|line| line.ends_with(name)).unwrap();
        line.split_whitespace().take(3).map(number).collect()
    };
    let rows = [row("a.txt"), row("b.txt")];
    for (row, lens) in rows.iter().zip(lens) {
        assert_near(row[2], bits(row[0], lens));
    }
    assert!(printed.contains("all 2 texts:") && !printed.contains("one.txt"), "{printed}");
    let total: f64 = rows.iter().zip(lens).map(|(row, lens)| bits(row[0], lens) * lens.1).sum();
    assert_near(labelled(&printed, "bits per byte"), total / (lens[0].1 + lens[1].1));
    space.refuses("eval run one.txt", "expected a text of at least 2 tokens, got 1: one.txt");
    assert_eq!(space.attn("eval run one.txt one.txt").status.code(), Some(2));

    // The metrics have all digits.
    let ids = Corpus::open(&space.path("run/training/ids.safetensors"), &mut |_| {}).unwrap();
    let held_out = (ids.validation.len() as f64, ids.validation_bytes as f64);
    assert_eq!(held_out.1, tokenizer.decode_bytes(&ids.validation.to_vec().unwrap()).unwrap().len() as f64);
    let metrics = std::fs::read_to_string(space.path("run/training/metrics.jsonl")).unwrap();
    let mut lines = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let line = lines.find(|line| line["validation_loss"].is_number()).unwrap();
    let (got, loss) = (line["validation_bits_per_byte"].as_f64().unwrap(), line["validation_loss"].as_f64().unwrap());
    assert!((got - bits(loss, held_out)).abs() < 1e-12, "{got}");
}
