//! The kernel against the reference, with every mask and sizes that are not multiples of a tile.

mod chunks;
mod hidden;
mod random;

use super::*;
use crate::cpu::testing::{assert_like_itself, assert_like_reference, randn, without_kernels};
use crate::ops::{DropoutOptions, RandomKey};
use candle_core::{DType, Device};

/// Attention without the kernel.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    without_kernels(|| attention(q, k, v, options))
}

fn checkers(t: usize, s: usize) -> Mask {
    let allowed: Vec<u8> = (0..t * s).map(|i| u8::from(i / s % 5 != 3 && (i / s + i % s) % 3 != 1)).collect();
    Mask { allowed: Some(Tensor::from_vec(allowed, (t, s), &Device::Cpu).unwrap()), ..Mask::full() }
}

/// One of each kind that has a kernel; in some, a query sees nothing or a whole tile is hidden.
fn masks(b: usize, t: usize, s: usize) -> Vec<Mask> {
    let documents: Vec<u32> = (0..b * s).map(|i| ((i % s) / (5 + 40 * (i / s))) as u32).collect();
    let keys: Vec<u8> = (0..b * s).map(|i| u8::from(i % s < s - (i / s * 7) % s && i % 5 != 3)).collect();
    vec![
        Mask::causal(),
        Mask::full(),
        Mask::window(9),
        Mask::window(70),
        Mask::prefix(3),
        Mask::prefix(90),
        Mask { documents: Some(Tensor::from_vec(documents, (b, s), &Device::Cpu).unwrap()), ..Mask::causal() },
        Mask {
            key_padding: Some(KeyPadding::Real(Tensor::from_vec(keys, (b, s), &Device::Cpu).unwrap())),
            ..Mask::full()
        },
        checkers(t, s),
    ]
}

/// B, T, S, H, G, D, E: minimal, no multiples of a tile, many tiles, grouped heads, few heads of many tiles.
const SIZES: [[usize; 7]; 9] = [
    [1, 1, 1, 1, 1, 1, 1],
    [2, 7, 7, 3, 3, 5, 5],
    [3, 5, 11, 2, 1, 7, 13],
    [1, 64, 64, 4, 2, 32, 32],
    [2, 67, 131, 6, 3, 8, 3],
    [1, 131, 131, 2, 2, 16, 16],
    [3, 1, 131, 6, 2, 5, 7],
    [5, 65, 65, 2, 2, 33, 31],
    [1, 261, 261, 2, 1, 8, 5],
];

#[test]
fn the_kernel_is_the_reference() {
    for [b, t, s, h, g, d, e] in SIZES {
        let inputs = [randn(1, &[b, t, h, d]), randn(2, &[b, s, g, d]), randn(3, &[b, s, g, e])];
        for mask in masks(b, t, s) {
            for scale in [Scale::InverseSqrt, Scale::Value(1.3)] {
                let options = AttentionOptions { scale, mask: mask.clone(), ..Default::default() };
                let label = format!("attention {:?} {mask:?} {scale:?}", [b, t, s, h, g, d, e]);
                let fused = |x: &[Tensor]| attention(&x[0], &x[1], &x[2], &options);
                let reference = |x: &[Tensor]| composed(&x[0], &x[1], &x[2], &options);
                assert_like_reference(&label, &inputs, &fused, &reference);
                // On one thread.
                let fused = |x: &[Tensor]| crate::ops::sequential(|| attention(&x[0], &x[1], &x[2], &options));
                assert_like_reference(&label, &inputs, &fused, &reference);
            }
        }
    }
}

