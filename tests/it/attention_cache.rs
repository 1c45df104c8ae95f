//! Multi-head attention piece by piece gives the same as on the whole text.

use candle_attention::nn::{AttentionInputs, KvCache, MultiHeadAttention, MultiHeadAttentionConfig};
use candle_attention::ops::{Band, Mask};
use candle_core::{DType, Device, Tensor};

use crate::multi_head::{causal_forms, layer_of};
use crate::support::{assert_as_exact, assert_close, randn};

/// The outputs for `xs`, read in pieces of `len` positions.
fn in_pieces(layer: &MultiHeadAttention, xs: &Tensor, len: usize, cache: &mut KvCache) -> Tensor {
    let t = xs.dim(1).unwrap();
    let pieces = (0..t).step_by(len).map(|start| {
        let piece = xs.narrow(1, start, len.min(t - start)).unwrap();
        layer.forward_cached(&piece, cache).unwrap()
    });
    Tensor::cat(&pieces.collect::<Vec<_>>(), 1).unwrap()
}

#[test]
fn step_by_step_is_all_at_once() {
    let xs = randn(3, &[2, 11, 24]);
    for ((name, in_f64), (_, in_f32)) in causal_forms(DType::F64).into_iter().zip(causal_forms(DType::F32)) {
        let layer = layer_of(&in_f64, DType::F64);
        let truth = layer.forward(&xs).unwrap();
        let (kernels, xs_in_f32) = (layer_of(&in_f32, DType::F32), xs.to_dtype(DType::F32).unwrap());
        let at_once = kernels.forward(&xs_in_f32).unwrap();
        for len in [1, 2, 3, 5, 11] {
            let label = format!("{name}, pieces of {len}");
            let pieces = in_pieces(&layer, &xs, len, &mut KvCache::new(13));
            assert_close(&label, &pieces, &truth, 1e-11);
            assert!(!pieces.track_op());
            let pieces = in_pieces(&kernels, &xs_in_f32, len, &mut KvCache::new(11));
            assert_as_exact(&label, &pieces, &at_once, &truth);
        }
    }
}

/// For a text of any length: the same as `forward` on all of it with a window.
#[test]
fn a_sliding_cache_is_a_window_over_the_whole_text() {
    let xs = randn(3, &[2, 43, 24]);
    for ((name, in_f64), (_, in_f32)) in causal_forms(DType::F64).into_iter().zip(causal_forms(DType::F32)) {
        let (layer, kernels) = (layer_of(&in_f64, DType::F64), layer_of(&in_f32, DType::F32));
        let xs_in_f32 = xs.to_dtype(DType::F32).unwrap();
        for window in [1, 2, 5, 11] {
            let own = if let Band::Window(len) = in_f64.mask.band { len } else { usize::MAX };
            let mask = Mask::window(window.min(own));
            let inputs = AttentionInputs { mask: Some(&mask), ..Default::default() };
            let truth = layer.forward_with(&xs, &inputs).unwrap();
            let at_once = kernels.forward_with(&xs_in_f32, &inputs).unwrap();
            for len in [1, 2, 7, 43] {
                let label = format!("{name}, window {window}, pieces of {len}");
                let pieces = in_pieces(&layer, &xs, len, &mut KvCache::sliding(window));
                assert_close(&label, &pieces, &truth, 1e-11);
                let pieces = in_pieces(&kernels, &xs_in_f32, len, &mut KvCache::sliding(window));
                assert_as_exact(&label, &pieces, &at_once, &truth);
            }
        }
    }
}

