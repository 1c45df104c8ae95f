//! Operations with random shapes, masks and layouts, compared with themselves without kernels.

use candle_core::{Device, Result, Tensor};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::cpu::testing::{assert_like_itself, randn, without_kernels};
use crate::ops::{self, AttentionOptions, CrossEntropyOptions, DropoutOptions, Mask, RandomKey, Scale};

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

/// The length of the longest row of channels.
fn longest(xs: &Tensor) -> f64 {
    let lengths = xs.sqr().unwrap().sum(candle_core::D::Minus1).unwrap();
    lengths.max_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
}

fn ids(seed: u64, n: usize, v: usize) -> Tensor {
    let mut rng = StdRng::seed_from_u64(seed);
    Tensor::from_vec((0..n).map(|_| rng.random_range(0..v) as u32).collect::<Vec<_>>(), n, &Device::Cpu).unwrap()
}

/// A mask without its tensors.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Causal,
    Full,
    Window(usize),
    Prefix(usize),
    Documents { share: f64 },
    Keys { share: f64 },
    Allowed { share: f64 },
    Additive { share: f64 },
}

fn kind() -> impl Strategy<Value = Kind> {
    // From almost nothing allowed to everything.
    let share = || prop_oneof![Just(0.0), Just(1.0), 0.0..1.0];
    prop_oneof![
        Just(Kind::Causal),
        Just(Kind::Full),
        (1..100usize).prop_map(Kind::Window),
        (0..100usize).prop_map(Kind::Prefix),
        share().prop_map(|share| Kind::Documents { share }),
        share().prop_map(|share| Kind::Keys { share }),
        share().prop_map(|share| Kind::Allowed { share }),
        share().prop_map(|share| Kind::Additive { share }),
    ]
}

impl Kind {
    fn needs_a_key_for_each_query(self) -> bool {
        matches!(self, Kind::Causal | Kind::Window(_) | Kind::Prefix(_) | Kind::Documents { .. })
    }

    fn mask(self, seed: u64, [b, h, t, s]: [usize; 4]) -> Mask {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bits = |n: usize, share: f64| (0..n).map(|_| u8::from(rng.random_bool(share))).collect::<Vec<_>>();
        match self {
            Kind::Causal => Mask::Causal,
            Kind::Full => Mask::Full,
            Kind::Window(len) => Mask::Window(len),
            Kind::Prefix(len) => Mask::Prefix(len),
            // A new document now and then, in turn one of three.
            Kind::Documents { share } => {
                let mut number = 0;
                let numbers = bits(b * s, share * 0.3).into_iter().map(|new| {
                    number = (number + u32::from(new)) % 3;
                    number
                });
                Mask::Documents(Tensor::from_vec(numbers.collect(), (b, s), &Device::Cpu).unwrap())
            }
            Kind::Keys { share } => Mask::Keys(Tensor::from_vec(bits(b * s, share), (b, s), &Device::Cpu).unwrap()),
            Kind::Allowed { share } => {
                Mask::Allowed(Tensor::from_vec(bits(t * s, share), (t, s), &Device::Cpu).unwrap())
            }
            // A bias where allowed, minus infinity elsewhere.
            Kind::Additive { share } => {
                let allowed = Tensor::from_vec(bits(b * h * t * s, share), (b, h, t, s), &Device::Cpu).unwrap();
                let hidden = Tensor::full(f64::NEG_INFINITY, (b, h, t, s), &Device::Cpu).unwrap();
                Mask::Additive(allowed.where_cond(&randn(seed, &[b, h, t, s]), &hidden).unwrap())
            }
        }
    }
}

/// The options in the dtype of the inputs.
fn of_dtype(options: &AttentionOptions, xs: &Tensor) -> Result<AttentionOptions> {
    let mask = match &options.mask {
        Mask::Additive(bias) => Mask::Additive(bias.to_dtype(xs.dtype())?),
        mask => mask.clone(),
    };
    Ok(AttentionOptions { mask, ..options.clone() })
}

/// Sizes B, T, S, H, G, D, E.
fn sizes(kind: Kind) -> impl Strategy<Value = [usize; 7]> {
    let positions = prop_oneof![1..10usize, 60..72usize];
    (1..4usize, positions.clone(), positions, 1..3usize, 1..4usize, 1..20usize, 1..20usize).prop_map(
        move |(b, t, s, g, queries, d, e)| {
            let s = if kind.needs_a_key_for_each_query() { s.max(t) } else { s };
            [b, t, s, g * queries, g, d, e]
        },
    )
}