#[test]
fn soft_cap_and_dropout_are_those_of_the_reference() {
    let dropout = DropoutOptions { rate: 0.3, key: RandomKey { seed: 5, step: 7, site: 11 }, first_sequence: 13 };
    for [b, t, s, h, g, d, e] in SIZES {
        let inputs = [randn(1, &[b, t, h, d]), randn(2, &[b, s, g, d]), randn(3, &[b, s, g, e])];
        for mask in [Mask::causal(), Mask::full(), checkers(t, s)] {
            for (softcap, dropout) in
                [(Some(0.7), None), (Some(30.0), None), (None, Some(dropout)), (Some(2.0), Some(dropout))]
            {
                let options = AttentionOptions {
                    scale: Scale::Value(1.3),
                    mask: mask.clone(),
                    softcap,
                    dropout,
                    ..Default::default()
                };
                let label = format!("attention {:?} {options:?}", [b, t, s, h, g, d, e]);
                let fused = |x: &[Tensor]| attention(&x[0], &x[1], &x[2], &options);
                let reference = |x: &[Tensor]| composed(&x[0], &x[1], &x[2], &options);
                assert_like_reference(&label, &inputs, &fused, &reference);
            }
        }
    }
}

/// Without gradients, a single query has its own kernel.
#[test]
fn a_single_query_is_that_of_the_reference() {
    for [b, s, h, g, d, e] in [[1, 1, 1, 1, 1, 1], [3, 131, 6, 2, 5, 7], [2, 64, 4, 4, 32, 32], [1, 65, 3, 1, 67, 33]] {
        let inputs = [randn(1, &[b, 1, h, d]), randn(2, &[b, s, g, d]), randn(3, &[b, s, g, e])];
        for mask in masks(b, 1, s) {
            for softcap in [None, Some(0.7)] {
                let options =
                    AttentionOptions { scale: Scale::Value(1.3), mask: mask.clone(), softcap, ..Default::default() };
                let label = format!("attention {:?} {options:?}", [b, s, h, g, d, e]);
                let reference = |x: &[Tensor]| composed(&x[0], &x[1], &x[2], &options);
                let fused = |x: &[Tensor]| {
                    let out = attention(&x[0].detach(), &x[1].detach(), &x[2].detach(), &options)?;
                    // Zeros, for the gradients that are compared too.
                    let slow = reference(x)?;
                    out + (&slow - slow.detach())?
                };
                assert_like_reference(&label, &inputs, &fused, &reference);
            }
        }
    }
}

/// A bias that is not tracked has a kernel.
#[test]
fn a_constant_bias_is_that_of_the_reference() {
    for [b, t, s, h, g, d, e] in SIZES {
        let inputs = [randn(1, &[b, t, h, d]), randn(2, &[b, s, g, d]), randn(3, &[b, s, g, e])];
        for shape in [&[t, s][..], &[b, 1, t, s], &[b, h, t, s]] {
            // Some are hidden, and one whole row.
            let bias = randn(4, shape).flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let hide = |(i, x): (usize, f64)| if i % 7 == 3 || i / s == 1 { f64::NEG_INFINITY } else { x };
            let bias = Tensor::from_vec(bias.into_iter().enumerate().map(hide).collect(), shape, &Device::Cpu).unwrap();
            let options = |x: &[Tensor]| AttentionOptions {
                mask: Mask { bias: Some(bias.to_dtype(x[0].dtype()).unwrap()), ..Mask::full() },
                ..Default::default()
            };
            let fused = |x: &[Tensor]| attention(&x[0], &x[1], &x[2], &options(x));
            let reference = |x: &[Tensor]| composed(&x[0], &x[1], &x[2], &options(x));
            assert_like_reference(&format!("biased attention {shape:?}"), &inputs, &fused, &reference);
        }
    }
}

