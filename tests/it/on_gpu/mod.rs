//! On a GPU, operations are composed of candle's own. They are held to what the CPU computes in `f64`.
//!
//! Run only where candle is built for a GPU: `cargo test --release --features lm,cuda --test it on_gpu`, or with `metal`.

#[cfg(feature = "lm")]
mod training;

use std::sync::LazyLock;

use candle_attention::nn::{
    CausalSelfAttention, CausalSelfAttentionConfig, KvCache, MultiHeadAttention, MultiHeadAttentionConfig, Parameters,
    RotaryEmbedding, RotaryEmbeddingConfig,
};
use candle_attention::ops::{
    self, AttentionOptions, CrossEntropyOptions, DropoutOptions, KeyPadding, Mask, QkvLayout, RandomKey, RotaryPairs,
    Scale,
};
use candle_core::{DType, Device, Module, Result, Tensor, Var};

use crate::support::{randn, values};

pub static GPU: LazyLock<Device> = LazyLock::new(|| {
    let device = if cfg!(feature = "cuda") { Device::new_cuda(0) } else { Device::new_metal(0) };
    device.unwrap_or_else(|error| panic!("these tests need a GPU: {error}"))
});

/// How far values may be from the truth, as a share of the largest of a tensor: a few roundings of its dtype, of which sums
/// and functions make several.
fn tolerance(dtype: DType) -> f64 {
    let digits = match dtype {
        DType::F32 => 23,
        DType::F16 => 10,
        DType::BF16 => 7,
        _ => unreachable!("{dtype:?}"),
    };
    8.0 * 2f64.powi(-digits)
}

pub fn moved(tensor: &Tensor, dtype: DType, device: &Device) -> Tensor {
    // Not every device has `f64`.
    let on_cpu = tensor.to_device(&Device::Cpu).unwrap();
    on_cpu.to_dtype(dtype).unwrap().to_device(device).unwrap()
}

fn largest(tensor: &Tensor) -> f64 {
    values(tensor).iter().fold(0.0, |most, x| most.max(x.abs()))
}

/// Fails where a tensor on the GPU is not within a share of the largest expected value.
pub fn assert_near(label: &str, got: &Tensor, expected: &Tensor, share: f64) {
    assert_within(label, got, expected, (share, largest(expected)));
}

fn assert_within(label: &str, got: &Tensor, expected: &Tensor, (share, largest): (f64, f64)) {
    assert_eq!(got.dims(), expected.dims(), "{label}: shapes");
    for (i, (got, expected)) in values(got).iter().zip(&values(expected)).enumerate() {
        let off = (got - expected).abs() / largest;
        assert!(
            off <= share,
            "{label}: at {i} got {got}, expected {expected}, off by {off:e} of {largest}, more than {share:e}"
        );
    }
}

/// What an operation gives for random inputs of these shapes, and its gradients for them, of a sum with random coefficients.
fn results(op: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor], dtype: DType, device: &Device) -> Vec<Tensor> {
    let vars: Vec<Var> = inputs.iter().map(|xs| Var::from_tensor(&moved(xs, dtype, device)).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let out = op(&tensors).unwrap();
    // Half precision has too few numbers for a sum: it is taken of products that are rounded as the output is.
    let coefficients = moved(&moved(&randn(99, out.dims()), DType::BF16, &Device::Cpu), dtype, device);
    let gradients = (&out * coefficients).unwrap().sum_all().unwrap().backward().unwrap();
    let of =
        |(i, var): (usize, &Var)| gradients.get(var).unwrap_or_else(|| panic!("no gradient for input {i}")).clone();
    [out].into_iter().chain(vars.iter().enumerate().map(of)).collect()
}

/// Holds an operation and its gradients, in `f32` and in half precision on the GPU, to itself in `f64` on the CPU.
fn hold(label: &str, shapes: &[&[usize]], op: impl Fn(&[Tensor]) -> Result<Tensor>) {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        // Of inputs that each dtype has.
        let inputs: Vec<Tensor> =
            shapes.iter().enumerate().map(|(i, shape)| moved(&randn(i as u64, shape), dtype, &Device::Cpu)).collect();
        let truth = results(&op, &inputs, DType::F64, &Device::Cpu);
        for (i, (got, expected)) in results(&op, &inputs, dtype, &GPU).iter().zip(&truth).enumerate() {
            let what = if i == 0 { "output".into() } else { format!("gradient of input {}", i - 1) };
            assert_near(&format!("{label} in {dtype:?}: {what}"), got, expected, tolerance(dtype));
        }
    }
}