/// All options except the mask.
fn options() -> impl Strategy<Value = AttentionOptions> {
    // Up to scores of 1e4.
    let scale = prop_oneof![
        3 => Just(Scale::InverseSqrt),
        3 => (0.0..2.0).prop_map(Scale::Value),
        1 => (100.0..1000.0).prop_map(Scale::Value)
    ];
    let dropout = (0.0..0.9, any::<u64>(), any::<u64>()).prop_map(|(rate, seed, first_sequence)| DropoutOptions {
        rate,
        key: RandomKey { seed, ..Default::default() },
        first_sequence,
    });
    (scale, prop::option::weighted(0.3, 0.5..50.0), prop::option::weighted(0.3, dropout))
        .prop_map(|(scale, softcap, dropout)| AttentionOptions { scale, mask: Mask::Full, softcap, dropout })
}

/// The size of terms that may cancel in attention and its gradients: an absolute error in a score is a relative one in
/// its weight, and grows with the score.
fn terms_of_attention(inputs: &[Tensor], options: &AttentionOptions) -> f64 {
    let scale = options.scale.factor(inputs[0].dim(3).unwrap());
    let kept = 1.0 - options.dropout.map_or(0.0, |dropout| dropout.rate);
    let (q, k, v) = (longest(&inputs[0]), longest(&inputs[1]), longest(&inputs[2]));
    // A random gradient of E channels is about sqrt(E) long.
    let dweights = 2.0 * (inputs[2].dim(3).unwrap() as f64).sqrt() * v / kept;
    (1.0 + scale * q * k) * (v / kept).max(dweights).max(dweights * scale * q.max(k))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn attention(
        (kind, [b, t, s, h, g, d, e]) in kind().prop_flat_map(|kind| (Just(kind), sizes(kind))),
        options in options(),
        seed in any::<u64>(),
        heads_first in any::<bool>(),
        sequential in any::<bool>(),
    ) {
        let options = AttentionOptions { mask: kind.mask(seed, [b, h, t, s]), ..options };
        let inputs = [randn(seed, &[b, t, h, d]), randn(seed ^ 1, &[b, s, g, d]), randn(seed ^ 2, &[b, s, g, e])];
        let terms = terms_of_attention(&inputs, &options);
        let label = format!("attention of {:?}, {kind:?}", [b, t, s, h, g, d, e]);
        if heads_first {
            let inputs = inputs.map(|x| x.transpose(1, 2).unwrap().contiguous().unwrap());
            let op = |x: &[Tensor]| {
                let options = of_dtype(&options, &x[0])?;
                ops::attention(&x[0].transpose(1, 2)?, &x[1].transpose(1, 2)?, &x[2].transpose(1, 2)?, &options)
            };
            hold(&label, &inputs, sequential, op, terms);
        } else {
            let op = |x: &[Tensor]| ops::attention(&x[0], &x[1], &x[2], &of_dtype(&options, &x[0])?);
            hold(&label, &inputs, sequential, op, terms);
        }
    }

    #[test]
    fn self_attention(
        (b, t, h, d) in (1..4usize, prop_oneof![1..10usize, 60..72usize], 1..4usize, 1..20usize),
        kind in kind(),
        options in options(),
        seed in any::<u64>(),
        sequential in any::<bool>(),
    ) {
        let options = AttentionOptions { mask: kind.mask(seed, [b, h, t, t]), ..options };
        let inputs = [randn(seed, &[b, t, 3 * h * d])];
        let heads = inputs[0].reshape((b, t, 3 * h, d)).unwrap();
        let terms = terms_of_attention(&[heads.clone(), heads.clone(), heads], &options);
        let op = |x: &[Tensor]| ops::self_attention(&x[0], h, &of_dtype(&options, &x[0])?);
        hold(&format!("self-attention of {:?}, {kind:?}", [b, t, h, d]), &inputs, sequential, op, terms);
    }

    /// A query that sees nothing gives zeros and gets zero gradients; so does a key that no query sees.
    #[test]
    fn hidden_positions_have_no_effect_and_no_gradient(
        (t, s, h, d) in (1..70usize, 1..70usize, 1..3usize, 1..9usize),
        share in 0.0..0.1,
        seed in any::<u64>(),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let allowed: Vec<u8> = (0..t * s).map(|_| u8::from(rng.random_bool(share))).collect();
        let mask = Mask::Allowed(Tensor::from_vec(allowed.clone(), (t, s), &Device::Cpu).unwrap());
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
        ignored in prop::option::of(0..70u32),
        divisor in prop::option::of(1.0..1000.0),
        sequential in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let (ids, options) = (ids(seed, rows, v), CrossEntropyOptions { ignored, divisor, ..Default::default() });
        let logits = [randn(seed, &[rows, v])];
        hold("cross-entropy", &logits, sequential, |x| ops::cross_entropy(&x[0], &ids, &options), 1.0);
        let inputs = [randn(seed, &[rows, c]), randn(seed ^ 1, &[v, c])];
        let op = |x: &[Tensor]| ops::linear_cross_entropy(&x[0], &x[1], &ids, &options);
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
