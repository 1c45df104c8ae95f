//! Texts of different lengths side by side in one cache: each gives what it gives alone.

use candle_attention::nn::{KvCache, MultiHeadAttention, MultiHeadAttentionConfig};
use candle_attention::ops::{KeyPadding, Mask};
use candle_core::{DType, Device, Tensor};

use crate::multi_head::{causal_forms, layer_of};
use crate::support::{assert_as_exact, assert_close, randn};

const CHANNELS: usize = 24;

/// Pieces: how many positions each has, and how many of them are real in each of three sequences.
type Pieces = &'static [(usize, [usize; 3])];

const CUTS: [Pieces; 3] = [
    // Prompts of different lengths, then one position at a time.
    &[(7, [7, 3, 5]), (1, [1, 1, 1]), (1, [1, 1, 1]), (2, [2, 2, 2])],
    // A sequence that begins later, one that ends early, and pieces of nothing.
    &[(2, [1, 2, 0]), (3, [3, 0, 1]), (1, [0, 1, 0]), (4, [2, 4, 3]), (2, [1, 0, 2]), (5, [5, 0, 3])],
    // All at once.
    &[(11, [11, 7, 9])],
];

/// The real positions of a piece, on one side of it; the others hold what must not matter.
fn piece(texts: &[Tensor; 3], read: [usize; 3], (t, real): (usize, [usize; 3]), is_left: bool) -> Tensor {
    let rows = (0..3).map(|b| {
        let own = texts[b].narrow(0, read[b], real[b]).unwrap();
        let padding = Tensor::full(f64::NAN, (t - real[b], CHANNELS), &Device::Cpu).unwrap();
        let padding = padding.to_dtype(own.dtype()).unwrap();
        Tensor::cat(&if is_left { [padding, own] } else { [own, padding] }, 0).unwrap()
    });
    Tensor::stack(&rows.collect::<Vec<_>>(), 0).unwrap()
}

/// The outputs at the real positions of each sequence.
fn side_by_side(
    layer: &MultiHeadAttention,
    mask: &Mask,
    texts: &[Tensor; 3],
    cut: Pieces,
    is_left: bool,
) -> [Tensor; 3] {
    let (mut cache, mut read) = (KvCache::new(12), [0; 3]);
    let mut outputs: [Vec<Tensor>; 3] = Default::default();
    for &(t, real) in cut {
        let lengths = real.to_vec();
        let padding = if is_left { KeyPadding::Left(lengths) } else { KeyPadding::Right(lengths) };
        let xs = piece(texts, read, (t, real), is_left);
        let ys = match real == [t; 3] {
            true => layer.forward_cached_with(&xs, mask, &mut cache).unwrap(),
            false => {
                let mask = Mask { key_padding: Some(padding), ..mask.clone() };
                layer.forward_cached_with(&xs, &mask, &mut cache).unwrap()
            }
        };
        for b in 0..3 {
            let from = if is_left { t - real[b] } else { 0 };
            outputs[b].push(ys.get(b).unwrap().narrow(0, from, real[b]).unwrap());
            read[b] += real[b];
        }
        assert_eq!(cache.lengths(), read);
    }
    outputs.map(|pieces| Tensor::cat(&pieces, 0).unwrap())
}

#[test]
fn each_sequence_gives_what_it_gives_alone() {
    for ((name, in_f64), (_, in_f32)) in causal_forms(DType::F64).into_iter().zip(causal_forms(DType::F32)) {
        let (layer, kernels) = (layer_of(&in_f64, DType::F64), layer_of(&in_f32, DType::F32));
        for cut in CUTS {
            let texts = [0, 1, 2].map(|b| randn(30 + b as u64, &[cut.iter().map(|(_, real)| real[b]).sum(), CHANNELS]));
            let in_f32 = texts.clone().map(|text| text.to_dtype(DType::F32).unwrap());
            for is_left in [false, true] {
                let got = side_by_side(&layer, &in_f64.mask, &texts, cut, is_left);
                let fused = side_by_side(&kernels, &in_f64.mask, &in_f32, cut, is_left);
                let truths = texts.each_ref().map(|text| layer.forward(text).unwrap());
                for (b, truth) in truths.iter().enumerate() {
                    let label = format!("{name}, sequence {b} of {cut:?}, left {is_left}");
                    assert_close(&label, &got[b], truth, 1e-11);
                }
                // One position has too few roundings to measure them by: all three texts together.
                let together = |of: &[Tensor]| Tensor::cat(of, 0).unwrap();
                let whole = in_f32.each_ref().map(|text| kernels.forward(text).unwrap());
                let label = format!("{name}, {cut:?}, left {is_left}, in f32");
                assert_as_exact(&label, &together(&fused), &together(&whole), &together(&truths));
            }
        }
    }
}

