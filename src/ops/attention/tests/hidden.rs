//! What a query may not see has no effect, whatever lies there.

use candle_core::{DType, Device, Tensor, Var};

use super::super::*;
use crate::cpu::testing::randn;

fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Fails where two tensors differ, but for rows (of dimension 1) in which `is_free`.
fn assert_same(label: &str, got: &Tensor, clean: &Tensor, tolerance: f64, is_free: impl Fn(usize) -> bool) {
    let (n, rest): (usize, usize) = (got.dims()[1], got.dims()[2..].iter().product());
    for (i, (got, clean)) in values(got).into_iter().zip(values(clean)).enumerate() {
        let row = i / rest % n;
        assert!(is_free(row) || (got - clean).abs() <= tolerance, "{label}: row {row}: {got}, clean {clean}");
    }
}

/// Sets the rows of (B, T, H, D) for which `is_poisoned` to a number, here and there.
fn poisoned(x: &Tensor, with: f64, is_poisoned: &dyn Fn(usize) -> bool) -> Tensor {
    let (b, t, h, d) = x.dims4().unwrap();
    let set = |(i, x): (usize, f64)| if is_poisoned(i / (h * d) % t) && i % 3 != 1 { with } else { x };
    let values = values(x).into_iter().enumerate().map(set).collect();
    Tensor::from_vec(values, (b, t, h, d), &Device::Cpu).unwrap().to_dtype(x.dtype()).unwrap()
}

/// Masks for `s` positions, and the keys that no query sees with them.
fn masks(s: usize) -> Vec<(&'static str, Mask, Vec<usize>)> {
    let of = |shape: &[usize], f: &dyn Fn(usize) -> u8| {
        let values: Vec<u8> = (0..shape.iter().product()).map(f).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let hidden = vec![3, 66, s - 2];
    let is_hidden = |key: usize| [3, 66, s - 2].contains(&key);
    let real = of(&[2, s], &|i| u8::from(!is_hidden(i % s)));
    let bias = real.to_dtype(DType::F64).unwrap().log().unwrap().narrow(0, 0, 1).unwrap();
    let padded = Some(KeyPadding::Real(real.clone()));
    let left = KeyPadding::Left(vec![s - 70; 2]);
    let documents: Vec<u32> = (0..2 * s).map(|i| if is_hidden(i % s) { 9 + (i % s) as u32 } else { 0 }).collect();
    let documents = Tensor::from_vec(documents, (2, s), &Device::Cpu).unwrap();
    let right = KeyPadding::Right(vec![s - 5; 2]);
    vec![
        ("padding", Mask { key_padding: padded.clone(), ..Mask::full() }, hidden.clone()),
        ("causal padding", Mask { key_padding: padded.clone(), ..Mask::causal() }, hidden.clone()),
        ("padding in a window", Mask { key_padding: padded, ..Mask::window(20) }, hidden.clone()),
        ("padding on the right", Mask { key_padding: Some(right), ..Mask::full() }, (s - 5..s).collect()),
        ("padding on the left", Mask { key_padding: Some(left), ..Mask::causal() }, (0..70).collect()),
        ("an allowed set", Mask { allowed: Some(real.narrow(0, 0, 1).unwrap()), ..Mask::full() }, hidden.clone()),
        ("a bias", Mask { bias: Some(bias), ..Mask::full() }, hidden.clone()),
        ("documents", Mask { documents: Some(documents), ..Mask::full() }, hidden),
    ]
}

/// In `f32` by the kernel, in others composed, at once and in chunks.
#[test]
fn keys_that_no_query_sees_change_neither_results_nor_gradients() {
    for (s, dtype, softcaps) in [
        (131, DType::F32, &[None, Some(3.0)][..]),
        (75, DType::F64, &[Some(3.0)]),
        (260, DType::F64, &[None]),
        (75, DType::BF16, &[None]),
    ] {
        let tolerance = if dtype == DType::F64 {
            1e-12
        } else if dtype == DType::F32 {
            1e-4
        } else {
            0.1
        };
        for (name, mask, hidden) in masks(s) {
            let blind = |row: usize| mask.documents.is_some() && hidden.contains(&row);
            for &softcap in softcaps {
                let bias = mask.bias.as_ref().map(|bias| bias.to_dtype(dtype).unwrap());
                let options = AttentionOptions { softcap, mask: Mask { bias, ..mask.clone() }, ..Default::default() };
                let run = |with: Option<f64>| {
                    let var = |seed: u64, heads: usize, is_key: bool| {
                        let x = randn(seed, &[2, s, heads, 3]).to_dtype(dtype).unwrap();
                        let with = with.filter(|_| is_key);
                        let x = with.map_or(x.clone(), |with| poisoned(&x, with, &|row| hidden.contains(&row)));
                        Var::from_tensor(&x).unwrap()
                    };
                    let (q, k, v) = (var(1, 2, false), var(2, 1, true), var(3, 1, true));
                    let out = attention(&q, &k, &v, &options).unwrap();
                    let weighted = (&out * randn(4, out.dims()).to_dtype(dtype).unwrap()).unwrap();
                    let gradients = weighted.sum_all().unwrap().backward().unwrap();
                    let [dq, dk, dv] = [&q, &k, &v].map(|var| gradients.get(var).unwrap().clone());
                    [out, dq, dk, dv]
                };
                let clean = run(None);
                // What overflows in a product is as bad as what has already done so.
                let largest = if dtype == DType::F64 { f64::MAX } else { 3.3e38 };
                for with in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -largest] {
                    for ((got, clean), what) in run(Some(with)).iter().zip(&clean).zip(["out", "dq", "dk", "dv"]) {
                        let label = format!("{name}, {s} of {dtype:?}, {softcap:?}, {with}: {what}");
                        // A document of its own is seen by its own query.
                        assert_same(&label, got, clean, tolerance, blind);
                    }
                }
            }
        }
    }
}

