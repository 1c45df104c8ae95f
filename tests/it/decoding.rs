//! A text read step by step is the text read at once, and past the context its last part.

use std::ops::ControlFlow;

use candle_attention::generate::{Sampler, SamplingOptions, generate};
use candle_attention::model::{CausalLm, ModelConfig};
use candle_core::{DType, Device, Tensor};

use crate::model::{forms, ids, random_model, tiny};
use crate::support::{assert_as_exact, assert_close};

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

/// In `f32`: as far from the truth as without a cache, twice.
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

/// As far from the truth as alone, twice; and each sequence on its own.
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

/// Half a context or more is always read, from the first position on, and nothing else.
#[test]
fn past_the_context_the_last_half_is_read_again() {
    for config in forms() {
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
fn limits_that_limit_nothing_change_nothing() {
    let logits: Vec<f32> = (0..97u32).map(|i| (i * i % 97) as f32 * 0.05).collect();
    let draws = |options: SamplingOptions| {
        let mut sampler = Sampler::new(options, 3, 0).unwrap();
        (0..500).map(|_| sampler.sample(&logits, &[]).unwrap()).collect::<Vec<_>>()
    };
    let all = draws(SamplingOptions::default());
    assert_eq!(all, draws(SamplingOptions { top_k: Some(97), ..Default::default() }));
    assert_eq!(all, draws(SamplingOptions { top_p: Some(1.0), ..Default::default() }));
    // The seven likeliest, whatever the order in which they were found.
    let mut ranked: Vec<u32> = (0..97).collect();
    ranked.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    let seven = draws(SamplingOptions { top_k: Some(7), ..Default::default() });
    assert!(seven.iter().all(|id| ranked[..7].contains(id)) && ranked[..7].iter().all(|id| seven.contains(id)));
    assert!(draws(SamplingOptions { top_k: Some(1), ..Default::default() }).iter().all(|id| *id == ranked[0]));
}