#[test]
fn element_by_element_and_row_by_row() {
    type Unary = fn(&Tensor) -> Result<Tensor>;
    let unary: [(&str, Unary); 6] = [
        ("gelu-erf", ops::gelu_erf),
        ("gelu-tanh", ops::gelu_tanh),
        ("quick-gelu", ops::quick_gelu),
        ("relu", ops::relu),
        ("relu-squared", ops::relu_squared),
        ("silu", ops::silu),
    ];
    for (name, op) in unary {
        hold(name, &[&[3, 70]], |x| op(&x[0]));
    }
    type Gated = fn(&Tensor, &Tensor) -> Result<Tensor>;
    let gated: [(&str, Gated); 5] = [
        ("geglu-erf", ops::geglu_erf),
        ("geglu-tanh", ops::geglu_tanh),
        ("quick-geglu", ops::quick_geglu),
        ("reglu", ops::reglu),
        ("swiglu", ops::swiglu),
    ];
    for (name, op) in gated {
        hold(name, &[&[3, 70], &[3, 70]], |x| op(&x[0], &x[1]));
    }
    hold("linear", &[&[2, 5, 30], &[7, 30], &[7]], |x| ops::linear(&x[0], &x[1], Some(&x[2])));
    hold("layer-norm", &[&[2, 5, 30], &[30], &[30]], |x| ops::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-2));
    hold("rms-norm", &[&[2, 5, 30], &[30]], |x| ops::rms_norm(&x[0], &x[1], 1e-2));
    let options = DropoutOptions { rate: 0.4, key: RandomKey { seed: 1, step: 2, site: 3 }, first_sequence: 4 };
    hold("dropout", &[&[3, 70]], |x| ops::dropout(&x[0], &options));
}

#[test]
fn rotary_embeddings() {
    for (pairs, layout) in [(RotaryPairs::Halves, QkvLayout::Bthd), (RotaryPairs::Neighbours, QkvLayout::Bhtd)] {
        let shape: &[usize] = if layout == QkvLayout::Bthd { &[2, 5, 3, 8] } else { &[2, 3, 5, 8] };
        hold("rotary", &[shape], |x| {
            let (cos, sin) = ops::rotary_tables(100.0, 8, 7, 5, &x[0])?;
            ops::rotary(&x[0], &cos, &sin, pairs, layout)
        });
    }
}

#[test]
fn tokens_in_and_out() {
    let ids = |device: &Device| Tensor::new(&[3u32, 0, 3, 10, 3], device);
    hold("embedding", &[&[11, 6]], |x| ops::embedding(&ids(x[0].device())?, &x[0]));
    let smooth = CrossEntropyOptions { label_smoothing: 0.1, z_loss: 0.01, softcap: Some(3.0), ..Default::default() };
    let some = CrossEntropyOptions { ignore_index: Some(3), normalizer: Some(4.0), ..Default::default() };
    for options in [CrossEntropyOptions::default(), smooth, some] {
        let label = format!("{options:?}");
        hold(&label, &[&[5, 11]], |x| ops::cross_entropy(&x[0], &ids(x[0].device())?, &options));
        hold(&label, &[&[5, 6], &[11, 6], &[11]], |x| {
            ops::linear_cross_entropy(&x[0], &x[1], Some(&x[2]), &ids(x[0].device())?, &options)
        });
    }
}

