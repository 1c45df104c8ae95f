//! Keys and values of the positions read so far.

mod buffers;
#[cfg(feature = "lm")]
mod next_position;
mod placement;

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use self::buffers::check_size;
pub(super) use self::placement::Placement;
use crate::ops::KeyPadding;

/// The keys (B, S, G, D) and values (B, S, G, E) of the positions read so far, for one layer and B sequences. With them, a
/// new position costs one row of each projection instead of the whole text again.
///
/// New positions are written in place. The buffers start at 256 positions (fewer for a smaller cache) and double until
/// they have their full size, so a large capacity costs nothing until it is used; each growth copies what is there
/// once, and changes no value. Because the buffers are shared with the returned views, no gradient flows through them
/// and there is no `Clone`: both copies would write to one buffer. [`KvCache::fork`] copies them.
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
///
/// # Sequences of different lengths
/// [`KvCache::append_padded`] takes pieces in which only some positions of each sequence are real, and holds those
/// alone: row `s` of sequence `b` is its position `s`, whatever the padding was. What rows from the length of a sequence
/// on contain is of no meaning.
#[derive(Debug)]
pub struct KvCache {
    buffers: Option<[Tensor; 2]>,
    /// Index in the buffers of the oldest position.
    start: usize,
    /// Positions held, of the longest sequence.
    len: usize,
    /// The positions held of each sequence, where these differ.
    lengths: Option<Vec<usize>>,
    /// Positions that came before the oldest.
    forgotten: usize,
    capacity: usize,
    slides: bool,
    /// The identity of the layer whose keys and values these are.
    layer: Option<Arc<()>>,
}

impl KvCache {
    /// An empty cache for at most `capacity` positions.
    pub fn new(capacity: usize) -> Self {
        Self { buffers: None, start: 0, len: 0, lengths: None, forgotten: 0, capacity, slides: false, layer: None }
    }

    /// An empty cache for a text of any length, each position of which sees the last `window` positions, itself
    /// included. The oldest are forgotten as new ones come; the others keep their positions, so rotary positions go on
    /// counting. Its sequences have one length. A window of 0 is taken as 1.
    ///
    /// At full size the buffers have room for a quarter more than the window. Each time it is used up, the window moves
    /// back to the front, so a position costs the copy of about four rows on average.
    pub fn sliding(window: usize) -> Self {
        Self { slides: true, ..Self::new(window.max(1)) }
    }

