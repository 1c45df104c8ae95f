//! One query of each sequence, on slices: a step of decoding.

use candle_core::Result;

use super::AttentionOptions;
use super::cpu::{Dims, RowLayout, Sizes, View, one_query as kernel};
use super::op::Attention;

/// The positions of all sequences, whose first elements are `stride` apart: each (positions, heads, channels).
#[derive(Clone, Copy)]
pub(crate) struct Sequences<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
}

impl<'a> Sequences<'a> {
    fn view(self, heads: usize, channels: usize) -> View<'a> {
        let contiguous = RowLayout::contiguous(1, heads, channels);
        View { data: self.data, layout: RowLayout { batch_stride: self.stride, ..contiguous } }
    }
}

/// [`attention`](super::attention()) of one query of each sequence and head, without a graph: `out` is (B, H, E), and
/// the sizes are B, H, G, S, D and E.
pub(crate) fn one_query(
    out: &mut [f32],
    [q, k, v]: [Sequences; 3],
    [b, h, g, s, d, e]: [usize; 6],
    options: &AttentionOptions,
) -> Result<()> {
    let sizes = Sizes { b, h, g, dims: Dims { t: 1, s, d, e } };
    let views = [q.view(h, d), k.view(g, d), v.view(g, e)];
    out.fill(0.0);
    Attention::new(options, sizes, &[], false)?.with_heads(|heads| kernel(out, views, heads, sizes))
}
