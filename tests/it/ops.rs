//! The operations: formulas, gradients and edge cases.

use candle_attention::ops::{self, AttentionOptions, Mask, Scale, attention, attention_with_weights};
use candle_core::{DType, Device, Result, Tensor, Var};

use crate::support::{assert_close, check_gradients, randn, values};

fn allowed(rows: &[&[u8]]) -> Mask {
    let flat: Vec<u8> = rows.concat();
    Mask { allowed: Some(Tensor::from_vec(flat, (rows.len(), rows[0].len()), &Device::Cpu).unwrap()), ..Mask::full() }
}

/// Attention by its formula, in plain loops over `f64`: (B, T, H, D) row by row.
fn by_the_formula(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, sees: impl Fn(usize, usize) -> bool) -> Tensor {
    let (b, t, h, d) = q.dims4().unwrap();
    let (s, e) = (k.dim(1).unwrap(), v.dim(3).unwrap());
    let at =
        |x: &[f64], dims: [usize; 4], i: [usize; 4]| x[((i[0] * dims[1] + i[1]) * dims[2] + i[2]) * dims[3] + i[3]];
    let (q, k, v) = (values(q), values(k), values(v));
    let mut out = vec![];
    for b_i in 0..b {
        for t_i in 0..t {
            for h_i in 0..h {
                let score = |s_i: usize| {
                    let products = (0..d).map(|d_i| {
                        at(&q, [b, t, h, d], [b_i, t_i, h_i, d_i]) * at(&k, [b, s, h, d], [b_i, s_i, h_i, d_i])
                    });
                    scale * products.sum::<f64>()
                };
                let seen: Vec<usize> = (0..s).filter(|&s_i| sees(t_i, s_i)).collect();
                let highest = seen.iter().map(|&s_i| score(s_i)).fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = seen.iter().map(|&s_i| (score(s_i) - highest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for e_i in 0..e {
                    let terms = seen.iter().zip(&weights);
                    out.push(terms.map(|(&s_i, w)| w / sum * at(&v, [b, s, h, e], [b_i, s_i, h_i, e_i])).sum::<f64>());
                }
            }
        }
    }
    Tensor::from_vec(out, (b, t, h, e), &Device::Cpu).unwrap()
}

#[test]
fn attention_is_its_formula() {
    let (q, k, v) = (randn(1, &[2, 5, 3, 7]), randn(2, &[2, 11, 3, 7]), randn(3, &[2, 11, 3, 13]));
    for (scale, factor) in [(Scale::InverseSqrt, 7f64.powf(-0.5)), (Scale::One, 1.0), (Scale::Value(0.3), 0.3)] {
        let of = |mask| attention(&q, &k, &v, &AttentionOptions { scale, mask, ..Default::default() }).unwrap();
        let formula = |sees: &dyn Fn(usize, usize) -> bool| by_the_formula(&q, &k, &v, factor, sees);
        assert_close("full", &of(Mask::full()), &formula(&|_, _| true), 1e-13);
        assert_close("causal", &of(Mask::causal()), &formula(&|t, s| s <= t + 6), 1e-13);
    }
    let checkers: Vec<Vec<u8>> = (0..5).map(|t| (0..11).map(|s| u8::from((t + s) % 3 == 0)).collect()).collect();
    let rows: Vec<&[u8]> = checkers.iter().map(Vec::as_slice).collect();
    let options = AttentionOptions { scale: Scale::One, mask: allowed(&rows), ..Default::default() };
    let expected = by_the_formula(&q, &k, &v, 1.0, |t, s| (t + s) % 3 == 0);
    assert_close("checkers", &attention(&q, &k, &v, &options).unwrap(), &expected, 1e-13);
}

#[test]
fn a_query_that_sees_nothing_gives_zeros_and_zero_gradients() {
    let [q, k, v] = [1, 2, 3].map(|seed| Var::from_tensor(&randn(seed, &[1, 3, 2, 5])).unwrap());
    let options = AttentionOptions { mask: allowed(&[&[1, 1, 0], &[0, 0, 0], &[0, 1, 1]]), ..Default::default() };
    let (out, weights) = attention_with_weights(&q, &k, &v, &options).unwrap();
    assert!(values(&out.narrow(1, 1, 1).unwrap()).iter().all(|x| *x == 0.0));
    assert!(values(&weights.narrow(2, 1, 1).unwrap()).iter().all(|x| *x == 0.0));
    let gradients = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    assert!(values(&gradients.get(&q).unwrap().narrow(1, 1, 1).unwrap()).iter().all(|x| *x == 0.0));
    for var in [&q, &k, &v] {
        assert!(values(gradients.get(var).unwrap()).iter().all(|x| x.is_finite()));
    }
    let vars: Vec<_> = ["q", "k", "v"].map(String::from).into_iter().zip([q.clone(), k.clone(), v.clone()]).collect();
    check_gradients(&vars, || (attention(&q, &k, &v, &options)? * randn(4, &[1, 3, 2, 5]))?.sum_all());
}

#[test]
fn huge_scores_stay_finite() {
    let [q, k, v] =
        [1, 2, 3].map(|seed| Var::from_tensor(&randn(seed, &[1, 7, 2, 5]).to_dtype(DType::F32).unwrap()).unwrap());
    let options = AttentionOptions { scale: Scale::Value(1e4), ..Default::default() };
    let out = attention(&q, &k, &v, &options).unwrap();
    let gradients = out.sum_all().unwrap().backward().unwrap();
    assert!(values(&out).iter().all(|x| x.is_finite()));
    for var in [&q, &k, &v] {
        assert!(values(gradients.get(var).unwrap()).iter().all(|x| x.is_finite()));
    }
    let logits = (randn(4, &[3, 11]).to_dtype(DType::F32).unwrap() * 1e4).unwrap();
    let targets = Tensor::new(&[1u32, 2, 3], &Device::Cpu).unwrap();
    assert!(
        ops::cross_entropy(&logits, &targets, &Default::default()).unwrap().to_scalar::<f32>().unwrap().is_finite()
    );
}

#[test]
fn attention_names_what_does_not_fit() {
    let q = randn(1, &[2, 5, 3, 7]);
    let refusal = |k: &[usize], v: &[usize], options: &AttentionOptions| {
        attention(&q, &randn(2, k), &randn(3, v), options).unwrap_err().to_string()
    };
    let options = AttentionOptions::default();
    for (message, expected) in [
        (refusal(&[2, 11, 3, 6], &[2, 11, 3, 13], &options), "expected k of shape [2, 11, 3, 7]"),
        (refusal(&[2, 11, 3, 7], &[2, 11, 2, 13], &options), "got [2, 11, 3, 7] and [2, 11, 2, 13]"),
        (
            refusal(&[2, 11, 3, 7], &[1, 11, 3, 13], &options),
            "and v of shape [2, 11, 3, 13] to go with q, got [2, 11, 3, 7] and [1, 11, 3, 13]",
        ),
        (refusal(&[2, 11, 3], &[2, 11, 3, 13], &options), "expected k of shape (B, T, H, D), got [2, 11, 3]"),
        (refusal(&[2, 4, 3, 7], &[2, 4, 3, 7], &options), "at least as many keys as queries, got 4 keys for 5 queries"),
        (
            refusal(&[2, 5, 3, 7], &[2, 5, 3, 7], &AttentionOptions { mask: allowed(&[&[1, 1]]), ..options.clone() }),
            "expected an allowed set of dtype U8 that broadcasts to (B, H, T, S) = [2, 3, 5, 5], got [1, 2] and U8",
        ),
    ] {
        assert!(message.starts_with("attention: ") && message.contains(expected), "{message}");
    }
    let mixed = attention(&q, &q, &q.to_dtype(DType::F32).unwrap(), &options).unwrap_err().to_string();
    assert!(mixed.contains("expected v of the dtype F64 of q, got F32"), "{mixed}");
}

#[test]
fn gelus_are_their_formulas_with_exact_gradients() {
    let xs = Var::from_tensor(&(randn(1, &[41]) * 3.0).unwrap()).unwrap();
    let vars = [("x".to_string(), xs.clone())];
    check_gradients(&vars, || (ops::gelu_erf(&xs)? * randn(2, &[41]))?.sum_all());
    check_gradients(&vars, || (ops::gelu_tanh(&xs)? * randn(2, &[41]))?.sum_all());
    let known = Tensor::new(&[-1.0f64, 0.0, 1.0, 2.0], &Device::Cpu).unwrap();
    // scipy: x * norm.cdf(x), and the tanh formula.
    let erf = Tensor::new(&[-0.15865525393145707, 0.0, 0.8413447460685429, 1.9544997361036416], &Device::Cpu).unwrap();
    let tanh = Tensor::new(&[-0.15880800939172324, 0.0, 0.8411919906082768, 1.954597694087775], &Device::Cpu).unwrap();
    assert_close("erf", &ops::gelu_erf(&known).unwrap(), &erf, 1e-7);
    assert_close("tanh", &ops::gelu_tanh(&known).unwrap(), &tanh, 1e-14);
}

#[test]
fn activations_and_gated_products_are_their_formulas_with_exact_gradients() {
    let (gate, up) = (randn(1, &[41]), Var::from_tensor(&randn(2, &[41])).unwrap());
    let gate = Var::from_tensor(&(gate * 3.0).unwrap()).unwrap();
    let vars = [("gate".to_string(), gate.clone()), ("up".to_string(), up.clone())];
    type Gated = fn(&Tensor, &Tensor) -> Result<Tensor>;
    let hold = |name: &str, op: Gated, formula: &dyn Fn(f64) -> f64| {
        let expected: Vec<f64> = values(&gate).into_iter().zip(values(&up)).map(|(x, up)| formula(x) * up).collect();
        let expected = Tensor::from_vec(expected, 41, &Device::Cpu).unwrap();
        assert_close(name, &op(&gate, &up).unwrap(), &expected, 1e-14);
        check_gradients(&vars, || (op(&gate, &up)? * randn(3, &[41]))?.sum_all());
    };
    let silu = |x: f64| x / (1.0 + (-x).exp());
    hold("silu", |gate, up| ops::silu(gate)? * up, &silu);
    hold("swiglu", ops::swiglu, &silu);
    hold("relu-squared", |gate, up| ops::relu_squared(gate)? * up, &|x| x.max(0.0).powi(2));
    hold("reglu", ops::reglu, &|x| x.max(0.0));
    let inner = |x: f64| (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    hold("geglu-tanh", ops::geglu_tanh, &|x| x * (1.0 + inner(x).tanh()) / 2.0);
    let erf = values(&ops::gelu_erf(&gate).unwrap());
    let at = values(&gate);
    hold("geglu-erf", ops::geglu_erf, &|x| erf[at.iter().position(|y| *y == x).unwrap()]);
}

#[test]
fn rotary_embedding_has_exact_gradients() {
    let xs = Var::from_tensor(&randn(1, &[2, 3, 5, 4])).unwrap();
    let (cos, sin) = ops::rotary_tables(100.0, 4, 7, 3, &xs).unwrap();
    for pairs in [ops::RotaryPairs::Halves, ops::RotaryPairs::Neighbours] {
        let vars = [("x".to_string(), xs.clone())];
        check_gradients(&vars, || {
            (ops::rotary(&xs, &cos, &sin, pairs, ops::QkvLayout::Bthd)? * randn(2, &[2, 3, 5, 4]))?.sum_all()
        });
    }
}

#[test]
fn cross_entropy_is_its_formula_with_exact_gradients() {
    let logits = Var::from_tensor(&randn(1, &[2, 3, 7])).unwrap();
    let targets = Tensor::new(&[[0u32, 6, 3], [2, 2, 5]], &Device::Cpu).unwrap();
    let rows = logits.reshape((6, 7)).unwrap().to_vec2::<f64>().unwrap();
    let loss = |row: &Vec<f64>, target: usize| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[target];
    let expected = rows.iter().zip([0, 6, 3, 2, 2, 5]).map(|(row, target)| loss(row, target)).sum::<f64>() / 6.0;
    let got = ops::cross_entropy(&logits, &targets, &Default::default()).unwrap().to_scalar::<f64>().unwrap();
    assert!((got - expected).abs() < 1e-14, "{got}, expected {expected}");
    check_gradients(&[("logits".to_string(), logits.clone())], || {
        ops::cross_entropy(&logits, &targets, &Default::default())
    });

    let outside = Tensor::new(&[[0u32, 7, 3], [2, 2, 5]], &Device::Cpu).unwrap();
    assert!(ops::cross_entropy(&logits, &outside, &Default::default()).is_err());
    let short = Tensor::new(&[[0u32, 6], [2, 2]], &Device::Cpu).unwrap();
    let message = ops::cross_entropy(&logits, &short, &Default::default()).unwrap_err().to_string();
    assert!(message.contains("cross-entropy: expected targets of the leading shape of logits [2, 3, 7]"), "{message}");
}
