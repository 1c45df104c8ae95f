//! The layer: gradients against finite differences, shapes, and what it refuses.

use candle_attention::nn::{
    CausalSelfAttention, CausalSelfAttentionConfig, LayerNorm, Parameters, RmsNorm, causal_self_attention, layer_norm,
    layer_norm_no_bias, rms_norm,
};
use candle_attention::ops::Scale;
use candle_core::{DType, Device, Module, Tensor, Var};

use crate::support::{assert_close, check_gradients, parameters_in_f64, randn, weighted_sum};

#[test]
fn gradients_of_the_layer_are_those_of_finite_differences() {
    let full = CausalSelfAttentionConfig { bias: true, ..CausalSelfAttentionConfig::new(15, 3) };
    let bare = CausalSelfAttentionConfig {
        output_projection: false,
        scale: Scale::Value(0.3),
        causal: false,
        ..CausalSelfAttentionConfig::new(6, 1)
    };
    for config in [full, bare] {
        let parameters = parameters_in_f64(|vb| drop(CausalSelfAttention::new(&config, vb).unwrap()));
        let layer = CausalSelfAttention::new(&config, parameters.var_builder(DType::F64, &Device::Cpu)).unwrap();
        let xs = Var::from_tensor(&randn(6, &[2, 7, config.embed_dim])).unwrap();
        let vars = parameters.vars().into_iter().chain([("input".to_string(), xs.clone())]).collect::<Vec<_>>();
        check_gradients(&vars, || weighted_sum(&layer.forward(&xs)?));
        // The returned weights have gradients too, with respect to everything they are computed from.
        let of_weights: Vec<_> = vars.iter().filter(|(name, _)| !name.starts_with(['v', 'o'])).cloned().collect();
        check_gradients(&of_weights, || weighted_sum(&layer.forward_with_weights(&xs)?.1));
    }
}

#[test]
fn gradients_of_the_norms_are_those_of_finite_differences() {
    type Build = fn(candle_nn::VarBuilder) -> Box<dyn Module>;
    let norms: [Build; 3] = [
        |vb| Box::new(layer_norm(7, 1e-5, vb).unwrap()),
        |vb| Box::new(layer_norm_no_bias(7, 1e-5, vb).unwrap()),
        |vb| Box::new(rms_norm(7, 1e-6, vb).unwrap()),
    ];
    for build in norms {
        let parameters = parameters_in_f64(|vb| drop(build(vb)));
        let norm = build(parameters.var_builder(DType::F64, &Device::Cpu));
        let xs = Var::from_tensor(&randn(7, &[2, 3, 7])).unwrap();
        let vars = parameters.vars().into_iter().chain([("input".to_string(), xs.clone())]).collect::<Vec<_>>();
        check_gradients(&vars, || weighted_sum(&norm.forward(&xs)?));
    }
}

#[test]
fn a_sequence_without_a_batch_is_a_batch_of_one() {
    let parameters = Parameters::new(1);
    let layer = causal_self_attention(15, 3, parameters.var_builder(DType::F32, &Device::Cpu)).unwrap();
    let xs = randn(8, &[7, 15]).to_dtype(DType::F32).unwrap();
    let (alone, weights) = layer.forward_with_weights(&xs).unwrap();
    let (batch, batch_weights) = layer.forward_with_weights(&xs.unsqueeze(0).unwrap()).unwrap();
    assert_eq!((alone.dims(), weights.dims()), (&[7, 15][..], &[3, 7, 7][..]));
    assert_eq!((batch.dims(), batch_weights.dims()), (&[1, 7, 15][..], &[1, 3, 7, 7][..]));
    assert_close("output", &alone, &batch.squeeze(0).unwrap(), 0.0);
}

#[test]
fn a_strided_input_gives_the_same() {
    let parameters = Parameters::new(1);
    let layer = causal_self_attention(6, 2, parameters.var_builder(DType::F64, &Device::Cpu)).unwrap();
    let xs = randn(9, &[7, 2, 6]).transpose(0, 1).unwrap();
    let contiguous = layer.forward(&xs.contiguous().unwrap()).unwrap();
    assert_close("output", &layer.forward(&xs).unwrap(), &contiguous, 0.0);
}

