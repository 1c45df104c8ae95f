//! Reading a text step by step gives the same as reading it at once, and beyond the context as reading its last part.

use std::ops::ControlFlow;
use std::path::Path;

use candle_attention::generate::{Sampler, SamplingOptions, generate, generate_side_by_side};
use candle_attention::model::{CausalLm, ModelConfig, load_weights};
use candle_attention::nn::Parameters;
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::model::{forms, ids, random_model, tiny};
use crate::support::{assert_as_exact, assert_close, values};

const CONTEXT_LEN: usize = 7;

#[test]
fn step_by_step_is_all_at_once() {
    for config in forms() {
        let (model, _) = random_model(&config, DType::F64);
        let all = ids(3, CONTEXT_LEN, 11);
        for len in [1, 2, 3, 5, 7] {
            let mut decoder = model.decoder();
            for start in (0..CONTEXT_LEN).step_by(len) {
                let piece = all.narrow(1, start, len.min(CONTEXT_LEN - start)).unwrap();
                let logits = decoder.next_token_logits(&piece).unwrap();
                let read = start + piece.dim(1).unwrap();
                let expected = model.next_token_logits(&all.narrow(1, 0, read).unwrap()).unwrap();
                assert_close(&format!("{read} ids in pieces of {len}"), &logits, &expected, 1e-12);
                assert!(!logits.track_op());
                assert_eq!(decoder.remembered(), read);
            }
        }
    }
}

/// In `f32`: at most twice as far from the truth as without a cache.
#[test]
fn the_kernels_step_by_step_are_as_exact_as_at_once() {
    for config in forms() {
        let ((model, _), (in_f64, _)) = (random_model(&config, DType::F32), random_model(&config, DType::F64));
        let all = ids(3, CONTEXT_LEN, 11);
        let mut decoder = model.decoder();
        for t in 0..CONTEXT_LEN {
            let logits = decoder.next_token_logits(&all.narrow(1, t, 1).unwrap()).unwrap();
            let so_far = all.narrow(1, 0, t + 1).unwrap();
            let truth = in_f64.next_token_logits(&so_far).unwrap();
            let at_once = model.next_token_logits(&so_far).unwrap();
            assert_as_exact(&format!("{} ids", t + 1), &logits, &at_once, &truth);
        }
    }
}

/// At most twice as far from the truth as alone, and each sequence by itself.
#[test]
fn sequences_side_by_side_are_as_exact_as_alone() {
    let config = ModelConfig { context_len: 16, ..ModelConfig::gpt2(65) };
    let ((model, _), (in_f64, _)) = (random_model(&config, DType::F32), random_model(&config, DType::F64));
    for rows in [2, 3, 5, 12] {
        let all = ids(rows, 16, 65);
        let mut together = model.decoder();
        let mut alone: Vec<_> = (0..rows).map(|_| model.decoder()).collect();
        let mut logits = [vec![], vec![], vec![]];
        for t in 0..16 {
            let next = all.narrow(1, t, 1).unwrap();
            logits[0].push(together.next_token_logits(&next).unwrap());
            for (row, decoder) in alone.iter_mut().enumerate() {
                logits[1].push(decoder.next_token_logits(&next.narrow(0, row, 1).unwrap()).unwrap());
            }
            logits[2].push(in_f64.next_token_logits(&all.narrow(1, 0, t + 1).unwrap()).unwrap());
        }
        let [together, alone, truth] = logits.map(|logits| Tensor::cat(&logits, 0).unwrap());
        assert_as_exact(&format!("{rows} sequences"), &together, &alone, &truth);
    }
}

/// Always at least half a context, from position 0 on, and nothing else.
#[test]
fn past_the_context_learned_positions_read_the_last_half_again() {
    for config in forms().into_iter().filter(|config| !config.architecture.is_rotary()) {
        let (model, _) = random_model(&config, DType::F64);
        let all = ids(2, 40, 11);
        for (first, len) in [(1, 1), (9, 1), (3, 2), (1, 5), (6, 13)] {
            let mut decoder = model.decoder();
            let (mut read, mut next) = (0, first);
            while read + next <= 40 {
                let logits = decoder.next_token_logits(&all.narrow(1, read, next).unwrap()).unwrap();
                let before_this = read;
                read += next;
                let remembered = decoder.remembered();
                let least = if before_this == 0 { read.min(CONTEXT_LEN) } else { read.min(CONTEXT_LEN.div_ceil(2)) };
                assert!((least..=CONTEXT_LEN).contains(&remembered), "{remembered} of {read}");
                let last = all.narrow(1, read - remembered, remembered).unwrap();
                let expected = model.next_token_logits(&last).unwrap();
                assert_close(&format!("{read} ids, {first} and then {len}"), &logits, &expected, 1e-12);
                next = len;
            }
            assert!(read > 20);
        }
    }
}