/// A prefix that all positions see, and that is longer than one of the sequences.
#[test]
fn a_prefix_ends_with_its_sequence() {
    let config = MultiHeadAttentionConfig { mask: Mask::prefix(9), ..MultiHeadAttentionConfig::new(CHANNELS, 6) };
    let layer = layer_of(&config, DType::F64);
    let texts = [randn(30, &[11, CHANNELS]), randn(31, &[7, CHANNELS]), randn(32, &[9, CHANNELS])];
    for is_left in [false, true] {
        let got = side_by_side(&layer, &config.mask, &texts, CUTS[2], is_left);
        for b in 0..3 {
            let label = format!("sequence {b}, left {is_left}");
            assert_close(&label, &got[b], &layer.forward(&texts[b]).unwrap(), 1e-11);
        }
    }
}

/// Beams: copies of a sequence that go on in different ways.
#[test]
fn beams_go_on_from_the_sequence_they_come_from() {
    let (_, config) = causal_forms(DType::F64).swap_remove(3);
    let layer = layer_of(&config, DType::F64);
    let texts = [randn(30, &[7, CHANNELS]), randn(31, &[4, CHANNELS]), randn(32, &[6, CHANNELS])];
    let mut cache = KvCache::new(11);
    let mask = Mask { key_padding: Some(KeyPadding::Left(vec![7, 4, 6])), ..Mask::causal() };
    layer.forward_cached_with(&piece(&texts, [0; 3], (7, [7, 4, 6]), true), &mask, &mut cache).unwrap();
    let order = [1, 1, 0, 2, 0];
    cache.reorder(&order).unwrap();
    let mut fork = cache.fork().unwrap();
    let next = randn(40, &[5, 2, CHANNELS]);
    // The fork goes another way first.
    layer.forward_cached(&randn(41, &[5, 1, CHANNELS]), &mut fork).unwrap();
    let ys = layer.forward_cached(&next, &mut cache).unwrap();
    for (i, b) in order.into_iter().enumerate() {
        let whole = Tensor::cat(&[&texts[b], &next.get(i).unwrap()], 0).unwrap();
        let expected = layer.forward(&whole).unwrap().narrow(0, texts[b].dim(0).unwrap(), 2).unwrap();
        assert_close(&format!("beam {i}"), &ys.get(i).unwrap(), &expected, 1e-11);
    }
}

#[test]
fn a_cache_serves_one_layer_until_it_is_empty() {
    let config = MultiHeadAttentionConfig::new(CHANNELS, 6);
    let (layer, other) = (layer_of(&config, DType::F64), layer_of(&config, DType::F64));
    let xs = randn(3, &[2, 4, CHANNELS]);
    let mut cache = KvCache::new(9);
    layer.forward_cached(&xs, &mut cache).unwrap();
    let mut fork = cache.fork().unwrap();
    for cache in [&mut cache, &mut fork] {
        let error = other.forward_cached(&xs, cache).unwrap_err().to_string();
        assert!(error.contains("the layer whose keys and values it holds, got another"), "{error}");
        assert_eq!(cache.len(), 4);
        // A clone is the same layer.
        layer.clone().forward_cached(&xs, cache).unwrap();
    }
    cache.truncate(1);
    assert!(other.forward_cached(&xs, &mut cache).is_err());
    cache.reset();
    other.forward_cached(&xs, &mut cache).unwrap();
    assert!(layer.forward_cached(&xs, &mut cache).is_err());
    cache.truncate(0);
    layer.forward_cached(&xs, &mut cache).unwrap();
}