/// A value that later queries see and earlier ones don't: in one tile, as in another.
#[test]
fn what_only_later_queries_see_leaves_the_earlier_ones_alone() {
    for (t, dtype) in [(70, DType::F32), (70, DType::F64), (300, DType::F64)] {
        let [q, k, v] = [1, 2, 3].map(|seed| randn(seed, &[1, t, 2, 5]).to_dtype(dtype).unwrap());
        for mask in [Mask::causal(), Mask::window(30)] {
            let options = AttentionOptions { mask, ..Default::default() };
            let clean = attention(&q, &k, &v, &options).unwrap();
            for with in [f64::NAN, f64::INFINITY] {
                let bad = |x: &Tensor| poisoned(x, with, &|row| row == 66);
                let var = |x: &Tensor| Var::from_tensor(x).unwrap();
                let tracked = [var(&q), var(&bad(&k)), var(&bad(&v))];
                let out = attention(&tracked[0], &tracked[1], &tracked[2], &options).unwrap();
                let sees = |row: usize| row >= 66 && (options.mask.band == Band::Causal || row < 66 + 30);
                assert_same("out", &out, &clean, 1e-5, sees);
                let gradients = out.narrow(1, 0, 66).unwrap().sum_all().unwrap().backward().unwrap();
                let dq = gradients.get(&tracked[0]).unwrap();
                assert!(values(&dq.narrow(1, 0, 66).unwrap()).iter().all(|x| x.is_finite()));
                // A query that is not a number reaches the keys that it sees, and no others.
                let tracked = [var(&poisoned(&q, with, &|row| row == 10)), var(&k), var(&v)];
                let out = attention(&tracked[0], &tracked[1], &tracked[2], &options).unwrap();
                let gradients = out.sum_all().unwrap().backward().unwrap();
                for var in &tracked[1..] {
                    let of_later = gradients.get(var).unwrap().narrow(1, 11, t - 11).unwrap();
                    assert!(values(&of_later).iter().all(|x| x.is_finite()));
                }
            }
        }
    }
}

/// Decoding reads keys and values where they lie.
#[test]
fn a_single_query_leaves_hidden_keys_out() {
    let [q, k, v] =
        [(1, 1), (2, 131), (3, 131)].map(|(seed, n)| randn(seed, &[2, n, 2, 5]).to_dtype(DType::F32).unwrap());
    for (name, mask, hidden) in masks(131) {
        let bias = mask.bias.as_ref().map(|bias| bias.to_dtype(DType::F32).unwrap());
        let allowed = mask.allowed.clone();
        let options = AttentionOptions { mask: Mask { bias, allowed, ..mask }, ..Default::default() };
        let bad = |x: &Tensor| poisoned(x, f64::NAN, &|row| hidden.contains(&row));
        let clean = attention(&q, &k, &v, &options).unwrap();
        assert_same(name, &attention(&q, &bad(&k), &bad(&v), &options).unwrap(), &clean, 0.0, |_| false);
    }
}

/// A gradient that is not a number stays with the keys that its query sees: by the kernel, and in chunks.
#[test]
fn a_gradient_that_is_not_a_number_reaches_what_its_query_sees() {
    for (t, dtype) in [(70, DType::F32), (300, DType::F64)] {
        let var = |seed| Var::from_tensor(&randn(seed, &[1, t, 1, 3]).to_dtype(dtype).unwrap()).unwrap();
        let (q, k, v) = (var(1), var(2), var(3));
        let out = attention(&q, &k, &v, &AttentionOptions::default()).unwrap();
        let dout = poisoned(&out, f64::NAN, &|row| row == 10);
        let gradients = (&out * dout.detach()).unwrap().sum_all().unwrap().backward().unwrap();
        for var in [&q, &k, &v] {
            let of_later = gradients.get(var).unwrap().narrow(1, 11, t - 11).unwrap();
            assert!(values(&of_later).iter().all(|x| x.is_finite()), "{t} of {dtype:?}");
        }
    }
}

/// A single query whose window lies behind all keys, which end inside a tile.
#[test]
fn a_single_query_past_all_keys_gets_zeros() {
    let of = |seed: u64, t: usize| randn(seed, &[1, t, 2, 8]).to_dtype(DType::F32).unwrap();
    let mask = Mask { query_positions: Some(vec![1000]), ..Mask::window(5) };
    let options = AttentionOptions { mask, ..Default::default() };
    let out = attention(&of(1, 1), &of(2, 70), &of(3, 70), &options).unwrap();
    assert!(out.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|x| *x == 0.0));
}
