//! The operations, each beside the same formula of candle's and candle-nn's differentiable operations.

use candle_attention::ops::{self, CrossEntropyOptions, RotaryPairs};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{Embedding, Linear};

use super::composed_attention;

/// The longest sequence for which the composed side still holds all attention weights.
const LONGEST_COMPOSED: usize = 2048;

/// A formula of the tensors of a [`Pair`]: inputs, then constants.
pub type Op = fn(&[Tensor]) -> Result<Tensor>;

/// The same formula, fused and composed.
pub struct Pair {
    pub name: String,
    /// The shapes of the tensors with a gradient.
    pub inputs: Vec<Vec<usize>>,
    pub constants: Vec<Tensor>,
    pub fused: Op,
    /// `None` if it would hold too much.
    pub composed: Option<Op>,
}

impl Pair {
    fn new(name: impl Into<String>, inputs: &[&[usize]], fused: Op, composed: Op) -> Self {
        let inputs = inputs.iter().map(|shape| shape.to_vec()).collect();
        Self { name: name.into(), inputs, constants: Vec::new(), fused, composed: Some(composed) }
    }

    fn with_constants(self, constants: &[Tensor]) -> Self {
        Self { constants: constants.to_vec(), ..self }
    }
}

/// All pairs, for B sequences of T positions with C = H D channels, F inner channels and V classes; attention for each
/// given B, H, T, D.
pub fn pairs([b, t, h, d, f, v]: [usize; 6], attention_shapes: &[[usize; 4]]) -> Result<Vec<Pair>> {
    let mut pairs = attention_shapes.iter().map(attention).collect::<Result<Vec<_>>>()?;
    pairs.push(rotary([b, t, h, d])?);
    let c = h * d;
    pairs.extend(linear(&[b, t, c], f));
    pairs.extend(norms(&[b, t, c]));
    pairs.extend(activations(&[b, t, f]));
    pairs.extend(tokens([b * t, c, v])?);
    Ok(pairs)
}

fn attention(&[b, h, t, d]: &[usize; 4]) -> Result<Pair> {
    let mut pair = Pair::new(
        format!("attention B {b} H {h} T {t} D {d}"),
        &[[b, t, h, d].as_slice(); 3],
        |x| ops::attention(&x[0], &x[1], &x[2], &ops::AttentionOptions::default()),
        |x| composed_attention::attention(&x[0], &x[1], &x[2], &x[3]),
    );
    if t > LONGEST_COMPOSED {
        pair.composed = None;
        return Ok(pair);
    }
    Ok(pair.with_constants(&[composed_attention::causal_mask(t)?]))
}

fn rotary([b, t, h, d]: [usize; 4]) -> Result<Pair> {
    let like = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
    let (cos, sin) = ops::rotary_tables(1e4, d, 0, t, &like)?;
    let pair = Pair::new(
        format!("rotary {h} x {d}"),
        &[&[b, t, h, d]],
        |x| ops::rotary(&x[0], &x[1], &x[2], RotaryPairs::Halves, ops::QkvLayout::Bthd),
        |x| {
            // candle-nn expects (B, H, T, D).
            candle_nn::rotary_emb::rope_slow(&x[0].transpose(1, 2)?.contiguous()?, &x[1], &x[2])?.transpose(1, 2)
        },
    );
    Ok(pair.with_constants(&[cos, sin]))
}

fn linear(xs: &[usize], f: usize) -> [Pair; 2] {
    let c = xs[2];
    [
        Pair::new(
            format!("linear {c} to {f}"),
            &[xs, &[f, c]],
            |x| ops::linear(&x[0], &x[1], None),
            |x| Linear::new(x[1].clone(), None).forward(&x[0]),
        ),
        Pair::new(
            format!("linear {c} to {f} with bias"),
            &[xs, &[f, c], &[f]],
            |x| ops::linear(&x[0], &x[1], Some(&x[2])),
            |x| Linear::new(x[1].clone(), Some(x[2].clone())).forward(&x[0]),
        ),
    ]
}

fn norms(xs: &[usize]) -> [Pair; 2] {
    let c = xs[2];
    [
        Pair::new(
            format!("layer norm {c}"),
            &[xs, &[c], &[c]],
            |x| ops::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5),
            |x| candle_nn::ops::layer_norm_slow(&x[0], &x[1], &x[2], 1e-5),
        ),
        Pair::new(
            format!("rms norm {c}"),
            &[xs, &[c]],
            |x| ops::rms_norm(&x[0], &x[1], 1e-5),
            |x| candle_nn::ops::rms_norm_slow(&x[0], &x[1], 1e-5),
        ),
    ]
}

fn activations(xs: &[usize]) -> [Pair; 5] {
    let f = xs[2];
    [
        Pair::new(format!("gelu erf {f}"), &[xs], |x| ops::gelu_erf(&x[0]), |x| x[0].gelu_erf()),
        Pair::new(format!("gelu tanh {f}"), &[xs], |x| ops::gelu_tanh(&x[0]), |x| x[0].gelu()),
        Pair::new(format!("silu {f}"), &[xs], |x| ops::silu(&x[0]), |x| x[0].silu()),
        Pair::new(format!("squared relu {f}"), &[xs], |x| ops::relu_squared(&x[0]), |x| x[0].relu()?.sqr()),
        Pair::new(format!("swiglu {f}"), &[xs, xs], |x| ops::swiglu(&x[0], &x[1]), |x| x[0].silu()? * &x[1]),
    ]
}

/// Operations on ids: N of them, all below V.
fn tokens([n, c, v]: [usize; 3]) -> Result<[Pair; 3]> {
    let ids: Vec<u32> = (0..n).map(|i| (i * i % v) as u32).collect();
    let ids = Tensor::from_vec(ids, n, &Device::Cpu)?;
    let pairs = [
        Pair::new(
            format!("embedding {v} x {c}"),
            &[&[v, c]],
            |x| ops::embedding(&x[1], &x[0]),
            |x| Embedding::new(x[0].clone(), x[0].dim(1)?).forward(&x[1]),
        ),
        Pair::new(
            format!("cross-entropy {v}"),
            &[&[n, v]],
            |x| ops::cross_entropy(&x[0], &x[1], &CrossEntropyOptions::default()),
            |x| candle_nn::loss::cross_entropy(&x[0], &x[1]),
        ),
        Pair::new(
            format!("linear and cross-entropy {c} to {v}"),
            &[&[n, c], &[v, c]],
            |x| ops::linear_cross_entropy(&x[0], &x[1], None, &x[2], &CrossEntropyOptions::default()),
            |x| candle_nn::loss::cross_entropy(&Linear::new(x[1].clone(), None).forward(&x[0])?, &x[2]),
        ),
    ];
    Ok(pairs.map(|pair| pair.with_constants(std::slice::from_ref(&ids))))
}