/// Options of attention of 4 heads, of 5 queries and 7 keys in 2 sequences, for tensors like this.
fn attention_options(name: &str, like: &Tensor) -> Result<AttentionOptions> {
    let device = like.device();
    let every_third =
        || Tensor::from_vec((0..2 * 5 * 7).map(|i| u8::from(i % 3 == 0)).collect::<Vec<_>>(), (2, 1, 5, 7), device);
    let mask = match name {
        "causal" | "dropout" | "soft cap" => Mask::causal(),
        "full" => Mask::full(),
        "window" => Mask::window(3),
        "prefix" => Mask { query_positions: Some(vec![0, 2]), ..Mask::prefix(3) },
        "left padding" => Mask { key_padding: Some(KeyPadding::Left(vec![7, 4])), ..Mask::causal() },
        "right padding" => Mask { key_padding: Some(KeyPadding::Right(vec![3, 7])), ..Mask::full() },
        "padding" => {
            let real = Tensor::new(&[[1u8, 0, 1, 1, 0, 1, 1], [1; 7]], device)?;
            Mask { key_padding: Some(KeyPadding::Real(real)), ..Mask::causal() }
        }
        "documents" => {
            let documents = Tensor::new(&[[0u32, 0, 0, 1, 1, 2, 2], [5, 5, 5, 5, 5, 5, 6]], device)?;
            Mask { documents: Some(documents), ..Mask::causal() }
        }
        "allowed" => Mask { allowed: Some(every_third()?), ..Mask::full() },
        "linear biases" => Mask { alibi: Some(Mask::alibi_slopes(4)), ..Mask::causal() },
        _ => unreachable!("{name}"),
    };
    let dropout = DropoutOptions { rate: 0.3, key: RandomKey { seed: 1, step: 2, site: 3 }, first_sequence: 1 };
    Ok(AttentionOptions {
        mask,
        scale: if name == "full" { Scale::One } else { Scale::InverseSqrt },
        softcap: (name == "soft cap").then_some(1.5),
        dropout: (name == "dropout").then_some(dropout),
        ..Default::default()
    })
}

#[test]
fn attention() {
    let shapes: [&[usize]; 3] = [&[2, 5, 4, 6], &[2, 7, 2, 6], &[2, 7, 2, 8]];
    for name in [
        "causal",
        "full",
        "window",
        "prefix",
        "left padding",
        "right padding",
        "padding",
        "documents",
        "allowed",
        "linear biases",
        "soft cap",
        "dropout",
    ] {
        hold(name, &shapes, |x| ops::attention(&x[0], &x[1], &x[2], &attention_options(name, &x[0])?));
    }
    let [q, k, v] = shapes;
    hold("a bias and sinks", &[q, k, v, &[4, 5, 7], &[4]], |x| {
        let mask = Mask { bias: Some(x[3].clone()), ..Mask::causal() };
        let options = AttentionOptions { mask, sinks: Some(x[4].clone()), ..Default::default() };
        ops::attention(&x[0], &x[1], &x[2], &options)
    });
    hold("weights", &shapes, |x| {
        let (out, weights) = ops::attention_with_weights(&x[0], &x[1], &x[2], &Default::default())?;
        Tensor::cat(&[out.flatten_all()?, weights.flatten_all()?], 0)
    });
    hold("log-sum-exp", &shapes, |x| {
        let (out, lse) = ops::attention_with_lse(&x[0], &x[1], &x[2], &Default::default())?;
        // In half precision it is in `f32`.
        out.broadcast_mul(&lse.to_dtype(out.dtype())?.transpose(1, 2)?.unsqueeze(3)?)
    });
    hold("heads first", &[&[2, 4, 5, 6], &[2, 2, 7, 6], &[2, 2, 7, 6]], |x| {
        ops::attention(&x[0], &x[1], &x[2], &AttentionOptions { layout: QkvLayout::Bhtd, ..Default::default() })
    });
    hold("packed", &[&[2, 7, 36]], |x| ops::self_attention(&x[0], 3, &Default::default()));
    // More queries than are taken together.
    hold("long", &[&[1, 300, 2, 8], &[1, 300, 2, 8], &[1, 300, 2, 8]], |x| {
        ops::attention(&x[0], &x[1], &x[2], &AttentionOptions { mask: Mask::window(200), ..Default::default() })
    });
}

