//! Keys and values of the positions read so far.

use candle_core::{Result, Tensor, bail};

use crate::memory;

/// The keys (B, S, G, D) and values (B, S, G, E) of the positions read so far, of one layer and B sequences of equal
/// length: with them a new position costs one row of each projection instead of the whole text again.
///
/// The buffers are allocated with the first positions and written in place: what is there is not copied, but for a
/// [sliding](Self::sliding) cache now and then. For the same reason no gradient flows through them, and there is no `Clone`: both
/// would write to one buffer.
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
    /// Where in the buffers the oldest position lies.
    start: usize,
    len: usize,
    /// Positions that came before the oldest.
    forgotten: usize,
    capacity: usize,
    slides: bool,
}

impl KvCache {
    /// An empty cache for at most `capacity` positions.
    pub fn new(capacity: usize) -> Self {
        Self { buffers: None, start: 0, len: 0, forgotten: 0, capacity, slides: false }
    }

    /// An empty cache for a text of any length, of which each position sees the last `window`, its own included. The oldest are
    /// forgotten as new ones come; those that stay keep their place, so rotary positions go on counting.
    ///
    /// The buffers have room for a quarter more: each time that is used up, the window moves back to their front. So a
    /// position costs the copy of some four rows, and not of all.
    pub fn sliding(window: usize) -> Self {
        Self { slides: true, ..Self::new(window.max(1)) }
    }

    /// Positions it holds. Those that the next ones will not see may still be among them.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The most positions it can hold, or where it slides the most that one can see.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The most positions that one sees, its own included, where it slides.
    pub fn window(&self) -> Option<usize> {
        self.slides.then_some(self.capacity)
    }

    /// The place in the text of the position that comes next: how many came so far.
    pub fn next_position(&self) -> usize {
        self.forgotten + self.len
    }

    /// Forgets the positions from `position` on; the text goes on there, or where it ended before. What a sliding cache has
    /// forgotten already does not come back.
    pub fn truncate(&mut self, position: usize) {
        self.len = self.len.min(position.saturating_sub(self.forgotten));
        self.forgotten = self.forgotten.min(position);
    }

    /// Forgets everything but the memory, which serves again.
    pub fn reset(&mut self) {
        (self.start, self.len, self.forgotten) = (0, 0, 0);
    }

    /// Writes the keys (B, T, G, D) and values (B, T, G, E) of the next T positions, and gives those of all positions; where it
    /// slides, of all that any of the new ones may see.
    ///
    /// What it gives are views of the buffers: they are right until the positions are forgotten and written again, or
    /// the window moves.
    ///
    /// # Errors
    /// If there is no room, the shapes are not those of the positions before, or a tensor carries a graph, which would be
    /// cut here: `detach()` says that this is meant.
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
        let kept = if self.slides { self.len.min(self.capacity - 1) } else { self.len };
        let (start, buffers) = self.room(kept, t, k, v)?;
        for (buffer, new) in buffers.iter().zip([k, v]) {
            buffer.slice_set(&new.contiguous()?, 1, start + kept)?;
        }
        let [keys, values] = &buffers;
        let both = (keys.narrow(1, start, kept + t)?, values.narrow(1, start, kept + t)?);
        self.forgotten += self.len - kept;
        (self.start, self.len, self.buffers) = (start, kept + t, Some(buffers));
        Ok(both)
    }

    /// Buffers with the last `kept` positions and room for `t` behind them, and where in these the first lies.
    fn room(&self, kept: usize, t: usize, k: &Tensor, v: &Tensor) -> Result<(usize, [Tensor; 2])> {
        let usual = if self.slides { self.capacity - 1 + self.capacity.div_ceil(4) } else { self.capacity };
        let wanted = usual.max(kept + t);
        let fresh = || -> Result<[Tensor; 2]> { Ok([buffer(wanted, k)?, buffer(wanted, v)?]) };
        let Some([keys, values]) = &self.buffers else { return Ok((0, fresh()?)) };
        if !(goes_with(keys, k) && goes_with(values, v)) {
            if self.len > 0 {
                bail!("kv-cache: expected more of {keys:?} and {values:?}, got {k:?} and {v:?}");
            }
            return Ok((0, fresh()?));
        }
        let (start, size) = (self.start + self.len - kept, keys.dim(1)?);
        if start + kept + t <= size {
            return Ok((start, [keys.clone(), values.clone()]));
        }
        let front = if size == wanted { [keys.clone(), values.clone()] } else { fresh()? };
        if kept > 0 {
            for (from, to) in [keys, values].into_iter().zip(&front) {
                to.slice_set(&from.narrow(1, start, kept)?.force_contiguous()?, 1, 0)?;
            }
        }
        Ok((0, front))
    }
}

/// A buffer for so many positions.
fn buffer(positions: usize, like: &Tensor) -> Result<Tensor> {
    let (b, _, g, d) = like.dims4()?;
    let bytes = memory::tensor_bytes(&[b, positions, g, d], like.dtype().size_in_bytes());
    memory::check(&format!("kv-cache: {positions} positions of {like:?}"), bytes)?;
    Tensor::zeros((b, positions, g, d), like.dtype(), like.device())
}

/// Whether the rows can be written to the buffer: all but the number of positions is the same.
fn goes_with(buffer: &Tensor, rows: &Tensor) -> bool {
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
    fn a_capacity_that_no_memory_holds_is_refused() {
        let rows = counting((1, 1, 2, 3));
        for capacity in [usize::MAX / 2, 1 << 50] {
            let error = KvCache::new(capacity).append(&rows, &rows).unwrap_err().to_string();
            assert!(error.contains("of memory, got"), "{error}");
        }
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
        // The view of the first piece looks at the same memory still.
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
                    assert_eq!(numbers(&keys), seen(&k), "window {window}, {t} behind {read}");
                    assert_eq!(numbers(&values), seen(&v), "window {window}, {t} behind {read}");
                    read += t;
                    assert_eq!((cache.next_position(), cache.len()), (read, kept + t));
                }
                assert!(read > 60);
            }
        }
    }

    /// A quarter of the window's rows wait for the next move, however long the text is.
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
        // The first finds the window at the front.
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
        // 18 is the oldest it has: from before there is nothing.
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
