//! Rotary position embedding as a layer without weights.

use std::sync::{Arc, RwLock};

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::ops::{self, RotaryPairs};

/// The name of the layer in errors.
const OP: &str = "rotary-embedding";

/// Sizes and options of a [`RotaryEmbedding`].
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryEmbeddingConfig {
    /// Channels of a head (D).
    pub head_dim: usize,
    /// Positions whose angles are at hand from the beginning, the most a text should have in training; in Hugging Face's files
    /// `max_position_embeddings`.
    pub max_positions: usize,
    /// The base of the frequencies `theta^(-2i/D)`; in Hugging Face's files `rope_theta`.
    pub theta: f64,
    /// Which channels turn together.
    pub pairs: RotaryPairs,
}

impl RotaryEmbeddingConfig {
    /// Halves that turn together and a base of 10 000, as in Hugging Face's llama.
    pub fn new(head_dim: usize, max_positions: usize) -> Self {
        Self { head_dim, max_positions, theta: 10_000.0, pairs: RotaryPairs::Halves }
    }
}

/// [`ops::rotary`] with its tables of cosines and sines, computed once, in `f64`, from the position and the frequency
/// and from nothing else: no table comes out of a file or a store of weights, where it might be missing.
///
/// One is enough for all layers of a model; clones share the tables. Of positions beyond `max_positions`, as a text has that goes on
/// in a [sliding cache](super::KvCache::sliding), the tables are computed when they are reached.
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
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RotaryEmbedding {
    frequencies: Arc<[f64]>,
    /// Of the first positions.
    first: Tables,
    /// Of some further ones, those reached last.
    beyond: Arc<RwLock<Option<Tables>>>,
    pairs: RotaryPairs,
}

/// Cosines and sines of the angles of some positions, both (positions, D/2).
#[derive(Clone, Debug)]
struct Tables {
    start: usize,
    cos: Tensor,
    sin: Tensor,
}

impl Tables {
    fn new(frequencies: &[f64], start: usize, len: usize, dtype: DType, device: &Device) -> Result<Self> {
        let (cos, sin) = ops::tables_of_frequencies(OP, frequencies, start, len, (dtype, device))?;
        Ok(Self { start, cos, sin })
    }

    fn len(&self) -> usize {
        self.cos.dims()[0]
    }

    /// Those of `t` positions from `offset` on, if all are here.
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
        let &RotaryEmbeddingConfig { head_dim, max_positions, theta, pairs } = config;
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            bail!("{OP}: expected an even head_dim above 0, got {head_dim}");
        }
        let frequencies = ops::rotary_frequencies(OP, theta, head_dim)?;
        Self::from_frequencies(&frequencies, max_positions, pairs, dtype, device)
    }

    /// From the D/2 angles, in radians, by which the pairs of channels turn from one position to the next: for the models
    /// that stretch some of them to longer texts (`rope_scaling` in Hugging Face's files). With fewer angles the channels
    /// from twice their number on stay as they are (`partial_rotary_factor`).
    ///
    /// # Errors
    /// If there is no angle, one is not finite, or memory cannot hold the tables.
    pub fn from_frequencies(
        frequencies: &[f64],
        max_positions: usize,
        pairs: RotaryPairs,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        if frequencies.is_empty() || frequencies.iter().any(|frequency| !frequency.is_finite()) {
            bail!("{OP}: expected at least one frequency, and finite ones, got {frequencies:?}");
        }
        let first = Tables::new(frequencies, 0, max_positions, dtype, device)?;
        Ok(Self { frequencies: frequencies.into(), first, beyond: Arc::default(), pairs })
    }

    /// Positions whose angles are at hand from the beginning.
    pub fn max_positions(&self) -> usize {
        self.first.len()
    }

    /// Channels of a head that turn.
    pub fn turned_channels(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Queries or keys (B, T, H, D) at the positions `offset..offset + T`, turned.
    ///
    /// # Errors
    /// If the tables are not of the tensor's width, dtype or device, or memory cannot hold those of the positions.
    pub fn forward(&self, xs: &Tensor, offset: usize) -> Result<Tensor> {
        let (_, t, _, d) = xs.dims4()?;
        let turned = self.turned_channels();
        if turned > d {
            bail!("{OP}: expected heads of at least {turned} channels, got {d}");
        }
        let (cos, sin) = self.tables(offset, t)?; // (T, D/2)
        if turned == d {
            return ops::rotary(xs, &cos, &sin, self.pairs);
        }
        let first = ops::rotary(&xs.narrow(3, 0, turned)?, &cos, &sin, self.pairs)?;
        Tensor::cat(&[first, xs.narrow(3, turned, d - turned)?], 3)
    }

    /// Cosines and sines of `t` positions from `offset` on.
    fn tables(&self, offset: usize, t: usize) -> Result<(Tensor, Tensor)> {
        const MOST: usize = u32::MAX as usize;
        /// Positions whose angles are computed at once.
        const BLOCK: usize = 64;
        if offset.checked_add(t).is_none_or(|end| end > MOST) {
            bail!("{OP}: expected positions below {MOST}, got {t} from {offset} on");
        }
        if let Some(tables) = self.first.narrow(offset, t) {
            return tables;
        }
        // Whoever has been stopped while writing has left all or nothing.
        let known = self.beyond.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        if let Some(tables) = known.and_then(|tables| tables.narrow(offset, t)) {
            return tables;
        }
        let (dtype, device) = (self.first.cos.dtype(), self.first.cos.device());
        let tables = Tables::new(&self.frequencies, offset, t.max(BLOCK), dtype, device)?;
        *self.beyond.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(tables.clone());
        let all = (tables.cos.narrow(0, 0, t)?, tables.sin.narrow(0, 0, t)?);
        Ok(all)
    }
}
