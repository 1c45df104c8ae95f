//! GGUF files, read and written: see tests/fixtures/README.md.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_attention::generate::{Pipeline, export_folder, export_gguf};
use candle_attention::model::{CausalLm, GgufType, ModelConfig, load_weights};
use candle_attention::nn::{Parameters, RotaryScaling};
use candle_attention::text::{Document, IdsStore, TextOptions, Tokenizer, Validation, hide_caught_panics, prepare};
use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::support::max_difference;

#[derive(Deserialize)]
struct Expected {
    text: String,
    ids: Vec<u32>,
    loss: f32,
    last_logits: Vec<f32>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf")
}

fn fixture(name: &str) -> PathBuf {
    folder().join(format!("{name}.gguf"))
}

fn expected() -> BTreeMap<String, Expected> {
    serde_json::from_slice(&std::fs::read(folder().join("expected.json")).unwrap()).unwrap()
}

/// The five files have other architectures, quantisations and kinds of tokenizers each; ids and logits are those of
/// transformers.
#[test]
fn files_of_others_give_their_ids_and_logits() {
    for (name, expected) in expected() {
        let Pipeline { model, tokenizer, .. } = Pipeline::open(&fixture(&name), &Device::Cpu).unwrap();
        assert_eq!(tokenizer.encode_plain(&expected.text).unwrap(), expected.ids, "{name}");
        let begin = ["llama_spm_f32", "llama_bpe_q4_0"].contains(&name.as_str()).then(|| begin_of(&name));
        assert_eq!(
            tokenizer.encode(&expected.text).unwrap(),
            begin.into_iter().chain(expected.ids.clone()).collect::<Vec<_>>(),
            "{name}"
        );
        let all = Tensor::new(expected.ids, &Device::Cpu).unwrap();
        let (inputs, targets) = (all.narrow(0, 0, all.dim(0).unwrap() - 1), all.narrow(0, 1, all.dim(0).unwrap() - 1));
        let loss = model.loss(&inputs.unwrap().unsqueeze(0).unwrap(), &targets.unwrap().unsqueeze(0).unwrap()).unwrap();
        let loss = loss.to_scalar::<f32>().unwrap();
        assert!((loss - expected.loss).abs() < 1e-5 * expected.loss, "{name}: loss {loss}, expected {}", expected.loss);
        let logits = model.next_token_logits(&all.unsqueeze(0).unwrap()).unwrap().flatten_all().unwrap();
        let theirs = Tensor::new(expected.last_logits, &Device::Cpu).unwrap();
        let difference = max_difference(&logits, &theirs);
        assert!(difference < 1e-4, "{name}: logits differ by {difference}");
    }
}

fn begin_of(name: &str) -> u32 {
    ModelConfig::open(&fixture(name)).unwrap().begin_of_text_id.unwrap()
}

#[test]
fn the_configuration_has_the_special_tokens_of_the_file() {
    let special = |name: &str| {
        let config = ModelConfig::open(&fixture(name)).unwrap();
        (config.begin_of_text_id, config.end_of_text_id)
    };
    assert_eq!(special("gpt2_q8_0"), (None, Some(300)));
    assert_eq!(special("llama_spm_f32"), (Some(1), Some(2)));
    assert_eq!(special("llama_bpe_q4_0"), (Some(290), Some(292)));
    assert_eq!(Tokenizer::open(fixture("llama_smollm_q4_1")).unwrap().end_of_text_id(), Some(282));
}

/// A tokenizer of this crate's, and a model with random weights.
fn own(model: fn(usize) -> ModelConfig, choice: &str, documents: &[Document]) -> (ModelConfig, Tokenizer, Weights) {
    let none = &mut |_| {};
    let (validation, choice) = (Validation::Fraction(0.0), choice.parse().unwrap());
    let (tokenizer, _) =
        prepare(documents, &validation, &choice, TextOptions::default(), IdsStore::Temporary, none).unwrap();
    let config = ModelConfig {
        context_len: 16,
        embed_dim: 24,
        num_layers: 2,
        num_heads: 4,
        hidden_dim: 40,
        end_of_text_id: tokenizer.end_of_text_id(),
        ..model(tokenizer.vocab_size())
    };
    let parameters = Parameters::new(7);
    CausalLm::new(&config, parameters.var_builder(DType::F32, &Device::Cpu)).unwrap();
    let vars = parameters.vars().into_iter();
    let weights = vars.map(|(name, var)| (name, (var.as_tensor() + 0.25).unwrap().detach())).collect();
    (config, tokenizer, weights)
}

