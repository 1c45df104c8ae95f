//! Which keys a query may see.

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
    /// The mask as a term to add to the scores: a (T, S) tensor of 0 where allowed and minus infinity
    /// elsewhere, or `None` where everything is allowed.
    pub(super) fn additive(&self, t: usize, s: usize, dtype: DType, device: &Device) -> Result<Option<Tensor>> {
        let allowed: Vec<u8> = match self {
            Mask::Full => return Ok(None),
            Mask::Causal if t > s => {
                bail!("attention: a causal mask expects at least as many keys as queries, got {s} keys for {t} queries")
            }
            Mask::Causal => (0..t).flat_map(|i| (0..s).map(move |j| u8::from(j <= i + s - t))).collect(),
            Mask::Allowed(allowed) => {
                if allowed.dims() != [t, s] || allowed.dtype() != DType::U8 {
                    bail!(
                        "attention: expected a mask of shape {:?} and dtype U8, got {:?} and {:?}",
                        [t, s],
                        allowed.dims(),
                        allowed.dtype()
                    );
                }
                allowed.flatten_all()?.to_vec1()?
            }
        };
        let terms: Vec<f32> = allowed.iter().map(|&a| if a == 0 { f32::NEG_INFINITY } else { 0.0 }).collect();
        Ok(Some(Tensor::from_vec(terms, (t, s), device)?.to_dtype(dtype)?))
    }
}
