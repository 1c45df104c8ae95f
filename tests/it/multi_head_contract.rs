//! What multi-head attention promises beside its numbers: training or not, its seeds, its initial values, what it refuses.

use candle_attention::nn::{
    AttentionInputs, MultiHeadAttention, MultiHeadAttentionConfig, Parameters, RotaryEmbedding, RotaryEmbeddingConfig,
    causal_self_attention,
};
use candle_attention::ops::{KeyPadding, Mask, RotaryPairs};
use candle_core::{DType, Device, Module, ModuleT, Tensor, Var};

use crate::multi_head::layer_of;
use crate::support::{assert_close, check_gradients, max_difference, parameters_in_f64, randn, values, weighted_sum};

fn new_layer(config: &MultiHeadAttentionConfig, vb: candle_nn::VarBuilder) -> MultiHeadAttention {
    MultiHeadAttention::new(config, vb).unwrap()
}

/// Through `seq()` or generic code, candle's own `forward_t` ignores training.
#[test]
fn as_a_module_it_never_drops_dropout_in_silence() {
    let xs = randn(3, &[2, 5, 24]);
    let without = MultiHeadAttentionConfig::new(24, 6);
    let with = MultiHeadAttentionConfig { dropout: 0.5, ..without.clone() };
    let train = |layer: &dyn ModuleT| layer.forward_t(&xs, true);
    let layer = layer_of(&without, DType::F64);
    let expected = layer.forward(&xs).unwrap();
    assert_close("ModuleT", &train(&layer).unwrap(), &expected, 0.0);
    assert_close("seq", &candle_nn::seq().add(layer).forward(&xs).unwrap(), &expected, 0.0);

    let layer = layer_of(&with, DType::F64);
    assert_close("evaluation", &layer.forward(&xs).unwrap(), &expected, 0.0);
    assert_close("evaluation", &layer.forward_t(&xs, false).unwrap(), &expected, 0.0);
    assert!(max_difference(&layer.forward_t(&xs, true).unwrap(), &expected) > 0.01);
    for error in [train(&layer).unwrap_err(), candle_nn::seq().add(layer).forward(&xs).unwrap_err()] {
        let error = error.to_string();
        assert!(error.contains("call `MultiHeadAttention::forward_t(xs, train)`"), "{error}");
    }
}

#[test]
fn dropout_is_a_function_of_seed_name_and_call() {
    let xs = randn(3, &[2, 5, 24]);
    let drawn = |dropout_seed: u64, name: &str, call: u64| {
        let config = MultiHeadAttentionConfig { dropout: 0.5, dropout_seed, ..MultiHeadAttentionConfig::new(24, 6) };
        let parameters = parameters_in_f64(|vb| drop(new_layer(&config, vb.pp("any"))));
        let renamed =
            parameters.vars().into_iter().map(|(own, var)| (own.replace("any", name), var.as_detached_tensor()));
        let parameters = Parameters::restored(renamed).unwrap();
        let layer = new_layer(&config, parameters.var_builder(DType::F64, &Device::Cpu).pp(name));
        layer.dropout().unwrap().set_calls(call);
        values(&layer.forward_t(&xs, true).unwrap())
    };
    let first = drawn(7, "blocks.0", 0);
    assert_eq!(first, drawn(7, "blocks.0", 0));
    for other in [drawn(8, "blocks.0", 0), drawn(7, "blocks.1", 0), drawn(7, "blocks.0", 1)] {
        assert_ne!(first, other);
    }
    assert!(
        new_layer(&MultiHeadAttentionConfig::new(4, 2), Parameters::new(1).var_builder(DType::F32, &Device::Cpu))
            .dropout()
            .is_none()
    );
}

