//! The token that ends a text: the model's configuration names it, else that of the tokenizer, else its usual name; and
//! the same token separates documents in training, ends a sample and is saved.

use std::ops::ControlFlow;
use std::path::Path;

use candle_attention::generate::{Pipeline, Sampler, SamplingOptions, generate};
use candle_attention::model::CausalLm;
use candle_attention::nn::Parameters;
use candle_attention::text::{Document, IdsStore, TextOptions, Validation, encode};
use candle_attention::train::{RunDir, TrainOptions, Trainer};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

const CPU: Device = Device::Cpu;

/// The token `<|endoftext|>`, found by its name, and two that only a configuration names.
const BY_NAME: u32 = 4;
const OF_THE_TOKENIZER: u32 = 5;
const OF_THE_MODEL: u32 = 6;

/// Writes the configurations and the tokenizer of a model of seven tokens; null is for a file that is not there.
fn write_folder(folder: &Path, model: Value, generation: Value, tokenizer: Value) {
    let mut config = json!({
        "model_type": "gpt2", "vocab_size": 7, "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 2,
        "eos_token_id": null, "tokenizer_class": "PreTrainedTokenizerFast"
    });
    config.as_object_mut().unwrap().extend(model.as_object().unwrap().clone());
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false
        })
    };
    let tokens = [(BY_NAME, "<|endoftext|>"), (OF_THE_TOKENIZER, "<|end|>"), (OF_THE_MODEL, "<|stop|>")];
    let tokenizer_json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null, "added_tokens": tokens.map(|(id, content)| special(id, content)),
        "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "c": 2, "\n": 3 }, "merges": [] }
    });
    for (name, content) in [
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer.json", tokenizer_json),
        ("tokenizer_config.json", tokenizer),
    ] {
        if !content.is_null() {
            std::fs::write(folder.join(name), content.to_string()).unwrap();
        }
    }
}

/// The ids that end a text, of which the first separates documents.
fn ends(model: Value, generation: Value, tokenizer: Value) -> Vec<u32> {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), model, generation, tokenizer);
    let (config, tokenizer) = Pipeline::open_config(folder.path()).unwrap();
    assert_eq!(config.end_of_text_id, tokenizer.end_of_text_id());
    let ends: Vec<u32> = config.end_of_text_id.into_iter().chain(config.other_end_ids.clone()).collect();
    assert!((0..7).all(|id| config.ends_text(id) == ends.contains(&id)));
    ends
}

#[test]
fn the_models_own_comes_first_then_the_tokenizers_then_a_usual_name() {
    let (none, absent) = (json!({}), Value::Null);
    let named = json!({ "eos_token": "<|end|>" });
    let own = json!({ "eos_token_id": OF_THE_MODEL });
    assert_eq!(ends(own.clone(), absent.clone(), named.clone()), [OF_THE_MODEL]);
    assert_eq!(ends(none.clone(), own, named.clone()), [OF_THE_MODEL]);
    assert_eq!(ends(json!({ "eos_token_id": [6, 2] }), absent.clone(), named.clone()), [OF_THE_MODEL, 2]);
    assert_eq!(ends(none.clone(), absent.clone(), named.clone()), [OF_THE_TOKENIZER]);
    assert_eq!(
        ends(none.clone(), absent.clone(), json!({ "eos_token": { "content": "<|end|>" } })),
        [OF_THE_TOKENIZER]
    );
    assert_eq!(ends(none.clone(), absent.clone(), json!({ "eos_token": null })), [BY_NAME]);
    assert_eq!(ends(none.clone(), absent.clone(), absent.clone()), [BY_NAME]);
    // GPT-2's 50256, which some published configurations keep with a smaller vocabulary.
    assert_eq!(ends(json!({ "eos_token_id": 50256 }), absent, named), [OF_THE_TOKENIZER]);
}

/// A model that predicts `id`, whatever the text.
fn predicting(id: u32, trainer: &Trainer) -> CausalLm {
    let (mut weights, config) = (trainer.weights(), trainer.config());
    let ones = Tensor::ones(config.embed_dim, DType::F32, &CPU).unwrap();
    let rows = (0..config.vocab_size as u32).map(|row| (&ones * f64::from(row == id)).unwrap());
    weights.insert("token_embedding.weight".into(), Tensor::stack(&rows.collect::<Vec<_>>(), 0).unwrap());
    weights.insert("norm.weight".into(), ones.zeros_like().unwrap());
    weights.insert("norm.bias".into(), ones);
    CausalLm::new(config, Parameters::restored(weights).unwrap().frozen(DType::F32, &CPU)).unwrap()
}

#[test]
fn what_separates_documents_in_further_training_ends_a_sample() {
    let space = tempfile::tempdir().unwrap();
    let documents: Vec<Document> = (0..9).map(|i| Document::new(format!("{i}"), "abcab\n")).collect();
    for (model, tokenizer, expected) in [
        (json!({ "eos_token_id": OF_THE_MODEL }), json!({ "eos_token": "<|end|>" }), OF_THE_MODEL),
        (json!({}), json!({ "eos_token": "<|end|>" }), OF_THE_TOKENIZER),
        (json!({}), Value::Null, BY_NAME),
    ] {
        let (base, root) = (tempfile::tempdir().unwrap(), space.path().join(expected.to_string()));
        write_folder(base.path(), model, Value::Null, tokenizer);
        let (config, tokenizer) = Pipeline::open_config(base.path()).unwrap();
        let mut run = RunDir::create(&root).unwrap();
        let (validation, store) = (Validation::Fraction(0.3), &run.ids_path());
        let corpus =
            encode(&tokenizer, &documents, &validation, TextOptions::default(), IdsStore::File(store), &mut |_| {})
                .unwrap();
        assert_eq!((corpus.separator, corpus.train.read(6..8).unwrap().to_vec()), (Some(expected), vec![expected, 0]));
        let trainer = Trainer::new(&config, &TrainOptions::default(), corpus, &CPU).unwrap();
        let sampled = |id| {
            let mut greedy = Sampler::new(SamplingOptions { temperature: 0.0, ..Default::default() }, 1, 0).unwrap();
            let model = predicting(id, &trainer);
            generate(&model, &[0], 3, &mut greedy, &mut |_| ControlFlow::Continue(())).unwrap()
        };
        for id in 0..7 {
            assert_eq!(sampled(id), if id == expected { vec![] } else { vec![id; 3] });
        }
        run.begin(&tokenizer, &trainer, &toml::Table::new()).unwrap();
        let saved = Pipeline::open(&root, &CPU).unwrap();
        assert_eq!(saved.model.config().end_of_text_id, Some(expected));
        assert_eq!(saved.tokenizer.end_of_text_id(), Some(expected));
    }
}
