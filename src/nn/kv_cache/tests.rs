//! What a cache holds, and the room it takes.

use super::buffers::buffer;
use super::*;
use candle_core::{DType, Device, Var};

fn counting(shape: (usize, usize, usize, usize)) -> Tensor {
    let (b, t, g, d) = shape;
    let numbers = Tensor::arange(0u32, (b * t * g * d) as u32, &Device::Cpu).unwrap();
    numbers.to_dtype(DType::F32).unwrap().reshape(shape).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_capacity_that_no_memory_holds_is_not_reserved() {
    let rows = counting((1, 1, 2, 3));
    for mut cache in [usize::MAX, 1 << 50].into_iter().flat_map(|size| [KvCache::new(size), KvCache::sliding(size)]) {
        cache.append(&rows, &rows).unwrap();
        assert_eq!((cache.allocated(), cache.allocated_after(1 << 40)), (256, 1 << 41));
    }
    for positions in [usize::MAX / 2, 1 << 50] {
        let error = buffer(positions, &rows).unwrap_err().to_string();
        assert!(error.contains("expected a size that fits into memory, got"), "{error}");
    }
}

/// The buffers double, up to their full size, and the views from before stay what they were.
#[test]
fn growing_changes_no_value() {
    let (k, v) = (counting((2, 1500, 1, 3)), counting((2, 1500, 1, 2)));
    let full = |window: usize| window - 1 + window.div_ceil(4);
    for (mut cache, sizes) in [
        (KvCache::new(1500), vec![256, 512, 1024, 1500]),
        (KvCache::new(300), vec![256, 300]),
        (KvCache::new(200), vec![200]),
        (KvCache::sliding(1000), vec![256, 512, 1024, full(1000)]),
        (KvCache::sliding(500), vec![256, 512, full(500)]),
        (KvCache::sliding(100), vec![full(100)]),
    ] {
        let (mut seen_sizes, mut first) = (Vec::new(), None);
        let most = if cache.slides { 1500 } else { cache.capacity };
        for t in 0..most {
            let after = cache.allocated_after(1);
            let (keys, values) = cache.append(&k.narrow(1, t, 1).unwrap(), &v.narrow(1, t, 1).unwrap()).unwrap();
            assert_eq!(cache.allocated(), after);
            let (from, n) = (t + 1 - keys.dim(1).unwrap(), keys.dim(1).unwrap());
            assert_eq!(n, if cache.slides { (t + 1).min(cache.capacity) } else { t + 1 });
            if t % 61 == 0 || seen_sizes.last() != Some(&after) {
                assert_eq!(numbers(&keys), numbers(&k.narrow(1, from, n).unwrap()), "{t}");
                assert_eq!(numbers(&values), numbers(&v.narrow(1, from, n).unwrap()), "{t}");
            }
            seen_sizes.push(after);
            if t == 5 {
                first = Some(keys);
            }
        }
        seen_sizes.dedup();
        assert_eq!(seen_sizes, sizes);
        if sizes.len() > 1 {
            assert_eq!(numbers(&first.unwrap()), numbers(&k.narrow(1, 0, 6).unwrap()));
        }
    }
}

#[test]
fn a_long_first_piece_takes_the_next_power_of_two() {
    let rows = counting((1, 600, 1, 1));
    let mut cache = KvCache::new(5000);
    assert_eq!(cache.allocated_after(600), 1024);
    cache.append(&rows, &rows).unwrap();
    assert_eq!((cache.allocated(), cache.allocated_after(424), cache.allocated_after(425)), (1024, 1024, 2048));
}

#[test]
fn pieces_are_the_whole_and_nothing_is_copied() {
    let (k, v) = (counting((2, 7, 3, 5)), counting((2, 7, 3, 4)));
    let mut cache = KvCache::new(11);
    let mut first = None;
    for (start, len) in [(0, 3), (3, 1), (4, 2), (6, 1)] {
        let part = |x: &Tensor| x.narrow(1, start, len).unwrap();
        let (keys, values) = cache.append(&part(&k), &part(&v)).unwrap();
        assert_eq!(numbers(&keys), numbers(&k.narrow(1, 0, start + len).unwrap()));
        assert_eq!(numbers(&values), numbers(&v.narrow(1, 0, start + len).unwrap()));
        first = first.or(Some(keys));
    }
    // The view of the first piece still looks at the same memory.
    assert_eq!(numbers(&first.unwrap()), numbers(&k.narrow(1, 0, 3).unwrap()));
    cache.truncate(2);
    let again = cache.append(&k.narrow(1, 2, 5).unwrap(), &v.narrow(1, 2, 5).unwrap()).unwrap();
    assert_eq!(numbers(&again.0), numbers(&k));
    assert_eq!(cache.len(), 7);
}

#[test]
fn a_sliding_cache_gives_what_the_new_positions_see() {
    let (k, v) = (counting((2, 97, 3, 5)), counting((2, 97, 3, 4)));
    for window in [1, 2, 3, 7, 16, 100] {
        for pieces in [&[1][..], &[2, 1], &[5, 1, 1, 1, 9, 30], &[40, 1]] {
            let mut cache = KvCache::sliding(window);
            let mut read = 0;
            for t in pieces.iter().cycle() {
                if read + t > 97 {
                    break;
                }
                let (keys, values) =
                    cache.append(&k.narrow(1, read, *t).unwrap(), &v.narrow(1, read, *t).unwrap()).unwrap();
                let kept = read.min(window - 1);
                let seen = |x: &Tensor| numbers(&x.narrow(1, read - kept, kept + t).unwrap());
                assert_eq!(numbers(&keys), seen(&k), "window {window}, {t} after {read}");
                assert_eq!(numbers(&values), seen(&v), "window {window}, {t} after {read}");
                read += t;
                assert_eq!((cache.next_position(), cache.len()), (read, kept + t));
            }
            assert!(read > 60);
        }
    }
}

/// However long the text, the window moves only once a quarter of its rows have been used up.
#[test]
fn a_sliding_cache_moves_its_window_rarely_and_stays_small() {
    let row = counting((1, 1, 2, 3));
    let mut cache = KvCache::sliding(64);
    cache.append(&counting((1, 500, 2, 3)), &counting((1, 500, 2, 3))).unwrap();
    let mut moves = 0;
    for _ in 0..1600 {
        let before = cache.start;
        cache.append(&row, &row).unwrap();
        moves += usize::from(cache.start < before);
    }
    // The first time, the window is already at the front.
    assert_eq!(moves, 1600 / 16 - 1);
    let positions = cache.buffers.as_ref().unwrap()[0].dim(1).unwrap();
    assert_eq!(positions, 63 + 16);
}

#[test]
fn a_sliding_cache_goes_back_as_far_as_it_remembers() {
    let k = counting((1, 30, 1, 1));
    let mut cache = KvCache::sliding(4);
    cache.append(&k.narrow(1, 0, 20).unwrap(), &k.narrow(1, 0, 20).unwrap()).unwrap();
    let mut append = |start: usize, t: usize, truncate: usize| {
        let rows = k.narrow(1, start, t).unwrap();
        cache.truncate(truncate);
        assert_eq!(cache.next_position(), start);
        numbers(&cache.append(&rows, &rows).unwrap().0)
    };
    assert_eq!(append(20, 3, 99), [17., 18., 19., 20., 21., 22.]);
    assert_eq!(append(21, 2, 21), [18., 19., 20., 21., 22.]);
    // 18 is the oldest it holds.
    assert_eq!(append(19, 1, 19), [18., 19.]);
    assert_eq!(append(5, 2, 5), [5., 6.]);
    assert_eq!(append(0, 1, 0), [0.]);
}

#[test]
fn what_does_not_fit_is_named_and_changes_nothing() {
    let mut cache = KvCache::new(5);
    let rows = |t| counting((2, t, 3, 4));
    cache.append(&rows(4), &rows(4)).unwrap();
    let mut refused = |k: &Tensor, v: &Tensor, message: &str| {
        let error = cache.append(k, v).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert_eq!(cache.len(), 4);
    };
    refused(&rows(2), &rows(2), "kv-cache: expected at most 5 positions, got 4 and 2 more");
    refused(&rows(1), &counting((2, 1, 2, 4)), "expected keys and values of as many sequences");
    refused(&counting((1, 1, 3, 4)), &counting((1, 1, 3, 4)), "kv-cache: expected more of");
    let tracked = Var::from_tensor(&rows(1)).unwrap();
    refused(&tracked, &rows(1), "without a graph");
    refused(&rows(1), &tracked, "without a graph");
    // Once it is empty it serves other shapes.
    cache.reset();
    let (keys, _) = cache.append(&counting((1, 2, 1, 3)), &counting((1, 2, 1, 3))).unwrap();
    assert_eq!(numbers(&keys), [0., 1., 2., 3., 4., 5.]);
}

/// Pieces padded on either side, cut in any way: each sequence holds its own positions, densely.
#[test]
fn sequences_of_different_lengths_hold_their_own_positions() {
    let (k, v) = (counting((3, 40, 2, 5)), counting((3, 40, 2, 4)));
    for is_left in [false, true] {
        let mut cache = KvCache::new(30);
        let mut read = [0; 3];
        for (t, real) in
            [(4, [2, 4, 0]), (3, [3, 1, 3]), (1, [1, 1, 1]), (5, [0, 0, 5]), (2, [2, 2, 2]), (3, [1, 1, 0])]
        {
            // The other positions of a piece hold numbers that must not appear.
            let piece = |x: &Tensor| {
                let rows = (0..3).map(|b| {
                    let own = x.narrow(0, b, 1)?.narrow(1, read[b], real[b])?;
                    let (_, _, g, d) = x.dims4()?;
                    let other = Tensor::full(-1f32, (1, t - real[b], g, d), &Device::Cpu)?;
                    Tensor::cat(&if is_left { [other, own] } else { [own, other] }, 1)
                });
                Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
            };
            let padding = if is_left { KeyPadding::Left(real.to_vec()) } else { KeyPadding::Right(real.to_vec()) };
            let (keys, values) = match real.iter().all(|real| *real == t) {
                true => cache.append(&piece(&k).unwrap(), &piece(&v).unwrap()).unwrap(),
                false => cache.append_padded(&piece(&k).unwrap(), &piece(&v).unwrap(), &padding).unwrap(),
            };
            (0..3).for_each(|b| read[b] += real[b]);
            assert_eq!((cache.lengths(), cache.len()), (read.to_vec(), *read.iter().max().unwrap()));
            for b in 0..3 {
                let own = |x: &Tensor| numbers(&x.narrow(0, b, 1).unwrap().narrow(1, 0, read[b]).unwrap());
                assert_eq!((own(&keys), own(&values)), (own(&k), own(&v)), "sequence {b} of {read:?}");
            }
        }
        assert_eq!(read, [9, 9, 11]);
        cache.truncate(10);
        assert_eq!(cache.lengths(), [9, 9, 10]);
        cache.truncate(9);
        assert!(cache.lengths.is_none());
        assert_eq!(cache.lengths(), [9, 9, 9]);
    }
}

#[test]
fn lengths_that_do_not_fit_are_named() {
    let rows = counting((2, 3, 1, 1));
    let mut cache = KvCache::new(5);
    cache.append_padded(&rows, &rows, &KeyPadding::Right(vec![3, 1])).unwrap();
    let refused = |cache: &mut KvCache, rows: &Tensor, padding: KeyPadding, message: &str| {
        let lengths = cache.lengths();
        let error = cache.append_padded(rows, rows, &padding).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert_eq!(cache.lengths(), lengths);
    };
    refused(&mut cache, &rows, KeyPadding::Left(vec![1]), "a length of at most 3 for each of 2 sequences, got [1]");
    refused(
        &mut cache,
        &rows,
        KeyPadding::Left(vec![1, 4]),
        "a length of at most 3 for each of 2 sequences, got [1, 4]",
    );
    refused(&mut cache, &rows, KeyPadding::Right(vec![3, 0]), "expected at most 5 positions, got 3 and 3 more");
    let shown = Tensor::ones((2, 3), DType::U8, &Device::Cpu).unwrap();
    refused(&mut cache, &rows, KeyPadding::Real(shown), "expected padding as lengths");
    refused(&mut cache, &counting((1, 1, 1, 1)), KeyPadding::Right(vec![0]), "expected more of 2 sequences, got 1");
    refused(&mut KvCache::sliding(5), &rows, KeyPadding::Right(vec![3, 2]), "one length in a sliding cache");
    // The shorter sequence has room for more.
    cache.append_padded(&rows, &rows, &KeyPadding::Right(vec![2, 3])).unwrap();
    assert_eq!(cache.lengths(), [5, 4]);
}

#[test]
fn a_fork_goes_its_own_way() {
    let k = counting((2, 9, 1, 3));
    let rows = |start, t| k.narrow(1, start, t).unwrap();
    for mut cache in [KvCache::new(9), KvCache::sliding(4)] {
        cache.append(&rows(0, 5), &rows(0, 5)).unwrap();
        let mut fork = cache.fork().unwrap();
        let other = (rows(5, 2) * -1.0).unwrap();
        let (forked, _) = fork.append(&other, &other).unwrap();
        let (own, _) = cache.append(&rows(5, 2), &rows(5, 2)).unwrap();
        let n = own.dim(1).unwrap();
        assert_eq!(numbers(&own), numbers(&rows(7 - n, n)));
        let expected = Tensor::cat(&[&rows(7 - n, n - 2), &other], 1).unwrap();
        assert_eq!(numbers(&forked), numbers(&expected));
    }
    assert!(KvCache::new(3).fork().unwrap().is_empty());
}

#[test]
fn sequences_are_reordered_and_multiplied() {
    let k = counting((3, 9, 1, 2));
    let one = |b: usize, t: usize| k.narrow(0, b, 1).unwrap().narrow(1, 0, t).unwrap();
    let mut cache = KvCache::new(9);
    assert!(cache.reorder(&[0]).is_err());
    let first = k.narrow(1, 0, 4).unwrap();
    let (before, _) = cache.append_padded(&first, &first, &KeyPadding::Right(vec![4, 2, 3])).unwrap();
    let before_numbers = numbers(&before);
    for order in [&[][..], &[0, 3]] {
        let error = cache.reorder(order).unwrap_err().to_string();
        assert!(error.contains("an order of some of the 3 sequences held"), "{error}");
    }
    cache.reorder(&[2, 0, 2, 1]).unwrap();
    assert_eq!(cache.lengths(), [3, 4, 3, 2]);
    let next = Tensor::full(-7f32, (4, 1, 1, 2), &Device::Cpu).unwrap();
    let (keys, _) = cache.append(&next, &next).unwrap();
    for (b, (old, len)) in [(2, 3), (0, 4), (2, 3), (1, 2)].into_iter().enumerate() {
        let held = numbers(&keys.narrow(0, b, 1).unwrap().narrow(1, 0, len + 1).unwrap());
        assert_eq!(held, [numbers(&one(old, len)), vec![-7.0; 2]].concat());
    }
    // Views from before are not touched.
    assert_eq!(numbers(&before), before_numbers);
    cache.reorder(&[0, 2]).unwrap();
    assert!(cache.lengths.is_none());
}