#[test]
fn both_layers_are_causal_by_default() {
    let (xs, changed) = (randn(3, &[1, 5, 24]), randn(4, &[1, 5, 24]));
    let changed = Tensor::cat(&[&xs.narrow(1, 0, 3).unwrap(), &changed.narrow(1, 3, 2).unwrap()], 1).unwrap();
    let layer = layer_of(&MultiHeadAttentionConfig::new(24, 6), DType::F64);
    let first = |xs: &Tensor| layer.forward(xs).unwrap().narrow(1, 0, 3).unwrap();
    assert_close("earlier positions", &first(&xs), &first(&changed), 0.0);
    let full =
        layer_of(&MultiHeadAttentionConfig { mask: Mask::full(), ..MultiHeadAttentionConfig::new(24, 6) }, DType::F64);
    assert!(max_difference(&full.forward(&xs).unwrap(), &full.forward(&changed).unwrap()) > 0.01);
}

#[test]
fn cross_attention_needs_a_full_band() {
    let causal = layer_of(&MultiHeadAttentionConfig::new(24, 6), DType::F64);
    let (xs, memory) = (randn(3, &[2, 5, 24]), randn(4, &[2, 7, 24]));
    let error = causal.forward_cross(&xs, &memory).unwrap_err().to_string();
    assert!(error.contains("expected a mask with a full band for a memory"), "{error}");
    assert!(error.contains("configure the layer with `mask: Mask::full()`"), "{error}");
    let memory_keys = causal.keys_values(&memory).unwrap();
    let inputs = AttentionInputs { memory: Some(&memory_keys), ..Default::default() };
    assert!(causal.forward_with_weights(&xs, &inputs).is_err());
    // A call may say so itself.
    let full =
        layer_of(&MultiHeadAttentionConfig { mask: Mask::full(), ..MultiHeadAttentionConfig::new(24, 6) }, DType::F64);
    let mask = Mask::full();
    let inputs = AttentionInputs { mask: Some(&mask), ..inputs };
    let ys = causal.forward_with(&xs, &inputs).unwrap();
    assert_close("full", &ys, &full.forward_cross(&xs, &memory).unwrap(), 0.0);
}

/// As the formula says, from the weights without sinks: those of the keys shrink, by what goes to the sink.
#[test]
fn sinks_take_their_share_and_learn() {
    for num_kv_heads in [6, 2] {
        let plain =
            MultiHeadAttentionConfig { num_kv_heads: Some(num_kv_heads), ..MultiHeadAttentionConfig::new(24, 6) };
        let config = MultiHeadAttentionConfig { sinks: true, ..plain.clone() };
        let parameters = parameters_in_f64(|vb| {
            let layer = new_layer(&config, vb);
            assert_eq!(values(layer.sinks().unwrap()), vec![0.0; 6]);
        });
        let layer = new_layer(&config, parameters.var_builder(DType::F64, &Device::Cpu));
        let without = parameters.vars().into_iter().filter(|(name, _)| name != "sinks");
        let without = Parameters::restored(without.map(|(name, var)| (name, var.as_detached_tensor()))).unwrap();
        let without = new_layer(&plain, without.var_builder(DType::F64, &Device::Cpu));
        let xs = Var::from_tensor(&(randn(6, &[2, 5, 24]) * 0.1).unwrap()).unwrap();

        // With v = 1 in every channel, an output is the sum of its weights.
        let (_, weights) = layer.forward_with_weights(&xs, &AttentionInputs::default()).unwrap();
        let (_, full) = without.forward_with_weights(&xs, &AttentionInputs::default()).unwrap();
        let sinks = values(layer.sinks().unwrap());
        let (q, k) = (without.q_proj().forward(&xs).unwrap(), without.k_proj().forward(&xs).unwrap());
        let (q, k) = (values(&q), values(&k));
        let (weights, full) = (values(&weights), values(&full));
        for i in 0..2 * 6 * 5 {
            let (b, h, t) = (i / 30, i / 5 % 6, i % 5);
            let g = h / (6 / num_kv_heads);
            let score = |s: usize| -> f64 {
                let (q, k) = (&q[(b * 5 + t) * 24 + h * 4..][..4], &k[((b * 5 + s) * num_kv_heads + g) * 4..][..4]);
                q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / 2.0
            };
            let keys: f64 = (0..=t).map(|s| score(s).exp()).sum();
            let share = keys / (keys + sinks[h].exp());
            for s in 0..5 {
                assert!((weights[i * 5 + s] - share * full[i * 5 + s]).abs() < 1e-12);
            }
        }
        let vars: Vec<_> = parameters.vars().into_iter().chain([("input".into(), xs.clone())]).collect();
        assert!(vars.iter().any(|(name, _)| name == "sinks"));
        check_gradients(&vars, || weighted_sum(&layer.forward(&xs)?));
    }
}

