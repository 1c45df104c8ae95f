//! Keys and values of the positions read so far.

use candle_core::{Result, Tensor, bail};

use crate::cpu::allocation;

/// The keys (B, S, G, D) and values (B, S, G, E) of the positions read so far, for one layer and B sequences of equal
/// length. With them, a new position costs one row of each projection instead of the whole text again.
///
/// New positions are written in place. The buffers start at 256 positions (fewer for a smaller cache) and double until
/// they have their full size, so a large capacity costs nothing until it is used; each growth copies what is there
/// once, and changes no value. Because the buffers are shared with the returned views, no gradient flows through them
/// and there is no `Clone`: both copies would write to one buffer.
///
/// ```
/// use candle_attention::nn::KvCache;
/// use candle_core::{DType, Device, Tensor};
///
/// let mut cache = KvCache::new(5);
/// let of = |t: usize| Tensor::ones((2, t, 3, 4), DType::F32, &Device::Cpu); // (B, T, G, D)
/// cache.append(&of(3)?, &of(3)?)?;
/// let (k, v) = cache.append(&of(1)?, &of(1)?)?;
/// assert_eq!((k.dims(), v.dims()), (&[2, 4, 3, 4][..], &[2, 4, 3, 4][..]));
/// cache.truncate(2);
/// assert_eq!(cache.len(), 2);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct KvCache {
    buffers: Option<[Tensor; 2]>,
    /// Index in the buffers of the oldest position.
    start: usize,
    len: usize,
    /// Positions that came before the oldest.
    forgotten: usize,
    capacity: usize,
    slides: bool,
}

/// Positions that the buffers have room for at first.
const FIRST_POSITIONS: usize = 256;

impl KvCache {
    /// An empty cache for at most `capacity` positions.
    pub fn new(capacity: usize) -> Self {
        Self { buffers: None, start: 0, len: 0, forgotten: 0, capacity, slides: false }
    }

    /// An empty cache for a text of any length, each position of which sees the last `window` positions, itself
    /// included. The oldest are forgotten as new ones come; the others keep their positions, so rotary positions go on
    /// counting.
    ///
    /// At full size the buffers have room for a quarter more than the window. Each time it is used up, the window moves
    /// back to the front, so a position costs the copy of about four rows on average.
    pub fn sliding(window: usize) -> Self {
        Self { slides: true, ..Self::new(window.max(1)) }
    }

    /// The number of positions held, including some that the next ones may no longer see.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The maximum of positions the cache can hold; for a sliding cache, the maximum that one position can see.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// For a sliding cache, the maximum of positions that one position sees, itself included.
    pub fn window(&self) -> Option<usize> {
        self.slides.then_some(self.capacity)
    }

    /// The position in the text of the next token: the number of positions so far.
    pub fn next_position(&self) -> usize {
        self.forgotten + self.len
    }

    /// Forgets the positions from `position` on, so that the text continues there (or at its end, if that comes first).
    /// What a sliding cache has already forgotten does not come back.
    pub fn truncate(&mut self, position: usize) {
        self.len = self.len.min(position.saturating_sub(self.forgotten));
        self.forgotten = self.forgotten.min(position);
    }

    /// Forgets everything, but keeps the buffers for reuse.
    pub fn reset(&mut self) {
        (self.start, self.len, self.forgotten) = (0, 0, 0);
    }

