//! Operations with random shapes, masks and layouts, compared with themselves without kernels.

use candle_core::{Device, Result, Tensor};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::cpu::testing::{assert_like_itself, randn, without_kernels};
use crate::ops::{self, AttentionOptions, CrossEntropyOptions, DropoutOptions, Mask, RandomKey};

/// The same cases each time.
fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 64,
        failure_persistence: None,
        max_shrink_iters: 200,
        rng_seed: RngSeed::Fixed(3),
        ..Default::default()
    }
}

/// Compares the operation with itself without kernels, on one thread or on all.
fn hold(label: &str, inputs: &[Tensor], sequential: bool, op: impl Fn(&[Tensor]) -> Result<Tensor>, terms: f64) {
    let work = || assert_like_itself(label, inputs, &op, terms);
    if sequential { ops::sequential(work) } else { work() }
}

fn ids(seed: u64, n: usize, v: usize) -> Tensor {
    let mut rng = StdRng::seed_from_u64(seed);
    Tensor::from_vec((0..n).map(|_| rng.random_range(0..v) as u32).collect::<Vec<_>>(), n, &Device::Cpu).unwrap()
}

proptest! {
    #![proptest_config(config())]

    /// A query that sees nothing gives zeros and gets zero gradients; so does a key that no query sees.
    #[test]
    fn hidden_positions_have_no_effect_and_no_gradient(
        (t, s, h, d) in (1..70usize, 1..70usize, 1..3usize, 1..9usize),
        share in 0.0..0.1,
        seed in any::<u64>(),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let allowed: Vec<u8> = (0..t * s).map(|_| u8::from(rng.random_bool(share))).collect();
        let mask = Mask { allowed: Some(Tensor::from_vec(allowed.clone(), (t, s), &Device::Cpu).unwrap()), ..Mask::full() };
        let options = AttentionOptions { mask, ..Default::default() };
        let var = |seed, n| {
            let values = randn(seed, &[1, n, h, d]).to_dtype(candle_core::DType::F32).unwrap();
            candle_core::Var::from_tensor(&values).unwrap()
        };
        let (q, k, v) = (var(seed, t), var(seed ^ 1, s), var(seed ^ 2, s));
        let out = ops::attention(&q, &k, &v, &options).unwrap();
        let gradients = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let rows = |x: &Tensor| x.reshape(((), h * d)).unwrap().to_vec2::<f32>().unwrap();
        let [dq, dk, dv] = [&q, &k, &v].map(|x| rows(gradients.get(x).unwrap()));
        for (i, (out, dq)) in rows(&out).iter().zip(&dq).enumerate() {
            let is_blind = allowed[i * s..(i + 1) * s].iter().all(|allowed| *allowed == 0);
            prop_assert!(!is_blind || out.iter().chain(dq).all(|x| *x == 0.0), "query {i}");
            prop_assert!(out.iter().chain(dq).all(|x| x.is_finite()), "query {i}");
        }
        for (i, (dk, dv)) in dk.iter().zip(&dv).enumerate() {
            let is_unseen = allowed.iter().skip(i).step_by(s).all(|allowed| *allowed == 0);
            prop_assert!(!is_unseen || dk.iter().chain(dv).all(|x| *x == 0.0), "key {i}");
            prop_assert!(dk.iter().chain(dv).all(|x| x.is_finite()), "key {i}");
        }
    }

    #[test]
    fn linear(
        (rows, c, o) in (1..80usize, 1..40usize, 1..40usize),
        has_bias in any::<bool>(),
        sequential in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let inputs = [randn(seed, &[rows, c]), randn(seed ^ 1, &[o, c]), randn(seed ^ 2, &[o])];
        let inputs = &inputs[..if has_bias { 3 } else { 2 }];
        hold("linear", inputs, sequential, |x| ops::linear(&x[0], &x[1], x.get(2)), 0.0);
    }

    #[test]
    fn norms((rows, c) in (1..80usize, 1..70usize), sequential in any::<bool>(), seed in any::<u64>()) {
        let inputs = [randn(seed, &[rows, c]), randn(seed ^ 1, &[c]), randn(seed ^ 2, &[c])];
        hold("layer-norm", &inputs, sequential, |x| ops::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-2), 0.0);
        hold("layer-norm", &inputs[..2], sequential, |x| ops::layer_norm(&x[0], &x[1], None, 1e-2), 0.0);
        hold("rms-norm", &inputs[..2], sequential, |x| ops::rms_norm(&x[0], &x[1], 1e-2), 0.0);
    }

    #[test]
    fn activations(n in 1..300usize, spread in 0.1..20.0f64, sequential in any::<bool>(), seed in any::<u64>()) {
        let inputs = [(randn(seed, &[n]) * spread).unwrap(), randn(seed ^ 1, &[n])];
        let one = &inputs[..1];
        hold("gelu-erf", one, sequential, |x| ops::gelu_erf(&x[0]), 1.0);
        hold("gelu-tanh", one, sequential, |x| ops::gelu_tanh(&x[0]), 1.0);
        hold("quick-gelu", one, sequential, |x| ops::quick_gelu(&x[0]), 1.0);
        hold("relu", one, sequential, |x| ops::relu(&x[0]), 1.0);
        hold("silu", one, sequential, |x| ops::silu(&x[0]), 1.0);
        hold("relu-squared", one, sequential, |x| ops::relu_squared(&x[0]), 1.0);
        hold("swiglu", &inputs, sequential, |x| ops::swiglu(&x[0], &x[1]), 1.0);
        hold("geglu-erf", &inputs, sequential, |x| ops::geglu_erf(&x[0], &x[1]), 1.0);
        hold("geglu-tanh", &inputs, sequential, |x| ops::geglu_tanh(&x[0], &x[1]), 1.0);
        hold("quick-geglu", &inputs, sequential, |x| ops::quick_geglu(&x[0], &x[1]), 1.0);
        hold("reglu", &inputs, sequential, |x| ops::reglu(&x[0], &x[1]), 1.0);
    }

    #[test]
    fn rotary(
        (b, t, h, half) in (1..4usize, 1..40usize, 0..4usize, 1..20usize),
        halves in any::<bool>(),
        sequential in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let pairs = if halves { ops::RotaryPairs::Halves } else { ops::RotaryPairs::Neighbours };
        let op = |x: &[Tensor]| {
            let (cos, sin) = ops::rotary_tables(100.0, 2 * half, (seed % 1000) as usize, t, &x[0])?;
            ops::rotary(&x[0], &cos, &sin, pairs, ops::QkvLayout::Bthd)
        };
        hold("rotary", &[randn(seed, &[b, t, h, 2 * half])], sequential, op, 1.0);
    }

    #[test]
    fn embedding(
        (n, v, c) in (0..200usize, 1..40usize, 1..40usize),
        sequential in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let ids = ids(seed, n, v);
        hold("embedding", &[randn(seed, &[v, c])], sequential, |x| ops::embedding(&ids, &x[0]), 0.0);
    }

    #[test]
    fn dropout(
        shape in prop::collection::vec(1..20usize, 1..4),
        rate in prop_oneof![Just(0.0), 0.0..1.0],
        (site, first_sequence) in any::<(u64, u64)>(),
        sequential in any::<bool>(),
    ) {
        let options = DropoutOptions { rate, key: RandomKey { site, ..Default::default() }, first_sequence };
        hold("dropout", &[randn(site, &shape)], sequential, |x| ops::dropout(&x[0], &options), 0.0);
    }

    #[test]
    fn cross_entropies(
        (rows, c, v) in (1..300usize, 1..20usize, 1..70usize),
        ignore_index in prop::option::of(0..70i64),
        normalizer in prop::option::of(1.0..1000.0),
        softcap in prop::option::of(0.5..50.0),
        sequential in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let (ids, options) = (ids(seed, rows, v), CrossEntropyOptions { ignore_index, normalizer, softcap, ..Default::default() });
        let logits = [randn(seed, &[rows, v])];
        hold("cross-entropy", &logits, sequential, |x| ops::cross_entropy(&x[0], &ids, &options), 1.0);
        let inputs = [randn(seed, &[rows, c]), randn(seed ^ 1, &[v, c]), randn(seed ^ 2, &[v])];
        let op = |x: &[Tensor]| ops::linear_cross_entropy(&x[0], &x[1], Some(&x[2]), &ids, &options);
        hold("linear-cross-entropy", &inputs, sequential, op, 1.0);
    }
}

/// The basis of all these tests: without kernels, another computation takes place, as its rounding shows.
#[test]
fn without_kernels_it_is_another_computation() {
    let xs = randn(1, &[1009]).to_dtype(candle_core::DType::F32).unwrap();
    let values = |x: Tensor| x.to_vec1::<f32>().unwrap();
    let (fused, composed) =
        (values(ops::gelu_tanh(&xs).unwrap()), values(without_kernels(|| ops::gelu_tanh(&xs)).unwrap()));
    assert_ne!(fused, composed);
    assert_eq!(values(ops::gelu_tanh(&xs).unwrap()), fused);
}