#[test]
fn the_dtypes_below_f32_work_and_have_gradients() {
    for dtype in [DType::F16, DType::BF16] {
        let parameters = Parameters::new(1);
        let vb = parameters.var_builder(dtype, &Device::Cpu);
        let layer = causal_self_attention(6, 2, vb.pp("attention")).unwrap();
        let norm = layer_norm(6, 1e-5, vb.pp("norm")).unwrap();
        let xs = randn(10, &[2, 7, 6]).to_dtype(dtype).unwrap();
        let loss = layer.forward(&norm.forward(&xs).unwrap()).unwrap().sqr().unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        for (name, var) in parameters.vars() {
            assert!(gradients.get(&var).is_some(), "{name} in {dtype:?}");
        }
    }
}

/// A running sum in half precision would stop growing at 256 or 2048.
#[test]
fn long_rows_are_summed_exactly_in_half_precision() {
    use candle_attention::ops;
    for dtype in [DType::F16, DType::BF16] {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
        let (q, k) = (zeros(&[1, 1, 1, 2]), zeros(&[1, 5000, 1, 2]));
        let v = (&k + 1.0).unwrap();
        let options = ops::AttentionOptions { mask: ops::Mask::full(), ..Default::default() };
        let out = crate::support::values(&ops::attention(&q, &k, &v, &options).unwrap());
        assert!((out[0] - 1.0).abs() < 0.02, "{dtype:?}: {out:?}");
        let targets = Tensor::new(&[3u32], &Device::Cpu).unwrap();
        let loss = ops::cross_entropy(&zeros(&[1, 50_257]), &targets, &Default::default()).unwrap();
        let loss = crate::support::values(&loss)[0];
        assert!((loss - 50_257f64.ln()).abs() < 0.05, "{dtype:?}: {loss}");
    }
}

#[test]
fn a_wrong_input_is_named_with_what_was_expected() {
    let vb = Parameters::new(1).var_builder(DType::F32, &Device::Cpu);
    let layer = causal_self_attention(15, 3, vb.clone()).unwrap();
    let refusal = |xs: Tensor| layer.forward(&xs).unwrap_err().to_string();
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    for (message, expected) in [
        (refusal(zeros(&[2, 7, 14], DType::F32)), "expected an input of shape (B, T, 15) or (T, 15), got [2, 7, 14]"),
        (refusal(zeros(&[15], DType::F32)), "expected an input of shape (B, T, 15) or (T, 15), got [15]"),
        (refusal(zeros(&[2, 7, 15], DType::F64)), "expected an input of the weights' dtype F32, got F64"),
        (
            causal_self_attention(16, 3, vb).unwrap_err().to_string(),
            "expected num_heads to divide embed_dim, got num_heads 3 and embed_dim 16",
        ),
    ] {
        assert!(message.contains(&format!("multi-head-attention: {expected}")), "{message}");
    }
}

#[test]
fn a_norm_of_another_width_is_named() {
    let xs = Tensor::zeros((2, 7), DType::F32, &Device::Cpu).unwrap();
    let weight = Tensor::ones(6, DType::F32, &Device::Cpu).unwrap();
    let layer_norm = LayerNorm::new_no_bias(weight.clone(), 1e-5).forward(&xs).unwrap_err().to_string();
    assert!(layer_norm.contains("layer-norm: expected an input of shape (.., 6) for 6 weights"), "{layer_norm}");
    let rms_norm = RmsNorm::new(weight, 1e-5).forward(&xs).unwrap_err().to_string();
    assert!(rms_norm.contains("rms-norm: expected an input of shape (.., 6) for 6 weights"), "{rms_norm}");
}

#[test]
fn restored_parameters_are_strict() {
    let drawn = Parameters::new(1);
    causal_self_attention(6, 2, drawn.var_builder(DType::F32, &Device::Cpu)).unwrap();
    let tensors = |skip: &str, extra: Option<&str>| {
        let kept = drawn.vars().into_iter().filter(|(name, _)| name != skip);
        let kept = kept.map(|(name, var)| (name, var.as_detached_tensor()));
        let extra = extra.map(|name| (name.to_string(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap()));
        Parameters::restored(kept.chain(extra)).unwrap()
    };
    let build = |parameters: &Parameters| causal_self_attention(6, 2, parameters.var_builder(DType::F32, &Device::Cpu));

    let message = build(&tensors("k_proj.weight", None)).unwrap_err().to_string();
    assert!(message.contains("k_proj.weight of shape [6, 6] is missing"), "{message}");
    let left_over = tensors("", Some("r_proj.weight"));
    build(&left_over).unwrap();
    assert_eq!(left_over.unread(), ["r_proj.weight"]);
    let wrong = causal_self_attention(4, 2, tensors("", None).var_builder(DType::F32, &Device::Cpu)).unwrap_err();
    assert!(wrong.to_string().contains("q_proj.weight of shape [4, 4], got [6, 6]"), "{wrong}");
}
