//! Self-attention of the next position of a text, on slices: what [`MultiHeadAttention::forward_cached`] gives, without
//! its tensors, which for a small model take longer than the arithmetic.

use candle_core::{Result, Tensor, bail};

use super::MultiHeadAttention;
use super::cached::mask_for;
use super::multi_head_config::Sizes;
use crate::cpu::storage::values;
use crate::nn::{KvCache, Projection, RmsNorm};
use crate::ops::AttentionOptions;
use crate::ops::attention::{Sequences, one_query};

/// Buffers for [`MultiHeadAttention::decode`], for layers of any sizes in turn.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Queries, keys and values of each sequence.
    qkv: Vec<f32>,
    heads: Vec<f32>,
}

impl MultiHeadAttention {
    /// Adds to `out` (B, C) the output for the next position of each sequence, `xs` (B, C), in `f32` on the CPU; the
    /// layer has an output projection, and rotates whole heads if any.
    ///
    /// # Errors
    /// Those of [`forward_cached`](Self::forward_cached). The cache is then of no more use.
    pub(crate) fn decode(
        &self,
        out: &mut [f32],
        xs: &[f32],
        cache: &mut KvCache,
        Scratch { qkv, heads }: &mut Scratch,
    ) -> Result<()> {
        let Sizes { c, h, g, d, e, .. } = self.sizes;
        let (b, width) = (xs.len() / c, (h + g) * d + g * e);
        cache.check_layer(&self.identity)?;
        let (mask, position) = (mask_for(cache, &self.options.mask, 1, None)?, cache.next_position());
        qkv.resize(b * width, 0.0);
        Projection::forward_rows(&[&self.q_proj, &self.k_proj, &self.v_proj], qkv, false, xs, b)?;
        heads.resize((b * h * e).max((h + g) * d), 0.0);
        for qkv in qkv.chunks_exact_mut(width) {
            let (q, k) = qkv[..(h + g) * d].split_at_mut(h * d);
            for (heads_of, norm) in [(q, &self.q_norm), (k, &self.k_norm)] {
                if let Some(norm) = norm {
                    in_place(heads_of, heads, |ys, xs| RmsNorm::forward_rows(norm, ys, xs))?;
                }
            }
            if let Some(rotary) = &self.rotary {
                in_place(&mut qkv[..(h + g) * d], heads, |ys, xs| rotary.forward_rows(ys, xs, position))?;
            }
        }
        let rows = Sequences { data: qkv, stride: width };
        cache.append_rows(rows, h * d, [b, g, d, e])?;
        cache.set_layer(&self.identity);
        let Some((buffers, held)) = cache.held() else { bail!("kv-cache: expected a position that was appended") };
        let sinks = self.options.sinks.as_ref().map(Tensor::detach);
        let options = AttentionOptions { mask, sinks, ..self.options.clone() };
        let (k, v) = (values(&buffers[0])?, values(&buffers[1])?);
        let of = |buffer: &'_ [f32], channels| (held.start * g * channels, buffer.len() / b);
        let ((k_first, k_stride), (v_first, v_stride)) = (of(&k, d), of(&v, e));
        let k = Sequences { data: &k[k_first..], stride: k_stride };
        let v = Sequences { data: &v[v_first..], stride: v_stride };
        let ys = &mut heads[..b * h * e];
        one_query(ys, [rows, k, v], [b, h, g, held.len(), d, e], &options)?;
        let Some(o_proj) = &self.o_proj else { bail!("multi-head-attention: expected an output projection") };
        Projection::forward_rows(&[o_proj], out, true, ys, b)
    }
}

/// Replaces `xs` by `f(xs)`.
fn in_place(xs: &mut [f32], scratch: &mut [f32], f: impl FnOnce(&mut [f32], &[f32]) -> Result<()>) -> Result<()> {
    let ys = &mut scratch[..xs.len()];
    f(ys, xs)?;
    xs.copy_from_slice(ys);
    Ok(())
}