#[test]
fn a_sliding_cache_that_is_refused_goes_on() {
    let (_, config) = causal_forms(DType::F64).swap_remove(3);
    let (layer, xs) = (layer_of(&config, DType::F64), randn(3, &[2, 20, 24]));
    let mask = Mask::window(4);
    let inputs = AttentionInputs { mask: Some(&mask), ..Default::default() };
    let truth = layer.forward_with(&xs, &inputs).unwrap();
    let mut cache = KvCache::sliding(4);
    in_pieces(&layer, &xs.narrow(1, 0, 15).unwrap(), 5, &mut cache);
    let next = xs.narrow(1, 15, 2).unwrap();
    let error = layer.forward_cached_with(&next, &Mask::full(), &mut cache).unwrap_err().to_string();
    assert!(error.contains("expected a causal mask or a window with a sliding cache"), "{error}");
    assert!(layer.forward_cached_with(&next, &Mask::window(0), &mut cache).is_err());
    assert_eq!(cache.next_position(), 15);
    let rest = in_pieces(&layer, &xs.narrow(1, 15, 5).unwrap(), 1, &mut cache);
    assert_close("after the refusals", &rest, &truth.narrow(1, 15, 5).unwrap(), 1e-11);
}

/// The prefix, which all positions see, must come in one piece; the rest may come in any.
#[test]
fn step_by_step_with_a_prefix() {
    let config = MultiHeadAttentionConfig { mask: Mask::prefix(4), ..MultiHeadAttentionConfig::new(24, 6) };
    let (layer, xs) = (layer_of(&config, DType::F64), randn(3, &[2, 11, 24]));
    let mut cache = KvCache::new(11);
    let mut cut = KvCache::new(11);
    layer.forward_cached(&xs.narrow(1, 0, 2).unwrap(), &mut cut).unwrap();
    let error = layer.forward_cached(&xs.narrow(1, 2, 4).unwrap(), &mut cut).unwrap_err().to_string();
    assert!(error.contains("expected a prefix of 4 positions in one piece, got the next after [2]"), "{error}");
    assert_eq!(cut.len(), 2);
    let prefix = layer.forward_cached(&xs.narrow(1, 0, 4).unwrap(), &mut cache).unwrap();
    let rest = in_pieces(&layer, &xs.narrow(1, 4, 7).unwrap(), 2, &mut cache);
    let pieces = Tensor::cat(&[prefix, rest], 1).unwrap();
    assert_close("prefix", &pieces, &layer.forward(&xs).unwrap(), 1e-11);
}

#[test]
fn a_cache_goes_back_and_starts_again() {
    for (name, config) in causal_forms(DType::F64) {
        let (layer, xs) = (layer_of(&config, DType::F64), randn(3, &[2, 9, 24]));
        let truth = layer.forward(&xs).unwrap();
        let mut cache = KvCache::new(9);
        in_pieces(&layer, &xs.narrow(1, 0, 5).unwrap(), 5, &mut cache);
        // Two other positions, then taken back.
        in_pieces(&layer, &randn(4, &[2, 2, 24]), 1, &mut cache);
        cache.truncate(5);
        let rest = in_pieces(&layer, &xs.narrow(1, 5, 4).unwrap(), 1, &mut cache);
        assert_close(name, &rest, &truth.narrow(1, 5, 4).unwrap(), 1e-11);
        cache.reset();
        assert_close(name, &in_pieces(&layer, &xs, 4, &mut cache), &truth, 1e-11);
    }
}

#[test]
fn a_cache_that_is_full_or_refused_stays_as_it_was() {
    let (_, config) = causal_forms(DType::F64).swap_remove(0);
    let layer = layer_of(&config, DType::F64);
    let xs = randn(3, &[2, 5, 24]);
    let mut cache = KvCache::new(6);
    layer.forward_cached(&xs, &mut cache).unwrap();
    let error = layer.forward_cached(&xs, &mut cache).unwrap_err().to_string();
    assert!(error.contains("kv-cache: expected at most 6 positions, got 5 and 5 more"), "{error}");
    let one = xs.narrow(1, 0, 1).unwrap();
    let mask = Mask { allowed: Some(Tensor::zeros((1, 7), DType::U8, &Device::Cpu).unwrap()), ..Mask::full() };
    assert!(layer.forward_cached_with(&one, &mask, &mut cache).is_err());
    assert_eq!(cache.len(), 5);
    let all = layer.forward(&Tensor::cat(&[&xs, &one], 1).unwrap()).unwrap();
    let last = layer.forward_cached(&one, &mut cache).unwrap();
    assert_close("after the refusals", &last, &all.narrow(1, 5, 1).unwrap(), 1e-11);
}