#[test]
fn shards_drop_what_the_whole_drops() {
    let [q, k, v] = [1, 2, 3].map(|seed| randn(seed, &[5, 67, 3, 5]).to_dtype(DType::F32).unwrap());
    let dropped = |first: usize, n: usize| {
        let part = |x: &Tensor| x.narrow(0, first, n).unwrap();
        let dropout = Some(DropoutOptions { rate: 0.5, first_sequence: first as u64, ..Default::default() });
        let options = AttentionOptions { dropout, ..Default::default() };
        attention(&part(&q), &part(&k), &part(&v), &options).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(dropped(0, 5), [dropped(0, 2), dropped(2, 3)].concat());
}

#[test]
fn packed_is_separate() {
    for (b, t, h, d) in [(1, 1, 1, 1), (2, 7, 3, 5), (1, 131, 2, 8)] {
        let inputs = [randn(1, &[b, t, 3 * h * d])];
        let options = AttentionOptions::default();
        let packed = |x: &[Tensor]| self_attention(&x[0], h, &options);
        let separate = |x: &[Tensor]| {
            let part = |i: usize| x[0].narrow(2, i * h * d, h * d)?.reshape((b, t, h, d));
            composed(&part(0)?, &part(1)?, &part(2)?, &options)?.reshape((b, t, h * d))
        };
        assert_like_reference(&format!("packed {b} {t} {h} {d}"), &inputs, &packed, &separate);
    }
}

#[test]
fn strided_views_give_the_same() {
    // Heads before positions, a slice of a longer sequence, channels not neighbours.
    let inputs = [randn(1, &[2, 3, 7, 5]), randn(2, &[2, 13, 3, 5]), randn(3, &[2, 3, 5, 7])];
    let options = AttentionOptions::default();
    let views = |x: &[Tensor]| -> Result<[Tensor; 3]> {
        Ok([x[0].transpose(1, 2)?, x[1].narrow(1, 4, 7)?, x[2].permute((0, 3, 1, 2))?])
    };
    let fused = |x: &[Tensor]| views(x).and_then(|[q, k, v]| attention(&q, &k, &v, &options));
    let reference = |x: &[Tensor]| views(x).and_then(|[q, k, v]| composed(&q, &k, &v, &options));
    assert_like_reference("strided attention", &inputs, &fused, &reference);
}

#[test]
fn a_bias_on_the_scores_has_its_gradient_and_hides_with_minus_infinity() {
    let (q, k, v) = (randn(1, &[2, 7, 3, 5]), randn(2, &[2, 11, 3, 5]), randn(3, &[2, 11, 3, 5]));
    let with_bias = |x: &[Tensor]| {
        attention(
            &x[0],
            &x[1],
            &x[2],
            &AttentionOptions { mask: Mask { bias: Some(x[3].clone()), ..Mask::full() }, ..Default::default() },
        )
    };
    for shape in [&[7, 11][..], &[2, 1, 7, 11], &[2, 3, 7, 11]] {
        let inputs = [q.clone(), k.clone(), v.clone(), randn(4, shape)];
        assert_like_itself("biased attention", &inputs, &with_bias, 0.0);
    }
    let causal = attention(&q, &k, &v, &AttentionOptions::default()).unwrap();
    let terms = |i: usize| if i % 11 > i / 11 + 4 { f64::NEG_INFINITY } else { 0.0 };
    let terms = Tensor::from_vec((0..77).map(terms).collect(), (7, 11), &Device::Cpu).unwrap();
    let hidden = with_bias(&[q.clone(), k, v, terms]).unwrap();
    let difference = (causal - hidden).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    assert_eq!(difference, 0.0);
}

/// Only masks with many keys: where a single score dominates, the largest of a few rounding errors says little.
#[test]
fn the_kernel_is_the_reference_for_large_scores() {
    for (mask, scale) in [(Mask::causal(), 3.0), (Mask::full(), 3.0), (Mask::full(), 30.0)] {
        let inputs = [randn(1, &[2, 131, 3, 16]), randn(2, &[2, 131, 3, 16]), randn(3, &[2, 131, 3, 16])];
        let options = AttentionOptions { scale: Scale::Value(scale), mask, ..Default::default() };
        let fused = |x: &[Tensor]| attention(&x[0], &x[1], &x[2], &options);
        let reference = |x: &[Tensor]| composed(&x[0], &x[1], &x[2], &options);
        assert_like_reference(&format!("attention {options:?}"), &inputs, &fused, &reference);
    }
}

#[test]
fn a_window_of_one_gives_back_the_values() {
    let [q, k, v] = [1, 2, 3].map(|seed| randn(seed, &[2, 67, 3, 5]).to_dtype(DType::F32).unwrap());
    let options = AttentionOptions { mask: Mask::window(1), ..Default::default() };
    let out = attention(&q, &k, &v, &options).unwrap();
    let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(&out), values(&v));
}