#[derive(Deserialize)]
struct SlidingWindow {
    ids: Vec<Vec<u32>>,
    logits: Vec<Vec<Vec<f64>>>,
    f32_error: f64,
}

/// `tests/fixtures/sliding_window.py` runs transformers' own sliding-window models on a text of four contexts.
#[test]
fn past_the_context_rotary_positions_go_on_in_a_sliding_window() {
    for name in ["llama", "qwen3"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sliding_window").join(name);
        let fixture: SlidingWindow =
            serde_json::from_slice(&std::fs::read(folder.join("sliding_window.json")).unwrap()).unwrap();
        let config = ModelConfig::open(&folder).unwrap();
        assert_eq!(config.context_len, CONTEXT_LEN);
        let all = Tensor::new(fixture.ids, &Device::Cpu).unwrap();
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2.0 * fixture.f32_error)] {
            let weights = load_weights(&folder.join("model.safetensors"), &config, &Device::Cpu).unwrap();
            let weights = weights.into_iter().map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap()));
            let parameters = Parameters::restored(weights).unwrap();
            let model = CausalLm::new(&config, parameters.frozen(dtype, &Device::Cpu)).unwrap();
            for (first, len) in [(1, 1), (7, 1), (3, 2), (5, 5), (20, 1), (29, 1), (6, 11)] {
                let mut decoder = model.decoder();
                let (mut read, mut next) = (0, first);
                while read + next <= 29 {
                    let logits = decoder.next_token_logits(&all.narrow(1, read, next).unwrap()).unwrap();
                    read += next;
                    assert_eq!(decoder.remembered(), read.min(CONTEXT_LEN));
                    let expected: Vec<&[f64]> = fixture.logits.iter().map(|logits| &logits[read - 1][..]).collect();
                    let expected = Tensor::new(expected, &Device::Cpu).unwrap();
                    let label = format!("{name}, {dtype:?}, {read} ids, {first} and then {len}");
                    assert_close(&label, &logits, &expected, tolerance);
                    next = len;
                }
                assert!(read > 20);
            }
        }
    }
}

/// The second time, the buffers have their full size from the start: the same bits, past the context too.
#[test]
fn growing_buffers_change_no_bit() {
    for form in forms() {
        let (model, _) = random_model(&ModelConfig { context_len: 600, ..form }, DType::F32);
        let all = ids(2, 900, 11);
        let mut decoder = model.decoder();
        let mut run = || {
            let step = |(start, len): (usize, usize)| {
                let logits = decoder.next_token_logits(&all.narrow(1, start, len).unwrap()).unwrap();
                values(&logits).iter().map(|logit| logit.to_bits()).collect::<Vec<_>>()
            };
            let steps: Vec<_> = [(0, 200)].into_iter().chain((200..900).map(|start| (start, 1))).map(step).collect();
            decoder.reset();
            steps
        };
        assert!(run() == run(), "{:?}", model.config().architecture);
    }
}