    /// The number of positions held of the longest sequence, including some that the next ones may no longer see.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The number of positions held of each sequence; empty before the first are read.
    pub fn lengths(&self) -> Vec<usize> {
        let sequences = self.sequences().filter(|_| self.len > 0).unwrap_or(0);
        self.lengths.clone().unwrap_or_else(|| vec![self.len; sequences])
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

    /// The position in the text of the next token, in the longest sequence: the number of positions so far.
    pub fn next_position(&self) -> usize {
        self.forgotten + self.len
    }

    /// Forgets the positions of each sequence from `position` on, so that the text continues there (or at its end, if
    /// that comes first). What a sliding cache has already forgotten does not come back.
    pub fn truncate(&mut self, position: usize) {
        self.len = self.len.min(position.saturating_sub(self.forgotten));
        self.forgotten = self.forgotten.min(position);
        let (len, lengths) = (self.len, self.lengths());
        self.set_lengths(lengths.into_iter().map(|length| length.min(len)).collect());
        if self.is_empty() {
            self.layer = None;
        }
    }

    /// Forgets everything, also which layer it served, but keeps the buffers for reuse.
    pub fn reset(&mut self) {
        (self.start, self.len, self.lengths, self.forgotten, self.layer) = (0, 0, None, 0, None);
    }

    /// A copy with buffers of its own, so that both can go on in different ways.
    ///
    /// # Errors
    /// If memory cannot hold the copy.
    pub fn fork(&self) -> Result<Self> {
        let copy = |buffer: &Tensor| {
            check_size(buffer.dims(), buffer)?;
            buffer.copy()
        };
        let buffers = match &self.buffers {
            Some([keys, values]) => Some([copy(keys)?, copy(values)?]),
            None => None,
        };
        Ok(Self { buffers, lengths: self.lengths.clone(), layer: self.layer.clone(), ..*self })
    }

    /// Makes sequence `i` a copy of what was sequence `order[i]`, as a beam search does after each step. There may be
    /// more or fewer sequences than before: `&[0; 4]` turns one prompt into four beams.
    ///
    /// # Errors
    /// If `order` is empty, or names a sequence that is not there; or memory cannot hold the copies. The cache is then
    /// left as it was.
    pub fn reorder(&mut self, order: &[usize]) -> Result<()> {
        let b = self.sequences().filter(|_| self.len > 0).unwrap_or(0);
        if order.is_empty() || order.iter().any(|sequence| *sequence >= b) {
            bail!("kv-cache: expected an order of some of the {b} sequences held, got {order:?}");
        }
        let Some([keys, values]) = &self.buffers else { return Ok(()) };
        let rows: Vec<u32> = order.iter().map(|sequence| *sequence as u32).collect();
        let rows = Tensor::from_vec(rows, order.len(), keys.device())?;
        let reordered = |buffer: &Tensor| {
            let (_, positions, g, d) = buffer.dims4()?;
            check_size(&[order.len(), positions, g, d], buffer)?;
            buffer.index_select(&rows, 0)
        };
        let buffers = [reordered(keys)?, reordered(values)?];
        let lengths = self.lengths();
        self.buffers = Some(buffers);
        self.set_lengths(order.iter().map(|sequence| lengths[*sequence]).collect());
        Ok(())
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
        let (b, t, _, _) = k.dims4()?;
        let placement = self.place(b, t, None)?;
        self.append_at(k, v, placement.as_ref())
    }

    /// As [`append`](Self::append), where only some of the T positions are real: of sequence `b` the first `lengths[b]`
    /// ([`KeyPadding::Right`]) or the last ([`KeyPadding::Left`]).
    ///
    /// # Errors
    /// If the cache slides, there is not one length of at most T for each sequence, or padding is given in another form;
    /// and those of `append`.
    pub fn append_padded(&mut self, k: &Tensor, v: &Tensor, padding: &KeyPadding) -> Result<(Tensor, Tensor)> {
        let (b, t, _, _) = k.dims4()?;
        let placement = self.place(b, t, Some(padding))?;
        self.append_at(k, v, placement.as_ref())
    }

    /// Appends the positions to each sequence where [`place`](Self::place) has said.
    pub(super) fn append_at(
        &mut self,
        k: &Tensor,
        v: &Tensor,
        placement: Option<&Placement>,
    ) -> Result<(Tensor, Tensor)> {
        let ((b, t, g, _), (v_b, v_t, v_g, _)) = (k.dims4()?, v.dims4()?);
        if (b, t, g) != (v_b, v_t, v_g) {
            bail!("kv-cache: expected keys and values of as many sequences, positions and heads, got {k:?} and {v:?}");
        }
        if k.track_op() || v.track_op() {
            bail!("kv-cache: expected keys and values without a graph, got tracked ones, whose gradient would be cut");
        }
        let grown = placement.map_or(t, |placement| placement.longest() - self.len);
        if !self.slides && self.len.checked_add(grown).is_none_or(|len| len > self.capacity) {
            bail!("kv-cache: expected at most {} positions, got {} and {grown} more", self.capacity, self.len);
        }
        let kept = self.kept();
        let (start, buffers) = self.room(grown, k, v)?;
        for (buffer, new) in buffers.iter().zip([k, v]) {
            match placement {
                None => buffer.slice_set(&new.contiguous()?, 1, start + kept)?,
                Some(placement) => placement.write(new, buffer)?,
            }
        }
        let [keys, values] = &buffers;
        let both = (keys.narrow(1, start, kept + grown)?, values.narrow(1, start, kept + grown)?);
        self.forgotten += self.len - kept;
        (self.start, self.len, self.buffers) = (start, kept + grown, Some(buffers));
        if let Some(placement) = placement {
            self.set_lengths(placement.lengths_after());
        }
        Ok(both)
    }

    /// Refuses a layer other than the one whose keys and values are held.
    pub(super) fn check_layer(&self, layer: &Arc<()>) -> Result<()> {
        match &self.layer {
            Some(own) if !Arc::ptr_eq(own, layer) => {
                bail!(
                    "kv-cache: expected the layer whose keys and values it holds, got another: each needs its own cache"
                )
            }
            _ => Ok(()),
        }
    }

    /// Remembers the layer until the next [`reset`](Self::reset).
    pub(super) fn set_layer(&mut self, layer: &Arc<()>) {
        self.layer = Some(layer.clone());
    }

    /// Takes back the last positions appended, before which `position` was the [next](Self::next_position).
    pub(super) fn take_back(&mut self, position: usize, placement: Option<&Placement>) {
        match placement {
            None => self.truncate(position),
            Some(placement) => self.set_lengths(placement.lengths_before()),
        }
    }

    /// Sets the lengths of all sequences, which none of the buffers' rows contradict.
    fn set_lengths(&mut self, lengths: Vec<usize>) {
        self.len = lengths.iter().copied().max().unwrap_or(self.len);
        let differ = lengths.iter().any(|length| *length != self.len);
        self.lengths = differ.then_some(lengths);
    }

    /// Sequences that the buffers are for.
    pub(crate) fn sequences(&self) -> Option<usize> {
        self.buffers.as_ref().map(|[keys, _]| keys.dims()[0])
    }
}

#[cfg(test)]
mod tests;
