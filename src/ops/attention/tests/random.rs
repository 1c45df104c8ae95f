//! Random calls of attention, with every combination of options, against the formula in plain loops and against the
//! composed operation.

use candle_core::{DType, Device, Result, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::*;
use crate::cpu::testing::{assert_like_itself, randn};
use crate::ops::{DropoutOptions, RandomKey, sequential};

/// A random call: inputs in `f64` are queries, keys and values, then a tracked bias and tracked sinks if there are any.
struct Case {
    label: String,
    sizes: [usize; 7],
    inputs: Vec<Tensor>,
    options: AttentionOptions,
    tracks_bias: bool,
    tracks_sinks: bool,
}

fn pick<T: Clone>(rng: &mut StdRng, items: &[T]) -> T {
    items[rng.random_range(0..items.len())].clone()
}

/// A shape that broadcasts to these sizes.
fn broadcastable(rng: &mut StdRng, sizes: [usize; 4]) -> Vec<usize> {
    let shape: Vec<usize> = sizes.iter().map(|size| if rng.random_bool(0.3) { 1 } else { *size }).collect();
    shape[rng.random_range(0..3)..].to_vec()
}

fn bits(rng: &mut StdRng, shape: &[usize]) -> Tensor {
    let share = pick(rng, &[0.0, 0.1, 0.5, 0.9, 1.0]);
    let bits: Vec<u8> = (0..shape.iter().product()).map(|_| u8::from(rng.random_bool(share)) * 3).collect();
    Tensor::from_vec(bits, shape, &Device::Cpu).unwrap()
}

fn sizes(rng: &mut StdRng) -> [usize; 7] {
    let positions = |rng: &mut StdRng| match rng.random_range(0..3) {
        0 => rng.random_range(1..10),
        1 => rng.random_range(60..72),
        _ => rng.random_range(100..200),
    };
    let (t, s) = (positions(rng), positions(rng));
    let g = rng.random_range(1..3);
    let [b, d, e] = [4, 20, 20].map(|most| rng.random_range(1..most));
    [b, t, s, g * rng.random_range(1..4), g, d, e]
}

fn mask(rng: &mut StdRng, seed: u64, [b, t, s, h, ..]: [usize; 7]) -> Mask {
    let band = match rng.random_range(0..4) {
        0 => Band::Causal,
        1 => Band::Full,
        2 => Band::Window(rng.random_range(1..100)),
        _ => Band::Prefix(rng.random_range(0..100)),
    };
    let with_documents = rng.random_bool(0.3);
    let has_no_positions = t > s && (band != Band::Full || with_documents);
    let starts_elsewhere = has_no_positions || rng.random_bool(0.2);
    let start = |_| rng.random_range(-(t as i64)..=s as i64);
    let query_positions = starts_elsewhere.then(|| (0..b).map(start).collect());
    let documents = with_documents.then(|| {
        // A new document now and then, in turn one of three.
        let (share, mut number) = (pick(rng, &[0.01, 0.1, 0.5]), 0);
        let numbers = (0..b * s).map(|_| {
            number = (number + u32::from(rng.random_bool(share))) % 3;
            [0, 7, u32::MAX][number as usize]
        });
        Tensor::from_vec(numbers.collect(), (b, s), &Device::Cpu).unwrap()
    });
    let mut lengths = || (0..b).map(|_| rng.random_range(0..=s)).collect();
    let key_padding = match seed % 6 {
        0 => Some(KeyPadding::Left(lengths())),
        1 => Some(KeyPadding::Right(lengths())),
        2 => Some(KeyPadding::Real(bits(rng, &[b, s]))),
        _ => None,
    };
    let shape = broadcastable(rng, [b, h, t, s]);
    let allowed = rng.random_bool(0.2).then(|| bits(rng, &shape));
    let shape = broadcastable(rng, [b, h, t, s]);
    let bias = rng.random_bool(0.3).then(|| {
        let hidden = Tensor::full(f64::NEG_INFINITY, shape.as_slice(), &Device::Cpu).unwrap();
        let bias = randn(seed ^ 5, &shape);
        if rng.random_bool(0.5) { bits(rng, &shape).where_cond(&bias, &hidden).unwrap() } else { bias }
    });
    let alibi = rng.random_bool(0.2).then(|| Mask::alibi_slopes(h));
    Mask { band, documents, key_padding, allowed, bias, alibi, query_positions }
}

impl Case {
    fn new(seed: u64) -> Self {
        let rng = &mut StdRng::seed_from_u64(seed);
        let sizes @ [b, t, s, h, g, d, e] = sizes(rng);
        let mask = mask(rng, seed, sizes);
        let dropout = rng.random_bool(0.2).then(|| DropoutOptions {
            rate: rng.random_range(0.0..0.9),
            key: RandomKey { seed, ..Default::default() },
            first_sequence: rng.random(),
        });
        let options = AttentionOptions {
            scale: pick(
                rng,
                &[Scale::InverseSqrt, Scale::One, Scale::Value(0.0), Scale::Value(1.3), Scale::Value(3.0)],
            ),
            mask,
            softcap: rng.random_bool(0.3).then(|| rng.random_range(0.5..50.0)),
            sinks: rng.random_bool(0.3).then(|| randn(seed ^ 4, &[h])),
            dropout,
            layout: pick(rng, &[QkvLayout::Bthd, QkvLayout::Bhtd]),
        };
        let (tracks_bias, tracks_sinks) =
            (options.mask.bias.is_some() && rng.random_bool(0.5), options.sinks.is_some() && rng.random_bool(0.5));
        let shape = |n: usize, heads: usize, channels: usize| match options.layout {
            QkvLayout::Bthd => [b, n, heads, channels],
            QkvLayout::Bhtd => [b, heads, n, channels],
        };
        let mut inputs =
            vec![randn(seed ^ 1, &shape(t, h, d)), randn(seed ^ 2, &shape(s, g, d)), randn(seed ^ 3, &shape(s, g, e))];
        inputs.extend(options.mask.bias.clone().filter(|_| tracks_bias));
        inputs.extend(options.sinks.clone().filter(|_| tracks_sinks));
        let label =
            format!("case {seed}: {sizes:?}, {:?}, {:?}, {:?}", options.mask.band, options.scale, options.softcap);
        Self { label, sizes, inputs, options, tracks_bias, tracks_sinks }
    }

    /// The options for these inputs.
    fn options(&self, x: &[Tensor]) -> Result<AttentionOptions> {
        let in_dtype =
            |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| tensor.to_dtype(x[0].dtype())).transpose();
        let mut extras = x[3..].iter().cloned();
        let mut given = |tracked: bool, tensor| if tracked { Ok(extras.next()) } else { in_dtype(tensor) };
        let bias = given(self.tracks_bias, &self.options.mask.bias)?;
        let sinks = given(self.tracks_sinks, &self.options.sinks)?;
        Ok(AttentionOptions { mask: Mask { bias, ..self.options.mask.clone() }, sinks, ..self.options.clone() })
    }

    /// The output and the log-sum-exp, side by side: (B, T, H, E + 1).
    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        let (out, lse) = attention_with_lse(&x[0], &x[1], &x[2], &self.options(x)?)?;
        let out = if self.options.layout == QkvLayout::Bthd { out } else { out.transpose(1, 2)? };
        // Where nothing is seen it is minus infinity.
        let lse = lse.transpose(1, 2)?.unsqueeze(3)?;
        let lse = lse.gt(f64::NEG_INFINITY)?.where_cond(&lse, &lse.zeros_like()?.detach())?;
        Tensor::cat(&[out, lse.to_dtype(x[0].dtype())?], 3)
    }

    /// The size of terms that may cancel: an absolute error in a score is a relative one in its weight, and grows with
    /// the score.
    fn terms(&self) -> f64 {
        let longest = |xs: &Tensor| {
            let squares = xs.sqr().unwrap().sum(candle_core::D::Minus1).unwrap();
            squares.max_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
        };
        let [.., d, e] = self.sizes;
        let scale = self.options.scale.factor(d);
        let kept = 1.0 - self.options.dropout.map_or(0.0, |dropout| dropout.rate);
        let [q, k, v] = [0, 1, 2].map(|i| longest(&self.inputs[i]));
        // A random gradient of E channels is about sqrt(E) long.
        let dweights = 2.0 * (e as f64).sqrt() * v / kept + 1.0;
        let scores = scale * q * k + if self.options.mask.alibi.is_some() { 200.0 } else { 0.0 };
        (1.0 + scores) * (v / kept).max(dweights).max(dweights * scale * q.max(k))
    }

    /// The formula in plain loops: as [`Case::run`]. Without dropout.
    fn formula(&self) -> Tensor {
        let [b, t, s, h, g, d, e] = self.sizes;
        let options = &self.options;
        let rows = |i: usize| {
            let x = &self.inputs[i];
            let x = if options.layout == QkvLayout::Bthd { x.clone() } else { x.transpose(1, 2).unwrap() };
            let (_, n, heads, _) = x.dims4().unwrap();
            let rows: Vec<Vec<f64>> = x.reshape((b * n * heads, ())).unwrap().to_vec2().unwrap();
            move |b_i: usize, n_i: usize, h_i: usize| rows[(b_i * n + n_i) * heads + h_i].clone()
        };
        let (q, k, v) = (rows(0), rows(1), rows(2));
        let mask = &options.mask;
        let dense = |tensor: &Option<Tensor>| {
            let full = tensor.as_ref()?.to_dtype(DType::F64).unwrap().broadcast_as((b, h, t, s)).unwrap();
            Some(full.flatten_all().unwrap().to_vec1::<f64>().unwrap())
        };
        let (allowed, bias) = (dense(&mask.allowed), dense(&mask.bias));
        let documents = mask.documents.as_ref().map(|x| x.to_vec2::<u32>().unwrap());
        let is_real = |b_i: usize, key: usize| match &mask.key_padding {
            Some(KeyPadding::Left(lengths)) => key + lengths[b_i] >= s,
            Some(KeyPadding::Right(lengths)) => key < lengths[b_i],
            Some(KeyPadding::Real(keys)) => keys.to_vec2::<u8>().unwrap()[b_i][key] != 0,
            None => true,
        };
        let sinks = options.sinks.as_ref().map(|sinks| sinks.to_vec1::<f64>().unwrap());
        let mut out = Vec::new();
        for (b_i, t_i, h_i) in indices([b, t, h]) {
            let position = mask.query_positions.as_ref().map_or(s as i64 - t as i64, |first| first[b_i]) + t_i as i64;
            let sees = |key: usize| {
                let s_i = key as i64;
                let by_band = match mask.band {
                    Band::Full => true,
                    Band::Causal => s_i <= position,
                    Band::Window(n) => s_i <= position && position < s_i + n as i64,
                    Band::Prefix(n) => s_i <= position || key < n,
                };
                let index = ((b_i * h + h_i) * t + t_i) * s + key;
                let by_document = documents.as_ref().is_none_or(|numbers| {
                    usize::try_from(position).is_ok_and(|p| numbers[b_i].get(p) == Some(&numbers[b_i][key]))
                });
                (position >= 0 || mask.band == Band::Full)
                    && by_band
                    && by_document
                    && is_real(b_i, key)
                    && allowed.as_ref().is_none_or(|allowed| allowed[index] != 0.0)
                    && bias.as_ref().is_none_or(|bias| bias[index] != f64::NEG_INFINITY)
            };
            let score = |key: usize| {
                let (q, k) = (q(b_i, t_i, h_i), k(b_i, key, h_i * g / h));
                let product = options.scale.factor(d) * q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>();
                let capped = options.softcap.map_or(product, |cap| cap * (product / cap).tanh());
                let slope = mask.alibi.as_ref().map_or(0.0, |slopes| slopes[h_i]);
                let of_bias = bias.as_ref().map_or(0.0, |bias| bias[((b_i * h + h_i) * t + t_i) * s + key]);
                capped - slope * (position - key as i64).abs() as f64 + of_bias
            };
            let seen: Vec<(usize, f64)> = (0..s).filter(|key| sees(*key)).map(|key| (key, score(key))).collect();
            let sink = sinks.as_ref().map(|sinks| sinks[h_i]);
            let max = seen.iter().map(|(_, score)| *score).chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = seen.iter().map(|(_, score)| *score).chain(sink).map(|score| (score - max).exp()).sum();
            let mut row = vec![0.0; e + 1];
            for (key, score) in &seen {
                let weight = (score - max).exp() / sum;
                row.iter_mut().zip(v(b_i, *key, h_i * g / h)).for_each(|(x, v)| *x += weight * v);
            }
            row[e] = if sum > 0.0 { max + sum.ln() } else { 0.0 };
            out.extend(row);
        }
        Tensor::from_vec(out, (b, t, h, e + 1), &Device::Cpu).unwrap()
    }
}

/// All indices of three dimensions, in order.
fn indices([a, b, c]: [usize; 3]) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}

const CASES: u64 = 100;

#[test]
fn the_composed_operation_is_the_formula() {
    for case in (0..CASES).map(Case::new) {
        let options = AttentionOptions { dropout: None, ..case.options.clone() };
        let case = Case { options, ..case };
        let (got, expected) = (case.run(&case.inputs).unwrap(), case.formula());
        let largest = expected.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        let error = (got - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        assert!(error <= 1e-12 * (largest + case.terms()), "{}: {error:e}", case.label);
    }
}

#[test]
fn the_kernel_is_the_composed_operation() {
    for (i, case) in (0..CASES).step_by(2).map(Case::new).enumerate() {
        let hold = || assert_like_itself(&case.label, &case.inputs, &|x| case.run(x), case.terms());
        if i % 2 == 0 { sequential(hold) } else { hold() }
    }
}
