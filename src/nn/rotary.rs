//! Rotary position embedding as a layer without weights.

use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{DType, Device, Result, Tensor, bail};

use super::RotaryScaling;
use crate::ops::{self, QkvLayout, RotaryPairs};

/// The name of the layer in errors.
const OP: &str = "rotary-embedding";

/// Sizes and options of a [`RotaryEmbedding`].
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryEmbeddingConfig {
    /// Channels of a head that are rotated (D), from the first: usually all.
    pub head_dim: usize,
    /// Positions whose angles are computed in advance: the longest text in training; `max_position_embeddings` in
    /// Hugging Face's files.
    pub max_positions: usize,
    /// The base of the frequencies `theta^(-2i/D)`; `rope_theta` in Hugging Face's files.
    pub theta: f64,
    /// Which channels form pairs.
    pub pairs: RotaryPairs,
    /// How the frequencies are scaled for a longer context.
    pub scaling: RotaryScaling,
    /// The order of the dimensions of queries and keys: (B, T, H, D), or torch's (B, H, T, D). Where heads and positions
    /// agree in number, a wrong one cannot be noticed.
    pub layout: QkvLayout,
}

impl RotaryEmbeddingConfig {
    /// Pairs of channel `i` and `i + D/2` and a base of 10 000, as in Hugging Face's llama, for (B, T, H, D).
    pub fn new(head_dim: usize, max_positions: usize) -> Self {
        Self {
            head_dim,
            max_positions,
            theta: 10_000.0,
            pairs: RotaryPairs::Halves,
            scaling: RotaryScaling::None,
            layout: QkvLayout::Bthd,
        }
    }
}

/// Rotates queries and keys, (B, T, H, D) unless its configuration says (B, H, T, D), by their positions: [`ops::rotary`]
/// with its tables of cosines and sines. They are computed once, in `f64`, from positions and
/// frequencies, and are not part of the weights, so no file has to have them.
///
/// One is enough for all layers of a model: clones share the tables. For positions beyond `max_positions`, as in a
/// [sliding cache](super::KvCache::sliding), tables are computed when needed, and the last few are kept.
///
/// ```
/// use candle_attention::nn::{RotaryEmbedding, RotaryEmbeddingConfig};
/// use candle_core::{DType, Device, Tensor};
///
/// let config = RotaryEmbeddingConfig { theta: 1e6, ..RotaryEmbeddingConfig::new(8, 64) };
/// let rotary = RotaryEmbedding::new(&config, DType::F32, &Device::Cpu)?;
/// let q = Tensor::ones((2, 5, 3, 8), DType::F32, &Device::Cpu)?; // (B, T, H, D)
/// for before in [7, 1_000_000] {
///     assert_eq!(rotary.forward(&q, before)?.dims(), q.dims());
/// }
/// let positions = Tensor::new(&[[0u32, 1, 2, 0, 1], [9, 10, 11, 12, 13]], &Device::Cpu)?; // (B, T)
/// assert_eq!(rotary.forward_at(&q, &positions)?.dims(), q.dims());
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RotaryEmbedding {
    frequencies: Arc<[f64]>,
    /// The factor on cosines and sines.
    factor: f64,
    /// For the first positions.
    first: Tables,
    /// For the further positions used last, the latest at the end.
    beyond: Arc<RwLock<Vec<Tables>>>,
    pub(super) pairs: RotaryPairs,
    layout: QkvLayout,
}

/// Cosines and sines for a range of positions, each (positions, D/2).
#[derive(Clone, Debug)]
struct Tables {
    start: usize,
    cos: Tensor,
    sin: Tensor,
}

impl Tables {
    fn len(&self) -> usize {
        self.cos.dims()[0]
    }

    /// The rows of `t` positions from `offset` on, if all are here.
    fn narrow(&self, offset: usize, t: usize) -> Option<Result<(Tensor, Tensor)>> {
        let from = offset.checked_sub(self.start).filter(|from| from + t <= self.len())?;
        Some(self.cos.narrow(0, from, t).and_then(|cos| Ok((cos, self.sin.narrow(0, from, t)?))))
    }
}

