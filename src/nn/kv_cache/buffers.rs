//! The buffers of a cache: their size, and how they grow.

use candle_core::{Result, Tensor, bail};

use super::KvCache;
use crate::cpu::allocation;

/// Positions that the buffers have room for at first.
const FIRST_POSITIONS: usize = 256;

impl KvCache {
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

    /// Positions held that the next one sees.
    pub(super) fn kept(&self) -> usize {
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
    pub(super) fn room(&self, t: usize, k: &Tensor, v: &Tensor) -> Result<(usize, [Tensor; 2])> {
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
pub(super) fn buffer(positions: usize, like: &Tensor) -> Result<Tensor> {
    let (b, _, g, d) = like.dims4()?;
    check_size(&[b, positions, g, d], like)?;
    Tensor::zeros((b, positions, g, d), like.dtype(), like.device())
}

/// Refuses a buffer of this shape, and a dtype like that given, that memory cannot hold.
pub(super) fn check_size(shape: &[usize], like: &Tensor) -> Result<()> {
    allocation::check(&format!("kv-cache: a buffer of shape {shape:?}"), shape, like.dtype().size_in_bytes())
}

/// Whether the rows can be written to the buffer: everything but the number of positions agrees.
fn matches(buffer: &Tensor, rows: &Tensor) -> bool {
    let without_positions = |tensor: &Tensor| [tensor.dims()[0], tensor.dims()[2], tensor.dims()[3]];
    let is_alike = buffer.dtype() == rows.dtype() && buffer.device().same_device(rows.device());
    is_alike && without_positions(buffer) == without_positions(rows)
}