    /// Writes the keys (B, T, G, D) and values (B, T, G, E) of the next T positions, and returns those of all
    /// positions; for a sliding cache, of all that any of the new ones may see.
    ///
    /// The results are views of the buffers. A view stays valid until the positions in it are forgotten and
    /// overwritten, or the window moves; growing the buffers does not affect it.
    ///
    /// # Errors
    /// If there is no room, memory cannot hold larger buffers, the shapes differ from those of the earlier positions,
    /// or a tensor carries a graph, which would be cut here (`detach()` it if that is intended).
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let ((b, t, g, _), (v_b, v_t, v_g, _)) = (k.dims4()?, v.dims4()?);
        if (b, t, g) != (v_b, v_t, v_g) {
            bail!("kv-cache: expected keys and values of as many sequences, positions and heads, got {k:?} and {v:?}");
        }
        if k.track_op() || v.track_op() {
            bail!("kv-cache: expected keys and values without a graph, got tracked ones, whose gradient would be cut");
        }
        if !self.slides && self.len.checked_add(t).is_none_or(|len| len > self.capacity) {
            bail!("kv-cache: expected at most {} positions, got {} and {t} more", self.capacity, self.len);
        }
        let kept = self.kept();
        let (start, buffers) = self.room(t, k, v)?;
        for (buffer, new) in buffers.iter().zip([k, v]) {
            buffer.slice_set(&new.contiguous()?, 1, start + kept)?;
        }
        let [keys, values] = &buffers;
        let both = (keys.narrow(1, start, kept + t)?, values.narrow(1, start, kept + t)?);
        self.forgotten += self.len - kept;
        (self.start, self.len, self.buffers) = (start, kept + t, Some(buffers));
        Ok(both)
    }

    /// Positions that the buffers have room for now.
    pub(crate) fn allocated(&self) -> usize {
        self.buffers.as_ref().map_or(0, |[keys, _]| keys.dims()[1])
    }

    /// Positions that the buffers will have room for once `t` more are read.
    pub(crate) fn allocated_after(&self, t: usize) -> usize {
        let (kept, size) = (self.kept(), self.allocated());
        let end = (self.start + self.len).saturating_add(t);
        if end <= size { size } else { self.size_for(kept.saturating_add(t), end) }
    }

    /// The maximum of positions that the buffers will have room for while an empty cache reads a text of `positions`: first
    /// `first` of them in pieces of at most `capacity`, then one by one.
    #[cfg(feature = "lm")]
    pub(crate) fn allocated_for(&self, first: usize, positions: usize) -> usize {
        let needed = match self.slides {
            true => (self.capacity - 1).saturating_add(first.saturating_sub(self.capacity).clamp(1, self.capacity)),
            false => self.capacity,
        };
        self.size_for(positions.min(needed), positions)
    }

    /// Sequences that the buffers are for.
    #[cfg(feature = "lm")]
    pub(crate) fn sequences(&self) -> Option<usize> {
        self.buffers.as_ref().map(|[keys, _]| keys.dims()[0])
    }

    /// Positions held that the next one sees.
    fn kept(&self) -> usize {
        if self.slides { self.len.min(self.capacity - 1) } else { self.len }
    }

    /// The size of buffers that have to hold `needed` positions, and should hold `wanted`.
    fn size_for(&self, needed: usize, wanted: usize) -> usize {
        let full = match self.slides {
            true => (self.capacity - 1).saturating_add(self.capacity.div_ceil(4)),
            false => self.capacity,
        };
        let doubled = wanted.checked_next_power_of_two().unwrap_or(usize::MAX);
        doubled.max(FIRST_POSITIONS).min(full).max(needed)
    }

    /// Buffers that hold the positions kept and have room for `t` more, and the index of the first of them.
    fn room(&self, t: usize, k: &Tensor, v: &Tensor) -> Result<(usize, [Tensor; 2])> {
        let kept = self.kept();
        let fresh = |size| -> Result<[Tensor; 2]> { Ok([buffer(size, k)?, buffer(size, v)?]) };
        let Some([keys, values]) = &self.buffers else { return Ok((0, fresh(self.size_for(t, t))?)) };
        if !(matches(keys, k) && matches(values, v)) {
            if self.len > 0 {
                bail!("kv-cache: expected more of {keys:?} and {values:?}, got {k:?} and {v:?}");
            }
            return Ok((0, fresh(self.size_for(t, t))?));
        }
        let start = self.start + self.len - kept;
        let (size, size_after) = (self.allocated(), self.allocated_after(t));
        if start + kept + t <= size {
            return Ok((start, [keys.clone(), values.clone()]));
        }
        let front = if size_after == size { [keys.clone(), values.clone()] } else { fresh(size_after)? };
        if kept > 0 {
            for (from, to) in [keys, values].into_iter().zip(&front) {
                to.slice_set(&from.narrow(1, start, kept)?.force_contiguous()?, 1, 0)?;
            }
        }
        Ok((0, front))
    }
}

/// A buffer with room for `positions` rows like those given.
fn buffer(positions: usize, like: &Tensor) -> Result<Tensor> {
    let (b, _, g, d) = like.dims4()?;
    let what = format!("kv-cache: {positions} positions of {like:?}");
    allocation::check(&what, &[b, positions, g, d], like.dtype().size_in_bytes())?;
    Tensor::zeros((b, positions, g, d), like.dtype(), like.device())
}

/// Whether the rows can be written to the buffer: everything but the number of positions agrees.
fn matches(buffer: &Tensor, rows: &Tensor) -> bool {
    let without_positions = |tensor: &Tensor| [tensor.dims()[0], tensor.dims()[2], tensor.dims()[3]];
    let is_alike = buffer.dtype() == rows.dtype() && buffer.device().same_device(rows.device());
    is_alike && without_positions(buffer) == without_positions(rows)
}

#[cfg(test)]
mod tests {
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
        for mut cache in [usize::MAX, 1 << 50].into_iter().flat_map(|size| [KvCache::new(size), KvCache::sliding(size)])
        {
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
}
