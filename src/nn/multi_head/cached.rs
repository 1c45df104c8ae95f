//! Self-attention over a text that is read piece by piece.

use candle_core::{Result, Tensor, bail};

use super::MultiHeadAttention;
use super::forward::{Positions, check};
use crate::nn::KvCache;
use crate::nn::kv_cache::Placement;
use crate::ops::{self, AttentionOptions, Band, KeyPadding, Mask};

impl MultiHeadAttention {
    /// Self-attention of the next positions of a text, (B, T, C) or (T, C), to themselves and to all earlier ones,
    /// whose keys and values the cache holds; those of the new positions are added to it.
    ///
    /// The text may come one position or many at a time: the output is that of `forward` on the whole text; with a
    /// [sliding](KvCache::sliding) cache, that with [`Mask::window`]. The first positions of a
    /// [`Band::Prefix`] must come in one piece.
    ///
    /// This is for inference: the output carries no graph, so no gradient flows back from it. The cache holds keys and values
    /// of the weights as they were: [`reset`](KvCache::reset) it after a training step.
    ///
    /// # Errors
    /// - Those of [`forward_with`](Self::forward_with), and if the cache has no room or serves another layer.
    /// - If the mask lets the positions of a piece see later ones: a full band for more than one position, unless
    ///   [`Mask::allowed`] or [`Mask::bias`] is there to say what they see.
    /// - If the mask has query positions, which the cache knows, or a prefix continues in another piece.
    /// - If the cache slides, and the band is neither causal nor a window, or the mask has tensors over all keys.
    ///
    /// The cache then continues as if the call had not been made. A sliding one may have forgotten positions that the
    /// next would not have seen, so that [`KvCache::truncate`] goes back less far.
    pub fn forward_cached(&self, xs: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        self.forward_cached_with(xs, &self.options.mask, cache)
    }

    /// As [`forward_cached`](Self::forward_cached), with another mask: of the T new positions, which are the last, over
    /// all S.
    ///
    /// [`Mask::key_padding`] says which of the T positions of each sequence are real, as lengths. The cache then holds the
    /// real ones alone, and each sequence gives what it gives by itself, wherever the padding was and however the texts
    /// are cut into pieces; outputs at the other positions are of no meaning. So prompts of different lengths are read
    /// side by side, and continued one position at a time:
    ///
    /// ```
    /// use candle_attention::nn::{KvCache, Parameters, causal_self_attention};
    /// use candle_attention::ops::{KeyPadding, Mask};
    /// use candle_core::{DType, Device, Tensor};
    ///
    /// let vb = Parameters::new(42).var_builder(DType::F32, &Device::Cpu);
    /// let layer = causal_self_attention(8, 2, vb)?;
    /// let layer = layer.multi_head();
    /// // Two prompts, of 5 and of 3 positions, padded on the right to 5.
    /// let prompts = Tensor::rand(-1f32, 1., (2, 5, 8), &Device::Cpu)?;
    /// let mask = Mask { key_padding: Some(KeyPadding::Right(vec![5, 3])), ..Mask::causal() };
    /// let mut cache = KvCache::new(64);
    /// layer.forward_cached_with(&prompts, &mask, &mut cache)?;
    /// let next = Tensor::rand(-1f32, 1., (2, 1, 8), &Device::Cpu)?;
    /// let ys = layer.forward_cached(&next, &mut cache)?; // (2, 1, C)
    /// assert_eq!(cache.lengths(), [6, 4]);
    ///
    /// // The second as if alone.
    /// let mut alone = KvCache::new(64);
    /// layer.forward_cached(&prompts.narrow(0, 1, 1)?.narrow(1, 0, 3)?, &mut alone)?;
    /// let expected = layer.forward_cached(&next.narrow(0, 1, 1)?, &mut alone)?;
    /// let difference = (ys.narrow(0, 1, 1)? - expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
    /// assert!(difference < 1e-6);
    ///
    /// // Beam search: three beams, two from the first sequence and one from the second.
    /// cache.reorder(&[0, 0, 1])?;
    /// assert_eq!(cache.lengths(), [6, 6, 4]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of `forward_cached` and, with padding, of [`KvCache::append_padded`].
    pub fn forward_cached_with(&self, xs: &Tensor, mask: &Mask, cache: &mut KvCache) -> Result<Tensor> {
        check("an input", xs, &self.q_proj)?;
        if xs.rank() == 2 {
            return self.forward_cached_with(&xs.unsqueeze(0)?, mask, cache)?.squeeze(0);
        }
        let (b, t, _) = xs.dims3()?;
        cache.check_layer(&self.identity)?;
        let placement = cache.place(b, t, mask.key_padding.as_ref())?;
        let mask = mask_for(cache, mask, t, placement.as_ref())?;
        let before = cache.next_position();
        let positions = match &placement {
            None => Positions::From(before),
            Some(placement) => Positions::Each(placement.positions(t)),
        };
        let q = self.project_queries(xs, &positions)?; // (B, T, H, D)
        let (k, v) = self.project_keys_values(xs, &positions)?;
        let (k, v) = cache.append_at(&k.detach(), &v.detach(), placement.as_ref())?; // (B, S, G, D), (B, S, G, E)
        // Without a graph, a single query takes a kernel of its own.
        let sinks = self.options.sinks.as_ref().map(Tensor::detach);
        let options = AttentionOptions { mask, sinks, ..self.options.clone() };
        match ops::attention(&q.detach(), &k, &v, &options).and_then(|ys| self.merge_heads(ys)) {
            Ok(ys) => {
                cache.set_layer(&self.identity);
                Ok(ys.detach())
            }
            Err(error) => {
                cache.take_back(before, placement.as_ref());
                Err(error)
            }
        }
    }
}

/// The mask for a call with this cache.
pub(super) fn mask_for(cache: &KvCache, mask: &Mask, t: usize, placement: Option<&Placement>) -> Result<Mask> {
    let before = placement.map_or_else(|| vec![cache.next_position()], Placement::lengths_before);
    if mask.query_positions.is_some() {
        bail!("multi-head-attention: expected no query positions with a cache, which knows them, got some");
    }
    let band = match (cache.window(), mask.band) {
        (None, Band::Full) if t > 1 && mask.allowed.is_none() && mask.bias.is_none() => bail!(
            "multi-head-attention: expected a mask that shows no later positions with a cache, got a full band for {t} \
             positions: use a causal band, a window, or a prefix"
        ),
        // Of a shorter piece, positions would have seen less than the prefix.
        (None, Band::Prefix(len)) if before.iter().any(|before| (1..len).contains(before)) => bail!(
            "multi-head-attention: expected a prefix of {len} positions in one piece, got the next after {before:?}"
        ),
        (None, band) => band,
        (Some(window), Band::Causal) => Band::Window(window),
        (Some(window), Band::Window(len)) => Band::Window(window.min(len)),
        (Some(_), band) => bail!(
            "multi-head-attention: expected a causal mask or a window with a sliding cache, got the band {band:?}"
        ),
    };
    if cache.window().is_some() && (mask.documents.is_some() || mask.allowed.is_some() || mask.bias.is_some()) {
        bail!("multi-head-attention: expected a mask of a band alone with a sliding cache, got tensors over all keys");
    }
    Ok(Mask {
        band,
        key_padding: placement.map(|placement| KeyPadding::Right(placement.lengths_after())),
        query_positions: placement.map(Placement::first_positions),
        ..mask.clone()
    })
}