/// The same random weights in `f64` on the CPU and in `f32` on the GPU.
pub fn both<T>(build: impl Fn(candle_nn::VarBuilder) -> Result<T>) -> [(T, Parameters); 2] {
    let truth = Parameters::new(5);
    let on_cpu = build(truth.var_builder(DType::F64, &Device::Cpu)).unwrap();
    let values: Vec<_> = truth
        .vars()
        .into_iter()
        .enumerate()
        .map(|(i, (name, var))| {
            let values = moved(&(randn(100 + i as u64, var.dims()) * 0.3).unwrap(), DType::F32, &Device::Cpu);
            var.set(&moved(&values, DType::F64, &Device::Cpu)).unwrap();
            (name, moved(&values, DType::F32, &GPU))
        })
        .collect();
    let here = Parameters::restored(values).unwrap();
    let on_gpu = build(here.var_builder(DType::F32, &GPU)).unwrap();
    [(on_cpu, truth), (on_gpu, here)]
}

/// Holds the gradients of two losses for the same parameters to one another: within a share of the largest of all, since some
/// are zero but for rounding.
pub fn assert_gradients(label: &str, truth: (&Tensor, &Parameters), got: (&Tensor, &Parameters)) {
    let [expected, found] = [truth, got].map(|(loss, _)| loss.backward().unwrap());
    let expected: Vec<_> =
        truth.1.vars().into_iter().map(|(name, var)| (name, expected.get(&var).unwrap().clone())).collect();
    let most = expected.iter().map(|(_, gradient)| largest(gradient)).fold(0.0, f64::max);
    for ((name, expected), (_, var)) in expected.iter().zip(got.1.vars()) {
        let gradient = found.get(&var).unwrap_or_else(|| panic!("{label}: {name} has no gradient"));
        assert_within(&format!("{label}: gradient of {name}"), gradient, expected, (1e-6, most));
    }
}

#[test]
fn the_layer() {
    let config = CausalSelfAttentionConfig::new(24, 4);
    let [(on_cpu, truth), (on_gpu, here)] = both(|vb| CausalSelfAttention::new(&config, vb));
    let xs = randn(1, &[2, 9, 24]);
    let (expected, got) = (on_cpu.forward(&xs).unwrap(), on_gpu.forward(&moved(&xs, DType::F32, &GPU)).unwrap());
    assert_near("the layer", &got, &expected, tolerance(DType::F32));
    let loss = |ys: &Tensor| ys.sqr().unwrap().sum_all().unwrap();
    assert_gradients("the layer", (&loss(&expected), &truth), (&loss(&got), &here));
}

#[test]
fn multi_head_attention_piece_by_piece() {
    let config = |device: &Device, dtype| MultiHeadAttentionConfig {
        num_kv_heads: Some(2),
        bias: true,
        sinks: true,
        qk_norm_eps: Some(1e-6),
        rotary: Some(RotaryEmbedding::new(&RotaryEmbeddingConfig::new(6, 32), dtype, device).unwrap()),
        ..MultiHeadAttentionConfig::new(24, 4)
    };
    let [(on_cpu, _), (on_gpu, _)] = both(|vb| MultiHeadAttention::new(&config(vb.device(), vb.dtype()), vb.clone()));
    let xs = randn(1, &[2, 9, 24]);
    let expected = on_cpu.forward(&xs).unwrap();
    let xs = moved(&xs, DType::F32, &GPU);
    for mut cache in [KvCache::new(9), KvCache::sliding(9)] {
        let pieces = [(0, 4), (4, 1), (5, 3), (8, 1)]
            .map(|(start, len)| on_gpu.forward_cached(&xs.narrow(1, start, len).unwrap(), &mut cache).unwrap());
        assert_near("pieces", &Tensor::cat(&pieces, 1).unwrap(), &expected, tolerance(DType::F32));
    }
}