#[test]
fn masks_that_a_cache_cannot_have_are_refused_and_change_nothing() {
    let layer = layer_of(&MultiHeadAttentionConfig::new(CHANNELS, 6), DType::F64);
    let xs = randn(3, &[2, 3, CHANNELS]);
    let one = xs.narrow(1, 0, 1).unwrap();
    let allowed = Some(Tensor::ones((3, 7), DType::U8, &Device::Cpu).unwrap());
    let bias = Some(Tensor::zeros((3, 7), DType::F64, &Device::Cpu).unwrap());
    let real = Tensor::ones((2, 3), DType::U8, &Device::Cpu).unwrap();
    let mut cache = KvCache::new(9);
    layer.forward_cached(&randn(4, &[2, 4, CHANNELS]), &mut cache).unwrap();
    for (mask, message) in [
        (Mask::full(), "a mask that shows no later positions with a cache, got a full band for 3 positions"),
        (
            Mask { query_positions: Some(vec![0, 0]), ..Mask::causal() },
            "no query positions with a cache, which knows them",
        ),
        (Mask { key_padding: Some(KeyPadding::Real(real)), ..Mask::causal() }, "expected padding as lengths"),
        (
            Mask { key_padding: Some(KeyPadding::Right(vec![3, 4])), ..Mask::causal() },
            "a length of at most 3 for each of 2 sequences",
        ),
        (Mask { allowed: Some(one.clone()), ..Mask::causal() }, "attention: "),
        // Found out only when the shorter sequence has been written.
        (
            Mask { allowed: Some(one.clone()), key_padding: Some(KeyPadding::Left(vec![1, 2])), ..Mask::causal() },
            "attention: ",
        ),
    ] {
        let error = layer.forward_cached_with(&xs, &mask, &mut cache).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert_eq!(cache.lengths(), [4, 4], "{message}");
    }
    // One position has no later ones, and a set or a bias says itself what is seen.
    for (xs, mask) in
        [(&one, Mask::full()), (&xs, Mask { allowed, ..Mask::full() }), (&xs, Mask { bias, ..Mask::full() })]
    {
        cache.truncate(4);
        layer.forward_cached_with(xs, &mask, &mut cache).unwrap();
    }
    let mut sliding = KvCache::sliding(4);
    let documents = Some(Tensor::zeros((2, 3), DType::U32, &Device::Cpu).unwrap());
    for (mask, message) in [
        (Mask { documents, ..Mask::causal() }, "a band alone with a sliding cache"),
        (
            Mask { key_padding: Some(KeyPadding::Right(vec![3, 2])), ..Mask::causal() },
            "sequences of one length in a sliding cache",
        ),
    ] {
        let error = layer.forward_cached_with(&xs, &mask, &mut sliding).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert!(sliding.is_empty());
    }
}

/// A layer that is trained decodes as fast as one that is not: by the same kernel, which gives the same bits.
#[test]
fn a_layer_with_a_graph_decodes_as_one_without() {
    use candle_attention::nn::Parameters;
    let config = MultiHeadAttentionConfig { sinks: true, ..MultiHeadAttentionConfig::new(32, 2) };
    let parameters = Parameters::new(5);
    let trained = MultiHeadAttention::new(&config, parameters.var_builder(DType::F32, &Device::Cpu)).unwrap();
    let frozen = MultiHeadAttention::new(&config, parameters.frozen(DType::F32, &Device::Cpu)).unwrap();
    let xs = randn(3, &[1, 150, 32]).to_dtype(DType::F32).unwrap();
    let step_by_step = |layer: &MultiHeadAttention| {
        let mut cache = KvCache::new(150);
        let steps = (0..150).map(|t| layer.forward_cached(&xs.narrow(1, t, 1).unwrap(), &mut cache).unwrap());
        Tensor::cat(&steps.collect::<Vec<_>>(), 1).unwrap()
    };
    assert_close("bits", &step_by_step(&trained), &step_by_step(&frozen), 0.0);
}
