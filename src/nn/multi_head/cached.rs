//! Self-attention piece by piece.

use candle_core::{Result, Tensor, bail};

use super::{MultiHeadAttention, check};
use crate::nn::KvCache;
use crate::ops::{self, AttentionOptions, Mask};

impl MultiHeadAttention {
    /// Self-attention of the next positions of a text, (B, T, C) or (T, C), to themselves and all before them, whose keys
    /// and values the cache holds; it gets those of the new ones. One position or many at a time: with a mask by which no
    /// position sees a later one, the output is that of `forward` on the whole text; in a [sliding](KvCache::sliding) cache, with
    /// [`Mask::Window`].
    ///
    /// This is for evaluation: the output carries no graph, so no gradient comes back from it.
    ///
    /// # Errors
    /// Those of [`forward_with`](Self::forward_with), and if the cache has no room, or slides beside a mask that is neither causal
    /// nor a window. The cache is then as it was.
    pub fn forward_cached(&self, xs: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        self.forward_cached_with(xs, &self.options.mask, cache)
    }

    /// [`forward_cached`](Self::forward_cached) with another mask, of the T new positions (the last) and all S.
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
        let options = AttentionOptions { mask, ..self.options };
        let ys = ops::attention(&q, &k, &v, &options).and_then(|ys| self.merge_heads(ys));
        if ys.is_err() {
            cache.truncate(before);
        }
        Ok(ys?.detach())
    }
}

/// The mask by which a position sees what the cache holds for it.
fn mask_for(cache: &KvCache, mask: &Mask) -> Result<Mask> {
    match (cache.window(), mask) {
        (None, mask) => Ok(mask.clone()),
        (Some(window), Mask::Causal) => Ok(Mask::Window(window)),
        (Some(window), Mask::Window(len)) => Ok(Mask::Window(window.min(*len))),
        (Some(_), _) => {
            bail!("multi-head-attention: expected a causal mask or a window beside a sliding cache, got another")
        }
    }
}