/// Documents packed into one sequence, each at positions from 0 on: each gives what it gives alone.
#[test]
fn positions_begin_again_with_each_document() {
    let rotary = RotaryEmbedding::new(
        &RotaryEmbeddingConfig { theta: 100.0, pairs: RotaryPairs::Halves, ..RotaryEmbeddingConfig::new(4, 9) },
        DType::F64,
        &Device::Cpu,
    );
    let config = MultiHeadAttentionConfig { rotary: Some(rotary.unwrap()), ..MultiHeadAttentionConfig::new(24, 6) };
    let layer = layer_of(&config, DType::F64);
    let xs = randn(3, &[1, 9, 24]);
    let documents = Tensor::new(&[[0u32, 0, 0, 0, 1, 1, 1, 1, 1]], &Device::Cpu).unwrap();
    let positions = Tensor::new(&[[0u32, 1, 2, 3, 0, 1, 2, 3, 4]], &Device::Cpu).unwrap();
    let mask = Mask { documents: Some(documents), ..Mask::causal() };
    let inputs = AttentionInputs { mask: Some(&mask), positions: Some(&positions), ..Default::default() };
    let ys = layer.forward_with(&xs, &inputs).unwrap();
    for (from, len) in [(0, 4), (4, 5)] {
        let alone = layer.forward(&xs.narrow(1, from, len).unwrap()).unwrap();
        assert_close("a document", &ys.narrow(1, from, len).unwrap(), &alone, 1e-12);
    }
    // Distances alone matter within a document, so other positions must be seen by what they change.
    let stretched = (positions.to_dtype(DType::F64).unwrap() * 2.0).unwrap().to_dtype(DType::U32).unwrap();
    let inputs = AttentionInputs { positions: Some(&stretched), ..inputs };
    assert!(max_difference(&layer.forward_with(&xs, &inputs).unwrap(), &ys) > 1e-3);
    let inputs = AttentionInputs { positions: Some(&documents_of_two()), ..Default::default() };
    let error = layer.forward_with(&xs, &inputs).unwrap_err().to_string();
    assert!(error.contains("expected positions of shape [1, 9] and dtype U32, got [2, 9] and U32"), "{error}");
    let unturned = layer_of(&MultiHeadAttentionConfig::new(24, 6), DType::F64);
    let error = unturned.forward_with(&xs, &AttentionInputs { positions: Some(&positions), ..Default::default() });
    assert!(error.unwrap_err().to_string().contains("expected no positions for a layer without rotary positions"));
}

fn documents_of_two() -> Tensor {
    Tensor::zeros((2, 9), DType::U32, &Device::Cpu).unwrap()
}

