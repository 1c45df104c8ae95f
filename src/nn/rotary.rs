//! Rotary position embedding as a layer without weights.

use std::sync::{Arc, RwLock};

use candle_core::{DType, Device, Result, Tensor, bail};

use super::RotaryScaling;
use crate::ops::{self, RotaryPairs};

/// The name of the layer in errors.
const OP: &str = "rotary-embedding";

/// Sizes and options of a [`RotaryEmbedding`].
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryEmbeddingConfig {
    /// Channels of a head (D).
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
}

impl RotaryEmbeddingConfig {
    /// Pairs of channel `i` and `i + D/2` and a base of 10 000, as in Hugging Face's llama.
    pub fn new(head_dim: usize, max_positions: usize) -> Self {
        Self { head_dim, max_positions, theta: 10_000.0, pairs: RotaryPairs::Halves, scaling: RotaryScaling::None }
    }
}

/// [`ops::rotary`] with its tables of cosines and sines. They are computed once, in `f64`, from positions and
/// frequencies, and are not part of the weights, so no file has to have them.
///
/// One is enough for all layers of a model: clones share the tables. For positions beyond `max_positions`, as in a
/// [sliding cache](super::KvCache::sliding), tables are computed when needed.
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
    /// The factor on cosines and sines.
    factor: f64,
    /// For the first positions.
    first: Tables,
    /// For the further positions used last.
    beyond: Arc<RwLock<Option<Tables>>>,
    pairs: RotaryPairs,
}

/// Cosines and sines for a range of positions, each (positions, D/2).
#[derive(Clone, Debug)]
struct Tables {
    start: usize,
    cos: Tensor,
    sin: Tensor,
}

impl Tables {
    fn new(
        (frequencies, factor): (&[f64], f64),
        start: usize,
        len: usize,
        (dtype, device): (DType, &Device),
    ) -> Result<Self> {
        let (cos, sin) = ops::tables_of_frequencies(OP, frequencies, start, len, (dtype, device))?;
        let (cos, sin) = if factor == 1.0 { (cos, sin) } else { ((cos * factor)?, (sin * factor)?) };
        Ok(Self { start, cos, sin })
    }

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
        let &RotaryEmbeddingConfig { head_dim, max_positions, theta, pairs, scaling } = config;
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            bail!("{OP}: expected an even head_dim above 0, got {head_dim}");
        }
        let mut frequencies = ops::rotary_frequencies(OP, theta, head_dim)?;
        scaling.scale(&mut frequencies, theta)?;
        Self::with_factor((&frequencies, scaling.attention_factor()), max_positions, pairs, (dtype, device))
    }

    /// From the D/2 angles, in radians, by which the pairs of channels turn from one position to the next: for models
    /// that scale them otherwise than [`RotaryScaling`]. With n < D/2 angles, only the first 2n channels are rotated
    /// (`partial_rotary_factor` in Hugging Face's files).
    ///
    /// # Errors
    /// If there are no angles, one is not finite, or memory cannot hold the tables.
    pub fn from_frequencies(
        frequencies: &[f64],
        max_positions: usize,
        pairs: RotaryPairs,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        Self::with_factor((frequencies, 1.0), max_positions, pairs, (dtype, device))
    }

    fn with_factor(
        (frequencies, factor): (&[f64], f64),
        max_positions: usize,
        pairs: RotaryPairs,
        kind: (DType, &Device),
    ) -> Result<Self> {
        if frequencies.is_empty() || frequencies.iter().any(|frequency| !frequency.is_finite()) {
            bail!("{OP}: expected one or more finite frequencies, got {frequencies:?}");
        }
        let first = Tables::new((frequencies, factor), 0, max_positions, kind)?;
        Ok(Self { frequencies: frequencies.into(), factor, first, beyond: Arc::default(), pairs })
    }

    /// Positions whose angles are computed in advance.
    pub fn max_positions(&self) -> usize {
        self.first.len()
    }

    /// Channels of a head that are rotated.
    pub fn turned_channels(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Rotates queries or keys (B, T, H, D) at the positions `offset..offset + T`.
    ///
    /// # Errors
    /// If width, dtype or device of the tensor do not match the tables, or memory cannot hold tables for these
    /// positions.
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
        const MAX: usize = u32::MAX as usize;
        /// Positions computed at once.
        const BLOCK: usize = 64;
        if offset.checked_add(t).is_none_or(|end| end > MAX) {
            bail!("{OP}: expected positions below {MAX}, got {t} from {offset} on");
        }
        if let Some(tables) = self.first.narrow(offset, t) {
            return tables;
        }
        // A writer that panicked has written all or nothing.
        let known = self.beyond.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        if let Some(tables) = known.and_then(|tables| tables.narrow(offset, t)) {
            return tables;
        }
        let (dtype, device) = (self.first.cos.dtype(), self.first.cos.device());
        let tables = Tables::new((&self.frequencies, self.factor), offset, t.max(BLOCK), (dtype, device))?;
        *self.beyond.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(tables.clone());
        let all = (tables.cos.narrow(0, 0, t)?, tables.sin.narrow(0, 0, t)?);
        Ok(all)
    }
}
