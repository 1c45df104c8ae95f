//! Many queries, composed chunk by chunk, against all at once.

use candle_core::{DType, Device, Tensor};

use super::super::*;
use crate::cpu::testing::{randn, run_in};
use crate::ops::{DropoutOptions, RandomKey};

#[test]
fn chunks_are_the_whole() {
    let (b, t, s, h, g, d, e) = (2, 301, 320, 4, 2, 5, 7);
    let documents: Vec<u32> = (0..b * s).map(|i| (i % s / 70 + i / s) as u32).collect();
    let documents = Some(Tensor::from_vec(documents, (b, s), &Device::Cpu).unwrap());
    let dropout = DropoutOptions { rate: 0.3, key: RandomKey { seed: 5, step: 7, site: 11 }, first_sequence: 13 };
    let plain = AttentionOptions::default();
    for (name, has_sinks, options) in [
        ("causal", false, plain.clone()),
        ("full", true, AttentionOptions { mask: Mask::full(), softcap: Some(2.0), ..plain.clone() }),
        ("window", false, AttentionOptions { mask: Mask::window(20), dropout: Some(dropout), ..plain.clone() }),
        ("documents", true, AttentionOptions { mask: Mask { documents, ..Mask::causal() }, ..plain.clone() }),
        (
            "nothing seen by the last chunk",
            false,
            AttentionOptions {
                mask: Mask { query_positions: Some(vec![-280, -290]), ..Mask::causal() },
                ..plain.clone()
            },
        ),
        (
            "linear bias, padding and a bias that is not tracked",
            true,
            AttentionOptions {
                mask: Mask {
                    alibi: Some(Mask::alibi_slopes(h)),
                    key_padding: Some(KeyPadding::Left(vec![310, 200])),
                    bias: Some(randn(9, &[h, 1, s])),
                    ..Mask::causal()
                },
                ..plain
            },
        ),
    ] {
        let inputs = [randn(1, &[b, t, h, d]), randn(2, &[b, s, g, d]), randn(3, &[b, s, g, e]), randn(4, &[h])];
        let inputs = &inputs[..if has_sinks { 4 } else { 3 }];
        let options = |x: &[Tensor]| AttentionOptions { sinks: x.get(3).cloned(), ..options.clone() };
        let side_by_side = |out: &Tensor, lse: &Tensor| {
            let lse = lse.transpose(1, 2)?.unsqueeze(3)?;
            let lse = lse.gt(f64::NEG_INFINITY)?.where_cond(&lse, &lse.zeros_like()?.detach())?;
            Tensor::cat(&[out, &lse], 3)
        };
        let chunked = |x: &[Tensor]| {
            let (out, lse) = attention_with_lse(&x[0], &x[1], &x[2], &options(x))?;
            side_by_side(&out, &lse)
        };
        let whole = |x: &[Tensor]| {
            let sizes = Sizes { b, h, g, dims: Dims { t, s, d, e } };
            let composed::Results { out, lse, .. } =
                composed::attention([&x[0], &x[1], &x[2]], sizes, &options(x), true)?;
            side_by_side(&out, &lse)
        };
        let (got, expected) = (run_in(&chunked, inputs, DType::F64), run_in(&whole, inputs, DType::F64));
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let error = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(got.len() == expected.len() && error < 1e-11, "{name}, {i}: {error:e}");
        }
    }
}

/// The mathematics of a cut in two: attention to all keys from attention to two parts of them.
#[test]
fn partial_attentions_merge_by_their_log_sum_exp() {
    let [q, k, v] = [(1, 7), (2, 131), (3, 131)].map(|(seed, n)| randn(seed, &[2, n, 3, 5]));
    for dtype in [DType::F32, DType::F64] {
        let [q, k, v] = [&q, &k, &v].map(|x| x.to_dtype(dtype).unwrap());
        let options = AttentionOptions { mask: Mask::full(), ..Default::default() };
        let whole = attention(&q, &k, &v, &options).unwrap();
        let parts = [(0, 70), (70, 61)].map(|(start, len)| {
            let [k, v] = [&k, &v].map(|x| x.narrow(1, start, len).unwrap());
            attention_with_lse(&q, &k, &v, &options).unwrap()
        });
        let weight = |i: usize| parts[i].1.exp().unwrap();
        let sum = (weight(0) + weight(1)).unwrap();
        let part = |i: usize| {
            let share = (weight(i) / &sum).unwrap().transpose(1, 2).unwrap().unsqueeze(3).unwrap();
            parts[i].0.broadcast_mul(&share).unwrap()
        };
        let difference = ((part(0) + part(1)).unwrap() - whole).unwrap().abs().unwrap().max_all().unwrap();
        let difference = difference.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
        assert!(difference < if dtype == DType::F32 { 1e-6 } else { 1e-14 }, "{dtype:?}: {difference:e}");
    }
}