/// Keys and values of a whole context would take over a terabyte, those of a few tokens some megabytes.
#[test]
fn memory_is_taken_for_the_text_and_not_for_the_context() {
    for form in [ModelConfig::gpt2(11), ModelConfig::llama(11)] {
        let config =
            ModelConfig { context_len: 1 << 22, embed_dim: 6, num_heads: 3, num_layers: 2, hidden_dim: 13, ..form };
        let (model, _) = random_model(&config, DType::F32);
        let generate = |max_tokens: usize| {
            let sampler = |stream| Sampler::new(SamplingOptions::default(), 1, stream).unwrap();
            let mut samplers: Vec<_> = (0..4096).map(sampler).collect();
            let mut tokens = 0;
            let result = generate_side_by_side(&model, &[1, 2, 3], max_tokens, &mut samplers, &mut |_, _| {
                tokens += 1;
                Ok(ControlFlow::Continue(()))
            });
            (result.map(drop), tokens)
        };
        let (result, tokens) = generate(3);
        assert!(result.is_ok() && tokens == 3 * 4096);
        // What the text will need is known before the first token.
        let (result, tokens) = generate(usize::MAX);
        let error = result.unwrap_err().to_string();
        assert!(error.contains("decoder: keys and values: expected at most") && tokens == 0, "{error}");
        // 4096 sequences of 6 channels of keys and of values in f32, and for a window a quarter of it more.
        let window = if config.architecture.is_rotary() { 1.25 } else { 1.0 };
        let megabytes = 2.0 * 4096.0 * 6.0 * 4.0 * 2.0 * window * f64::from(1 << 22) / 1e6;
        let got: f64 = error.split("got ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!((got / megabytes - 1.0).abs() < 1e-4, "{error}, expected {megabytes}");
    }
}

/// Too many samples of a long prompt are refused before any is copied.
#[test]
fn too_many_samples_of_a_prompt_are_refused_first() {
    let (model, _) = random_model(&tiny(), DType::F32);
    let mut samplers = vec![Sampler::new(SamplingOptions::default(), 1, 0).unwrap(); 100_000];
    let prompt = vec![1; 10_000_000];
    let error = generate_side_by_side(&model, &prompt, 1, &mut samplers, &mut |_, _| Ok(ControlFlow::Continue(())));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("generate: 100000 samples of a prompt of 10000000 tokens: expected at most"), "{error}");
    assert!(error.contains("got 8000000 MB"), "{error}");
}

#[test]
fn greedy_text_within_the_context_is_that_without_a_cache() {
    for seed in 0..11 {
        let (model, _) = random_model(&tiny(), DType::F32);
        let mut sampler = Sampler::new(SamplingOptions { temperature: 0.0, ..Default::default() }, 1, 0).unwrap();
        let text = generate(&model, &[seed], 6, &mut sampler, &mut |_| ControlFlow::Continue(())).unwrap();
        let mut expected = vec![seed];
        for _ in 0..6 {
            let input = Tensor::new(expected.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            expected.push(likeliest(&model, &input));
        }
        assert_eq!(text, expected[1..]);
    }
}

fn likeliest(model: &CausalLm, ids: &Tensor) -> u32 {
    model.next_token_logits(ids).unwrap().argmax(1).unwrap().to_vec1().unwrap()[0]
}

#[test]
fn what_is_refused_is_forgotten() {
    let (model, _) = random_model(&tiny(), DType::F64);
    let (good, one) = (ids(2, 4, 11), ids(1, 1, 11));
    let fresh = model.decoder().next_token_logits(&good).unwrap();
    let mut decoder = model.decoder();
    let bad = Tensor::new(&[[11u32], [3]], &Device::Cpu).unwrap();
    for (refused, message) in
        [(&bad, "expected ids below 11, got 11"), (&one, "expected ids of 2 sequences as before, got 1")]
    {
        decoder.next_token_logits(&good).unwrap();
        let error = decoder.next_token_logits(refused).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert_eq!(decoder.remembered(), 0);
    }
    assert!(decoder.next_token_logits(&good.narrow(1, 0, 0).unwrap()).is_err());
    assert_close("anew", &decoder.next_token_logits(&good).unwrap(), &fresh, 0.0);
    decoder.reset();
    assert_close("reset", &decoder.next_token_logits(&good).unwrap(), &fresh, 0.0);
}

/// Sorted or not, the choice follows the same probabilities.
#[test]
fn limits_without_effect_change_nothing() {
    let logits: Vec<f32> = (0..97u32).map(|i| (i * i % 97) as f32 * 0.05).collect();
    let draws = |options: SamplingOptions| {
        let mut sampler = Sampler::new(options, 3, 0).unwrap();
        (0..500).map(|_| sampler.sample(&logits, &[]).unwrap()).collect::<Vec<_>>()
    };
    let all = draws(SamplingOptions::default());
    assert_eq!(all, draws(SamplingOptions { top_k: Some(97), ..Default::default() }));
    assert_eq!(all, draws(SamplingOptions { top_p: Some(1.0), ..Default::default() }));
    // The seven likeliest, in whatever order they were selected.
    let mut ranked: Vec<u32> = (0..97).collect();
    ranked.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    let seven = draws(SamplingOptions { top_k: Some(7), ..Default::default() });
    assert!(seven.iter().all(|id| ranked[..7].contains(id)) && ranked[..7].iter().all(|id| seven.contains(id)));
    assert!(draws(SamplingOptions { top_k: Some(1), ..Default::default() }).iter().all(|id| *id == ranked[0]));
}