type Weights = BTreeMap<String, Tensor>;

fn grouped(vocab_size: usize) -> ModelConfig {
    ModelConfig {
        num_kv_heads: Some(2),
        tie_embeddings: false,
        bias: true,
        mlp_bias: true,
        ..ModelConfig::llama(vocab_size)
    }
}

fn wide(vocab_size: usize) -> ModelConfig {
    ModelConfig { num_kv_heads: Some(1), head_dim: Some(8), ..ModelConfig::qwen3(vocab_size) }
}

fn documents() -> Vec<Document> {
    let text = "O gato preto correu, e a gata não: 12 vezes — três!\n".repeat(9);
    vec![Document::new("a", text.clone()), Document::new("b", text)]
}

/// With a vocabulary of characters, bytes and a BPE, with and without an end of text.
#[test]
fn what_is_written_is_read_back() {
    let space = tempfile::tempdir().unwrap();
    let models: [fn(usize) -> ModelConfig; 3] = [ModelConfig::gpt2, grouped, wide];
    for (i, model) in models.into_iter().enumerate() {
        for (j, choice) in ["char", "byte", "bpe:290"].into_iter().enumerate() {
            for documents in [&documents()[..], &documents()[..1]] {
                let (config, tokenizer, weights) = own(model, choice, documents);
                for (kind, tolerance) in [(GgufType::F32, 0.0), (GgufType::F16, 2e-4), (GgufType::Q8_0, 2e-3)] {
                    let name = format!("{i}-{j}-{}-{kind:?}.gguf", documents.len());
                    let path = space.path().join(&name);
                    let notes = export_gguf(&path, (&config, &tokenizer), &weights, kind).unwrap().join(" ");
                    assert_eq!(notes.contains("end-of-text"), documents.len() == 1, "{name}: {notes}");
                    // Rows of 24 and 40 numbers.
                    assert_eq!(notes.contains("multiple of 32"), kind == GgufType::Q8_0, "{name}: {notes}");
                    let (read, again) = Pipeline::open_config(&path).unwrap();
                    assert_eq!(read.vocab_size, config.vocab_size);
                    assert_eq!((read.context_len, read.end_of_text_id), (16, config.end_of_text_id), "{name}");
                    assert_eq!(again.kind_name(), tokenizer.kind_name(), "{name}");
                    let text = "gato 12 três: não";
                    assert_eq!(again.encode(text).unwrap(), tokenizer.encode(text).unwrap(), "{name}");
                    let back = load_weights(&path, &ModelConfig { bias: config.bias, ..read }, &Device::Cpu).unwrap();
                    assert!(back.keys().eq(weights.keys()), "{name}");
                    for (tensor, weight) in &weights {
                        let difference = max_difference(&back[tensor], weight);
                        assert!(difference <= tolerance, "{name}: {tensor} differs by {difference}");
                    }
                }
            }
        }
    }
}

/// Llama 3's scaling is a tensor in the file, the others are keys. llama.cpp gives the logits of these files.
#[test]
fn rotary_scaling_is_written_and_read_back() {
    let space = tempfile::tempdir().unwrap();
    let yarn = |beta_fast, truncate| RotaryScaling::Yarn {
        factor: 4.0,
        original_positions: 8,
        beta_fast,
        beta_slow: 1.0,
        truncate,
        attention_factor: RotaryScaling::yarn_attention_factor(4.0),
    };
    let llama3 = |original_positions| RotaryScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_positions,
    };
    let linear = RotaryScaling::Linear { factor: 2.5 };
    let (config, tokenizer, weights) = own(wide, "char", &documents());
    for (i, rope_scaling) in [linear, yarn(32.0, true), yarn(8.0, true), llama3(16), llama3(64)].into_iter().enumerate()
    {
        let config = ModelConfig { rope_theta: 500.0, rope_scaling, ..config.clone() };
        let path = space.path().join(format!("{i}.gguf"));
        export_gguf(&path, (&config, &tokenizer), &weights, GgufType::F16).unwrap();
        assert_eq!(Pipeline::open(&path, &Device::Cpu).unwrap().model.config().rope_scaling, rope_scaling);
    }
    let config = ModelConfig { rope_scaling: yarn(32.0, false), ..config };
    let path = space.path().join("none.gguf");
    let error = export_gguf(&path, (&config, &tokenizer), &weights, GgufType::F16).unwrap_err().to_string();
    assert!(error.contains("no way to say attention_factor"), "{error}");
}