impl RotaryEmbedding {
    /// Computes the tables, for heads of `dtype` on `device`.
    ///
    /// # Errors
    /// If `head_dim` is odd or 0, `theta` is not above 0, or memory cannot hold the tables.
    pub fn new(config: &RotaryEmbeddingConfig, dtype: DType, device: &Device) -> Result<Self> {
        let &RotaryEmbeddingConfig { head_dim, max_positions, theta, pairs, scaling, layout } = config;
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            bail!("{OP}: expected an even head_dim above 0, got {head_dim}");
        }
        let mut frequencies = ops::rotary_frequencies(OP, theta, head_dim)?;
        scaling.scale(&mut frequencies, theta)?;
        let frequencies = (frequencies.as_slice(), scaling.attention_factor());
        Self::with_factor(frequencies, max_positions, (pairs, layout), (dtype, device))
    }

    /// From the D/2 angles, in radians, by which the pairs of channels rotate from one position to the next: for models
    /// that scale them otherwise than [`RotaryScaling`]. With n < D/2 angles, only the first 2n channels are rotated
    /// (`partial_rotary_factor` in Hugging Face's files).
    ///
    /// # Errors
    /// If there are no angles, one is not finite, or memory cannot hold the tables.
    pub fn from_frequencies(
        frequencies: &[f64],
        max_positions: usize,
        pairs: RotaryPairs,
        layout: QkvLayout,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        Self::with_factor((frequencies, 1.0), max_positions, (pairs, layout), (dtype, device))
    }

    fn with_factor(
        (frequencies, factor): (&[f64], f64),
        max_positions: usize,
        (pairs, layout): (RotaryPairs, QkvLayout),
        kind: (DType, &Device),
    ) -> Result<Self> {
        if frequencies.is_empty() || frequencies.iter().any(|frequency| !frequency.is_finite()) {
            bail!("{OP}: expected one or more finite frequencies, got {frequencies:?}");
        }
        let (cos, sin) = ops::tables_of_frequencies(OP, (frequencies, factor), 0..max_positions, kind)?;
        let first = Tables { start: 0, cos, sin };
        Ok(Self { frequencies: frequencies.into(), factor, first, beyond: Arc::default(), pairs, layout })
    }

    /// Positions whose angles are computed in advance.
    pub fn max_positions(&self) -> usize {
        self.first.len()
    }

    /// Channels of a head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// The order of the dimensions of queries and keys.
    pub fn layout(&self) -> QkvLayout {
        self.layout
    }

    /// Rotates queries or keys, (B, T, H, D) or as the layout says, at the positions `offset..offset + T`.
    ///
    /// # Errors
    /// If width, dtype or device of the tensor do not match the tables, or memory cannot hold tables for these
    /// positions.
    pub fn forward(&self, xs: &Tensor, offset: usize) -> Result<Tensor> {
        let [_, t] = self.sizes(xs)?;
        let (cos, sin) = self.tables(offset, t)?; // (T, D/2)
        self.rotate(xs, &cos, &sin)
    }

    /// Rotates queries or keys, (B, T, H, D) or as the layout says, at any positions: `positions` (B, T) of `u32` has that of each.
    ///
    /// # Errors
    /// If `positions` has another shape or dtype, and those of [`forward`](Self::forward).
    pub fn forward_at(&self, xs: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let [b, t] = self.sizes(xs)?;
        if positions.dims() != [b, t] || positions.dtype() != DType::U32 {
            bail!(
                "{OP}: expected positions of shape {:?} and dtype U32, got {:?} and {:?}",
                [b, t],
                positions.dims(),
                positions.dtype()
            );
        }
        self.forward_at_each(xs, positions.flatten_all()?.to_vec1()?)
    }

    /// [`forward_at`](Self::forward_at) the positions of all sequences, in order.
    pub(super) fn forward_at_each(&self, xs: &Tensor, positions: Vec<u32>) -> Result<Tensor> {
        let [b, t] = self.sizes(xs)?;
        let Tables { cos, sin, .. } = &self.first;
        let (dtype, device) = (cos.dtype(), cos.device());
        let (cos, sin) = if positions.iter().all(|position| (*position as usize) < self.first.len()) {
            let rows = Tensor::from_vec(positions, b * t, device)?;
            (cos.index_select(&rows, 0)?, sin.index_select(&rows, 0)?)
        } else {
            let positions = positions.iter().map(|position| *position as usize);
            ops::tables_of_frequencies(OP, (&self.frequencies, self.factor), positions, (dtype, device))?
        };
        let of_each = |table: Tensor| table.reshape((b, t, ())); // (B, T, D/2)
        self.rotate(xs, &of_each(cos)?, &of_each(sin)?)
    }

    /// B and T.
    fn sizes(&self, xs: &Tensor) -> Result<[usize; 2]> {
        let (b, i, j, _) = xs.dims4()?;
        Ok([b, if self.layout == QkvLayout::Bthd { i } else { j }])
    }

    /// Rotates the first channels by these tables, and keeps the others.
    fn rotate(&self, xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let (d, rotated) = (xs.dim(3)?, self.rotary_dim());
        if rotated > d {
            bail!("{OP}: expected heads of at least {rotated} channels, got {d}");
        }
        if rotated == d {
            return ops::rotary(xs, cos, sin, self.pairs, self.layout);
        }
        let first = ops::rotary(&xs.narrow(3, 0, rotated)?, cos, sin, self.pairs, self.layout)?;
        Tensor::cat(&[first, xs.narrow(3, rotated, d - rotated)?], 3)
    }

    /// Cosines and sines of `t` positions from `offset` on.
    pub(super) fn tables(&self, offset: usize, t: usize) -> Result<(Tensor, Tensor)> {
        const MAX: usize = u32::MAX as usize;
        /// Positions computed at once.
        const BLOCK: usize = 64;
        /// Tables kept, so that as many texts can go on in turns.
        const KEPT: usize = 8;
        if offset.checked_add(t).is_none_or(|end| end > MAX) {
            bail!("{OP}: expected positions below {MAX}, got {t} from {offset} on");
        }
        if let Some(tables) = self.first.narrow(offset, t) {
            return tables;
        }
        // A writer that panicked has left whole tables.
        let known = self.beyond.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(tables) = known.iter().find_map(|tables| tables.narrow(offset, t)) {
            return tables;
        }
        drop(known);
        let kind = (self.first.cos.dtype(), self.first.cos.device());
        let positions = offset..offset + t.max(BLOCK);
        let (cos, sin) = ops::tables_of_frequencies(OP, (&self.frequencies, self.factor), positions, kind)?;
        let rows = (cos.narrow(0, 0, t)?, sin.narrow(0, 0, t)?);
        let mut kept = self.beyond.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push(Tables { start: offset, cos, sin });
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts that go on in turns beyond the first positions, each with a table of its own.
    #[test]
    fn texts_in_turns_compute_a_table_every_64_positions() {
        let config = RotaryEmbeddingConfig::new(4, 8);
        let rotary = RotaryEmbedding::new(&config, DType::F32, &Device::Cpu).unwrap();
        let xs = Tensor::ones((1, 1, 1, 4), DType::F32, &Device::Cpu).unwrap();
        let ids = || rotary.beyond.read().unwrap().iter().map(|tables| tables.cos.id()).collect::<Vec<_>>();
        rotary.forward(&xs, 100).unwrap();
        rotary.forward(&xs, 1000).unwrap();
        let first = ids();
        for t in 0..64 {
            rotary.forward(&xs, 100 + t).unwrap();
            rotary.forward(&xs, 1000 + t).unwrap();
        }
        assert_eq!(ids(), first);
        for text in 0..20 {
            rotary.forward(&xs, 10_000 * (text + 1)).unwrap();
        }
        assert_eq!(ids().len(), 8);
    }
}
