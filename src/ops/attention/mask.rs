//! Which keys a query may see.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, bail};

/// The set of allowed (query, key) positions.
#[derive(Clone, Debug, Default)]
pub enum Mask {
    /// Query `t` sees the keys `s <= t`. Where there are more keys (S) than queries (T), the queries are the
    /// last T positions: query `t` sees `s <= t + S - T`.
    #[default]
    Causal,
    /// Every query sees every key.
    Full,
    /// Query `t` sees key `s` where the (T, S) tensor of `u8` is not 0.
    Allowed(Tensor),
}

impl Mask {
    /// Refuses a mask that does not go with `t` queries and `s` keys.
    pub(super) fn check(&self, t: usize, s: usize) -> Result<()> {
        match self {
            Mask::Causal if t > s => {
                bail!("attention: a causal mask expects at least as many keys as queries, got {s} keys for {t} queries")
            }
            Mask::Allowed(allowed) if allowed.dims() != [t, s] || allowed.dtype() != DType::U8 => {
                bail!(
                    "attention: expected a mask of shape {:?} and dtype U8, got {:?} and {:?}",
                    [t, s],
                    allowed.dims(),
                    allowed.dtype()
                )
            }
            _ => Ok(()),
        }
    }

    /// The mask as a term to add to the scores: a (T, S) tensor of 0 where allowed and minus infinity
    /// elsewhere, or `None` where everything is allowed.
    pub(super) fn additive(&self, t: usize, s: usize, dtype: DType, device: &Device) -> Result<Option<Tensor>> {
        let allowed: Vec<u8> = match self {
            Mask::Full => return Ok(None),
            Mask::Causal => (0..t).flat_map(|i| (0..s).map(move |j| u8::from(j <= i + s - t))).collect(),
            Mask::Allowed(allowed) => allowed.flatten_all()?.to_vec1()?,
        };
        let terms: Vec<f32> = allowed.iter().map(|&a| if a == 0 { f32::NEG_INFINITY } else { 0.0 }).collect();
        Ok(Some(Tensor::from_vec(terms, (t, s), device)?.to_dtype(dtype)?))
    }
}

/// A mask as the kernel asks it.
pub(super) trait Visible: Sync {
    /// Whether a query sees a key.
    fn sees(&self, query: usize, key: usize) -> bool;

    /// A range, of all `s` keys, outside of which none of these queries sees anything.
    fn keys(&self, queries: &Range<usize>, s: usize) -> Range<usize>;

    /// Whether each of these queries sees each of these keys; to say no is always right.
    fn all(&self, queries: &Range<usize>, keys: &Range<usize>) -> bool;
}

/// [`Mask::Full`].
pub(super) struct Full;

impl Visible for Full {
    fn sees(&self, _query: usize, _key: usize) -> bool {
        true
    }

    fn keys(&self, _queries: &Range<usize>, s: usize) -> Range<usize> {
        0..s
    }

    fn all(&self, _queries: &Range<usize>, _keys: &Range<usize>) -> bool {
        true
    }
}

/// [`Mask::Causal`], with this many keys before the first query's own.
pub(super) struct Causal {
    pub(super) before: usize,
}

impl Visible for Causal {
    fn sees(&self, query: usize, key: usize) -> bool {
        key <= query + self.before
    }

    fn keys(&self, queries: &Range<usize>, s: usize) -> Range<usize> {
        0..s.min(queries.end + self.before)
    }

    fn all(&self, queries: &Range<usize>, keys: &Range<usize>) -> bool {
        keys.end <= queries.start + self.before + 1
    }
}

/// [`Mask::Allowed`], row by row.
pub(super) struct Table {
    pub(super) allowed: Vec<u8>,
    pub(super) s: usize,
}

impl Visible for Table {
    fn sees(&self, query: usize, key: usize) -> bool {
        self.allowed[query * self.s + key] != 0
    }

    fn keys(&self, queries: &Range<usize>, s: usize) -> Range<usize> {
        let is_seen = |key: &usize| queries.clone().any(|query| self.sees(query, *key));
        match ((0..s).find(is_seen), (0..s).rfind(is_seen)) {
            (Some(first), Some(last)) => first..last + 1,
            _ => 0..0,
        }
    }

    fn all(&self, _queries: &Range<usize>, _keys: &Range<usize>) -> bool {
        false
    }
}