/// With the tokenizers of the fixtures, which are not this crate's.
#[test]
fn what_was_opened_as_gguf_is_written_as_gguf_and_as_a_folder() {
    let space = tempfile::tempdir().unwrap();
    for (name, expected) in expected() {
        let (config, tokenizer) = Pipeline::open_config(&fixture(&name)).unwrap();
        let weights = load_weights(&fixture(&name), &config, &Device::Cpu).unwrap();
        let (file, folder) = (space.path().join(format!("{name}.gguf")), space.path().join(&name));
        export_gguf(&file, (&config, &tokenizer), &weights, GgufType::F32).unwrap();
        export_folder(&folder, &fixture(&name), (&config, &tokenizer), &weights).unwrap();
        for path in [&file, &folder] {
            let (read, again) = Pipeline::open_config(path).unwrap();
            assert_eq!(read, config, "{}", path.display());
            let ids = tokenizer.encode(&expected.text).unwrap();
            assert!(ids.ends_with(&expected.ids));
            assert_eq!(again.encode(&expected.text).unwrap(), ids, "{}", path.display());
            let back = load_weights(path, &read, &Device::Cpu).unwrap();
            let largest = weights.iter().map(|(name, weight)| max_difference(&back[name], weight)).fold(0.0, f64::max);
            assert_eq!(largest, 0.0, "{}", path.display());
            let error =
                export_folder(&folder, &fixture(&name), (&config, &tokenizer), &weights).unwrap_err().to_string();
            assert!(error.contains("exists and is not empty"), "{error}");
        }
        let error = export_gguf(&file, (&config, &tokenizer), &weights, GgufType::F32).unwrap_err().to_string();
        assert!(error.contains("exists: choose another name"), "{error}");
    }
    let template = std::fs::read_to_string(space.path().join("llama_smollm_q4_1/tokenizer_config.json")).unwrap();
    assert!(template.contains("{{ m['content'] }}"), "{template}");
}

#[test]
fn what_has_no_form_is_refused() {
    let space = tempfile::tempdir().unwrap();
    let error = |config: &ModelConfig, tokenizer: &Tokenizer, weights: &Weights, kind| {
        export_gguf(&space.path().join("x.gguf"), (config, tokenizer), weights, kind).unwrap_err().to_string()
    };
    let (config, tokenizer, mut weights) = own(ModelConfig::llama, "char", &documents());
    let other = ModelConfig { activation: Default::default(), ..config.clone() };
    let message = error(&other, &tokenizer, &weights, GgufType::F32);
    assert!(message.contains("no way to say that a llama computes GeluErf"), "{message}");
    let spaces = Tokenizer::characters(&["a\u{2581}b"], false).unwrap();
    let message = error(&config, &spaces, &weights, GgufType::F32);
    assert!(message.contains("U+2581"), "{message}");
    let large = (&weights["blocks.0.mlp.up_proj.weight"] * 1e6).unwrap();
    weights.insert("blocks.0.mlp.up_proj.weight".into(), large);
    let message = error(&config, &tokenizer, &weights, GgufType::F16);
    assert!(message.contains("blk.0.ffn_up.weight") && message.contains("take f32"), "{message}");
    assert_eq!(std::fs::read_dir(space.path()).unwrap().count(), 0);
}

