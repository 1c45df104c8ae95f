//! Self-attention over a text that is read piece by piece.

use candle_core::{Result, Tensor, bail};

use super::{MultiHeadAttention, check};
use crate::nn::KvCache;
use crate::ops::{self, AttentionOptions, Band, Mask};

impl MultiHeadAttention {
    /// Self-attention of the next positions of a text, (B, T, C) or (T, C), to themselves and to all earlier ones,
    /// whose keys and values the cache holds; those of the new positions are added to it.
    ///
    /// The text may come one position or many at a time. If the mask lets no position see a later one, the output is
    /// that of `forward` on the whole text; with a [sliding](KvCache::sliding) cache, that with [`Mask::window`].
    ///
    /// This is for inference: the output carries no graph, so no gradient flows back from it.
    ///
    /// # Errors
    /// Those of [`forward_with`](Self::forward_with), and if the cache has no room, or slides while the mask is neither
    /// causal nor a window. The cache is then left as it was.
    pub fn forward_cached(&self, xs: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        self.forward_cached_with(xs, &self.options.mask, cache)
    }

    /// As [`forward_cached`](Self::forward_cached), with another mask: of the T new positions, which are the last, over
    /// all S.
    ///
    /// # Errors
    /// Those of [`forward_cached`](Self::forward_cached).
    pub fn forward_cached_with(&self, xs: &Tensor, mask: &Mask, cache: &mut KvCache) -> Result<Tensor> {
        check("an input", xs, &self.q_proj)?;
        if xs.rank() == 2 {
            return self.forward_cached_with(&xs.unsqueeze(0)?, mask, cache)?.squeeze(0);
        }
        let (before, mask) = (cache.next_position(), mask_for(cache, mask)?);
        let q = self.project_queries(xs, before)?; // (B, T, H, D)
        let (k, v) = self.project_keys_values(xs, before)?;
        let (k, v) = cache.append(&k.detach(), &v.detach())?; // (B, S, G, D), (B, S, G, E)
        let options = AttentionOptions { mask, ..self.options.clone() };
        let ys = ops::attention(&q.detach(), &k, &v, &options).and_then(|ys| self.merge_heads(ys));
        if ys.is_err() {
            cache.truncate(before);
        }
        Ok(ys?.detach())
    }
}

/// The mask for a call with this cache.
fn mask_for(cache: &KvCache, mask: &Mask) -> Result<Mask> {
    let with_band = |band| Ok(Mask { band, ..mask.clone() });
    match (cache.window(), mask.band) {
        (None, band) => with_band(band),
        (Some(window), Band::Causal) => with_band(Band::Window(window)),
        (Some(window), Band::Window(len)) => with_band(Band::Window(window.min(len))),
        (Some(_), _) => {
            bail!("multi-head-attention: expected a causal mask or a window with a sliding cache, got another")
        }
    }
}
