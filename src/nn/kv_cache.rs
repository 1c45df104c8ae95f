//! Keys and values of the positions read so far.

use candle_core::{Result, Tensor, bail};

use crate::memory;

/// The keys (B, S, G, D) and values (B, S, G, E) of the positions read so far, of one layer and B sequences of equal
/// length: with them a new position costs one row of each projection instead of the whole text again.
///
/// The buffers are allocated with the first positions, for `capacity` of them, and written in place: what is there is
/// never copied. For the same reason no gradient flows through them, and there is no `Clone`: both would write to one
/// buffer.
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
    len: usize,
    capacity: usize,
}

impl KvCache {
    /// An empty cache for at most `capacity` positions.
    pub fn new(capacity: usize) -> Self {
        Self { buffers: None, len: 0, capacity }
    }

    /// Positions it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The most positions it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets the positions from `len` on; those there are, if there are fewer, stay.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Forgets everything but the memory, which serves again.
    pub fn reset(&mut self) {
        self.truncate(0);
    }

    /// Writes the keys (B, T, G, D) and values (B, T, G, E) of the next T positions, and gives those of all positions.
    ///
    /// What it gives are views of the buffers: they are right until the positions are forgotten and written again.
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
        let Some(len) = self.len.checked_add(t).filter(|len| *len <= self.capacity) else {
            bail!("kv-cache: expected at most {} positions, got {} and {t} more", self.capacity, self.len);
        };
        let [keys, values] = self.buffers_for(k, v)?;
        let all = |buffer: &Tensor, new: &Tensor| {
            buffer.slice_set(&new.contiguous()?, 1, self.len)?;
            buffer.narrow(1, 0, len)
        };
        let both = (all(&keys, k)?, all(&values, v)?);
        self.len = len;
        Ok(both)
    }

    /// The buffers, which are made where there are none, or where an empty cache gets other shapes.
    fn buffers_for(&mut self, k: &Tensor, v: &Tensor) -> Result<[Tensor; 2]> {
        if let Some([keys, values]) = &self.buffers {
            if goes_with(keys, k) && goes_with(values, v) {
                return Ok([keys.clone(), values.clone()]);
            }
            if self.len > 0 {
                bail!("kv-cache: expected more of {keys:?} and {values:?}, got {k:?} and {v:?}");
            }
        }
        let buffer = |like: &Tensor| {
            let (b, _, g, d) = like.dims4()?;
            let bytes = memory::tensor_bytes(&[b, self.capacity, g, d], like.dtype().size_in_bytes());
            memory::check(&format!("kv-cache: {} positions of {like:?}", self.capacity), bytes)?;
            Tensor::zeros((b, self.capacity, g, d), like.dtype(), like.device())
        };
        let buffers = [buffer(k)?, buffer(v)?];
        self.buffers = Some(buffers.clone());
        Ok(buffers)
    }
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