/// A fixture with other metadata.
fn changed(path: &Path, name: &str, change: impl FnOnce(&mut BTreeMap<String, Value>)) {
    let mut file = File::open(fixture(name)).unwrap();
    let content = Content::read(&mut file).unwrap();
    let mut tensors: Vec<(String, QTensor)> = vec![];
    for name in content.tensor_infos.keys() {
        tensors.push((name.clone(), content.tensor(&mut file, name, &Device::Cpu).unwrap()));
    }
    let mut metadata: BTreeMap<String, Value> = content.metadata.into_iter().collect();
    change(&mut metadata);
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

#[test]
fn what_is_not_computed_or_not_understood_is_refused_by_its_name() {
    let space = tempfile::tempdir().unwrap();
    let path = space.path().join("changed.gguf");
    let text = |text: &str| Value::String(text.into());
    for (key, value, expected) in [
        ("general.architecture", text("gemma"), "expected general.architecture gpt2, llama or qwen3, got gemma"),
        ("general.alignment", Value::U32(0), "as GGUF: attempt to divide by zero"),
        ("split.count", Value::U16(3), "got one of 3 parts (split.count)"),
        ("llama.expert_count", Value::U32(8), "llama.expert_count is not supported"),
        ("llama.rope.scaling.type", text("longrope"), "llama.rope.scaling.type longrope is not supported"),
        ("llama.rope.scaling.attn_factor", Value::F32(2.0), "llama.rope.scaling.attn_factor is not supported"),
        ("llama.attention.sliding_window", Value::U32(8), "llama.attention.sliding_window is not supported"),
        (
            "llama.rope.dimension_count",
            Value::U32(4),
            "expected llama.rope.dimension_count 8, the width of a head, got 4",
        ),
        (
            "llama.block_count",
            text("one"),
            "expected llama.block_count to be a whole number from 0 on, got String(\"one\")",
        ),
        ("llama.block_count", Value::I32(-1), "expected llama.block_count to be a whole number"),
        ("llama.block_count", Value::U32(2), "blk.1.attn_norm.weight is missing"),
        ("llama.embedding_length", Value::U32(64), "token_embd.weight: expected shape [293, 64], got [293, 32]"),
        ("tokenizer.ggml.model", text("bert"), "expected tokenizer.ggml.model gpt2 or llama, got bert"),
        ("tokenizer.ggml.pre", text("viking"), "tokenizer.ggml.pre viking is not known"),
        ("tokenizer.ggml.token_type", Value::Array(vec![Value::I32(1)]), "as many tokenizer.ggml.token_type"),
        (
            "tokenizer.ggml.merges",
            Value::Array(vec![text("ab")]),
            "expected two parts in each of tokenizer.ggml.merges",
        ),
        ("tokenizer.ggml.merges", Value::Array(vec![Value::U8(1)]), "to be a list of texts, got a list of 1"),
    ] {
        changed(&path, "llama_bpe_q4_0", |metadata| drop(metadata.insert(key.into(), value)));
        let error = Pipeline::open(&path, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("changed.gguf"), "{key}: {error}");
    }
    for (key, value) in [("llama.expert_count", Value::U32(0)), ("llama.rope.scaling.type", text("none"))] {
        changed(&path, "llama_bpe_q4_0", |metadata| drop(metadata.insert(key.into(), value)));
        Pipeline::open(&path, &Device::Cpu).unwrap();
    }
    for key in ["llama.context_length", "llama.attention.layer_norm_rms_epsilon", "tokenizer.ggml.merges"] {
        changed(&path, "llama_bpe_q4_0", |metadata| drop(metadata.remove(key).unwrap()));
        let error = Pipeline::open(&path, &Device::Cpu).unwrap_err().to_string();
        assert!(error.ends_with(&format!("{key} is missing")), "{error}");
    }
}

/// Bytes of the description, each with other values, and files that end early.
#[test]
fn a_damaged_file_is_an_error_or_opens() {
    hide_caught_panics();
    let space = tempfile::tempdir().unwrap();
    let path = space.path().join("damaged.gguf");
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Pipeline::open(&path, &Device::Cpu).is_ok()
    };
    let good = std::fs::read(fixture("llama_bpe_q4_0")).unwrap();
    assert!(open(&good));
    for at in (0..400).chain((400..good.len()).step_by(151)) {
        for value in [0, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            open(&bytes);
        }
    }
    for len in (0..good.len()).step_by(499) {
        assert!(!open(&good[..len]), "of {} bytes, {len} were enough", good.len());
    }
    // A list whose length nothing in the file stands for.
    let at = good.windows(21).position(|window| window == b"tokenizer.ggml.tokens").unwrap() + 21 + 8;
    let mut bytes = good.clone();
    bytes[at..at + 8].copy_from_slice(&(1u64 << 29).to_le_bytes());
    assert!(!open(&bytes));
    // One that is there, and would take 32 times its bytes.
    let mut head = [&b"GGUF"[..], &3u32.to_le_bytes(), &0u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
    head.extend(
        [&1u64.to_le_bytes()[..], b"a", &9u32.to_le_bytes(), &0u32.to_le_bytes(), &(1u64 << 26).to_le_bytes()].concat(),
    );
    std::fs::write(&path, head).unwrap();
    File::options().write(true).open(&path).unwrap().set_len((1 << 26) + 100).unwrap();
    let error = Pipeline::open(&path, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("array of 67108864 elements needs at least 67108864 bytes"), "{error}");
}