/// Padding on either side of a batch, in training: the real positions give what they give alone, and so do gradients.
#[test]
fn padded_sequences_are_those_without_padding() {
    let layer = layer_of(&MultiHeadAttentionConfig { bias: true, ..MultiHeadAttentionConfig::new(24, 6) }, DType::F64);
    let texts = [randn(1, &[5, 24]), randn(2, &[3, 24])];
    for is_left in [false, true] {
        let garbage = Tensor::full(f64::NAN, (2, 24), &Device::Cpu).unwrap();
        let short = if is_left { [&garbage, &texts[1]] } else { [&texts[1], &garbage] };
        let xs = Tensor::stack(&[&texts[0], &Tensor::cat(&short, 0).unwrap()], 0).unwrap();
        let padding = if is_left { KeyPadding::Left(vec![5, 3]) } else { KeyPadding::Right(vec![5, 3]) };
        for band in [Mask::causal(), Mask::full(), Mask::window(2)] {
            let mask = Mask { key_padding: Some(padding.clone()), ..band.clone() };
            let ys = layer.forward_with(&xs, &AttentionInputs { mask: Some(&mask), ..Default::default() }).unwrap();
            for (b, (text, from)) in texts.iter().zip([0, if is_left { 2 } else { 0 }]).enumerate() {
                let inputs = AttentionInputs { mask: Some(&band), ..Default::default() };
                let alone = layer.forward_with(text, &inputs).unwrap();
                let got = ys.get(b).unwrap().narrow(0, from, text.dim(0).unwrap()).unwrap();
                assert_close(&format!("{band:?}, left {is_left}"), &got, &alone, 1e-12);
            }
        }
    }
}

/// Each projection's own inputs bound its initial weights.
#[test]
fn initial_weights_are_bounded_by_the_inputs_of_each_projection() {
    let config = MultiHeadAttentionConfig {
        memory_dim: Some(400),
        head_dim: Some(3),
        value_dim: Some(50),
        mask: Mask::full(),
        ..MultiHeadAttentionConfig::new(100, 2)
    };
    let parameters = Parameters::new(3);
    new_layer(&config, parameters.var_builder(DType::F64, &Device::Cpu));
    let bounds =
        [("q_proj.weight", 100f64), ("k_proj.weight", 400.0), ("v_proj.weight", 400.0), ("o_proj.weight", 100.0)];
    for (name, inputs) in bounds {
        let (_, var) = parameters.vars().into_iter().find(|(own, _)| own == name).unwrap();
        let largest = values(&var).iter().fold(0f64, |most, x| most.max(x.abs()));
        // Of some hundred uniform draws, the largest is within a twentieth of the bound but for a chance of 1e-13; and
        // the seed is fixed.
        let bound = 1.0 / inputs.sqrt();
        assert!(largest <= bound && largest > 0.95 * bound, "{name}: {largest}, expected up to {bound}");
    }
}

#[test]
fn an_input_of_no_positions_gives_none() {
    for dtype in [DType::F32, DType::F64] {
        let parameters = Parameters::new(1);
        let layer = causal_self_attention(8, 2, parameters.var_builder(dtype, &Device::Cpu)).unwrap();
        for shape in [&[2, 0, 8][..], &[0, 3, 8], &[0, 8]] {
            let xs = Var::zeros(shape, dtype, &Device::Cpu).unwrap();
            let ys = layer.forward(&xs).unwrap();
            assert_eq!(ys.dims(), shape);
            let gradients = ys.sum_all().unwrap().backward().unwrap();
            assert!(gradients.get(&xs).is_some());
            let mut cache = candle_attention::nn::KvCache::new(3);
            assert_eq!(layer.forward_cached(&xs, &mut cache).unwrap().dims(), shape);
            assert_eq!(layer.forward_with_weights(&xs).unwrap().0.dims(), shape);
        }
        let config = MultiHeadAttentionConfig { num_kv_heads: Some(1), ..MultiHeadAttentionConfig::new(8, 2) };
        let grouped = new_layer(&config, Parameters::new(1).var_builder(dtype, &Device::Cpu));
        let xs = Tensor::zeros((2, 0, 8), dtype, &Device::Cpu).unwrap();
        assert_eq!(grouped.forward(&xs).unwrap().dims(), [2, 0, 8]);
    }
}