#[test]
fn masks_that_do_not_fit_are_named() {
    let q = randn(1, &[2, 7, 3, 5]);
    let u32s = |shape: &[usize]| Tensor::zeros(shape, DType::U32, &Device::Cpu).unwrap();
    for (mask, expected) in [
        (Mask::window(0), "a window of at least 1"),
        (
            Mask { documents: Some(u32s(&[2, 6])), ..Mask::causal() },
            "documents of shape [2, 7] and dtype U32, got [2, 6] and U32",
        ),
        (
            Mask { key_padding: Some(KeyPadding::Real(u32s(&[2, 7]))), ..Mask::full() },
            "key padding of shape [2, 7] and dtype U8, got [2, 7] and U32",
        ),
        (
            Mask { bias: Some(randn(2, &[2, 2, 7, 7])), ..Mask::full() },
            "a bias of dtype F64 that broadcasts to (B, H, T, S) = [2, 3, 7, 7], got [2, 2, 7, 7] and F64",
        ),
    ] {
        let error = attention(&q, &q, &q, &AttentionOptions { mask, ..Default::default() }).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn options_out_of_their_range_are_named() {
    let q = randn(1, &[2, 7, 3, 5]);
    let refusal = |options: AttentionOptions| attention(&q, &q, &q, &options).unwrap_err().to_string();
    for softcap in [0.0, -1.0, f64::NAN, 1e300, 1e-46] {
        let message = refusal(AttentionOptions { softcap: Some(softcap), ..Default::default() });
        assert!(message.contains(&format!("got {softcap}")), "{message}");
    }
    for scale in [f64::NAN, f64::INFINITY, 1e39] {
        let message = refusal(AttentionOptions { scale: Scale::Value(scale), ..Default::default() });
        assert!(message.contains(&format!("got {scale}")), "{message}");
    }
    let dropout = DropoutOptions { rate: 1.0, ..Default::default() };
    let message = refusal(AttentionOptions { dropout: Some(dropout), ..Default::default() });
    assert!(message.contains("expected a rate from 0 to below 1, got 1"), "{message}");
    let empty = randn(1, &[2, 7, 3, 0]);
    let message = attention(&empty, &empty, &q, &AttentionOptions::default()).unwrap_err().to_string();
    assert!(message.contains("at least one channel"), "{message}");
}

#[test]
fn empty_keys_give_zero_gradients() {
    let var = |shape: &[usize]| candle_core::Var::from_tensor(&randn(1, shape)).unwrap();
    let (q, k, v) = (var(&[2, 5, 1, 3]), var(&[2, 0, 1, 3]), var(&[2, 0, 1, 3]));
    let options = AttentionOptions { mask: Mask::full(), ..Default::default() };
    let gradients = attention(&q, &k, &v, &options).unwrap().sum_all().unwrap().backward().unwrap();
    let of_q = gradients.get(&q).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
    assert_eq!((of_q, gradients.get(&k).unwrap().dims()), (0.0, &[2, 0, 1, 3][..]));
}

#[test]
fn empty_inputs_give_zeros_and_a_huge_window_is_causal() {
    for dtype in [DType::F32, DType::F64] {
        let of = |[b, t, s]: [usize; 3], mask: Mask| {
            let like = |rows: usize| randn(1, &[b, rows, 2, 3]).to_dtype(dtype).unwrap();
            attention(&like(t), &like(s), &like(s), &AttentionOptions { mask, ..Default::default() }).unwrap()
        };
        for sizes in [[0, 5, 5], [2, 0, 5], [2, 5, 0], [0, 0, 0]] {
            let out = of(sizes, Mask::full());
            assert_eq!(out.dims(), [sizes[0], sizes[1], 2, 3]);
            assert_eq!(
                out.abs().unwrap().sum_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap(),
                0.0
            );
        }
        let values = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let (window, causal) = (of([1, 7, 9], Mask::window(usize::MAX)), of([1, 7, 9], Mask::causal()));
        assert_eq!(values(&window), values(&causal));
    }
}

#[test]
fn no_positions_give_no_output() {
    for dtype in [DType::F32, DType::F64] {
        let qkv = Tensor::zeros((2, 0, 3 * 6), dtype, &Device::Cpu).unwrap();
        assert_eq!(self_attention(&qkv, 2, &AttentionOptions::default()).unwrap().dims(), [2, 0, 6]);
    }
}

/// In each dtype and from either layout.
#[test]
fn the_output_is_contiguous_and_a_scale_of_zero_has_a_gradient() {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        for layout in [QkvLayout::Bthd, QkvLayout::Bhtd] {
            let var =
                |seed| candle_core::Var::from_tensor(&randn(seed, &[2, 4, 4, 3]).to_dtype(dtype).unwrap()).unwrap();
            let (q, k, v) = (var(1), var(2), var(3));
            let options = AttentionOptions { scale: Scale::Value(0.0), layout, ..Default::default() };
            let out = attention(&q, &k, &v, &options).unwrap();
            assert!(out.is_contiguous() && out.layout().start_offset() == 0);
            assert!(attention_with_weights(&q, &k, &v, &options).unwrap().0.is_contiguous());
            let gradients = out.sum_all().unwrap().backward().unwrap();
            assert!([&q, &k, &v].iter().all(|var| gradients.get(var).is_some()), "{dtype:?}");
        }
    }
}

/// By hand: two equal scores of 0 and a sink of log 2 share the weight evenly.
#[test]
fn a_sink_takes_its_share() {
    for dtype in [DType::F32, DType::F64] {
        let of = |values: &[f64]| Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let q = of(&[0.0]).reshape((1, 1, 1, 1)).unwrap();
        let (k, v) = (of(&[5.0, 7.0]).reshape((1, 2, 1, 1)).unwrap(), of(&[4.0, 8.0]).reshape((1, 2, 1, 1)).unwrap());
        let options = AttentionOptions { sinks: Some(of(&[2f64.ln()])), ..Default::default() };
        let (out, lse) = attention_with_lse(&q, &k, &v, &options).unwrap();
        let one = |x: Tensor| x.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()[0];
        assert!((one(out) - 3.0).abs() < 1e-6 && (one(lse) - 4f64.ln()).abs() < 1e-6);
    }
}

#[test]
fn slopes_of_linear_biases_are_the_papers() {
    let of = |n: usize| Mask::alibi_slopes(n);
    assert_eq!(of(4), [0.25, 0.0625, 0.015625, 0.00390625]);
    let (of_8, of_16) = (of(8), of(16));
    assert_eq!(of(12), [&of_8[..], &[of_16[0], of_16[2], of_16[4], of_16[6]]].concat());
    assert_eq!((of(1), of(0)), (vec![0.00390625], vec![]));
}

/// With a full band, as in cross-attention, every query sees every key, however many queries there are.
#[test]
fn more_queries_than_keys_all_see() {
    for dtype in [DType::F32, DType::F64] {
        for t in [5, 300] {
            let [q, k, v] =
                [(1, t), (2, 3), (3, 3)].map(|(seed, n)| randn(seed, &[2, n, 2, 5]).to_dtype(dtype).unwrap());
            let options = AttentionOptions { mask: Mask::full(), ..Default::default() };
            let all = attention(&q, &k, &v, &options).unwrap();
            let first = attention(&q.narrow(1, 0, 1).unwrap(), &k, &v, &options).unwrap();
            let difference = (all.narrow(1, 0, 1).unwrap() - first).unwrap().abs().unwrap().max_all().unwrap();
            assert!(difference.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap() < 1e-6, "{t} of {dtype:?}");
        }
    }
}
