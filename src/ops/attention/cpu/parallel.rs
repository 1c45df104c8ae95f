//! All heads of all sequences: how they are divided among threads, and where their rows are.
//!
//! The unit of work is a key-value head of a sequence, with the query heads that share it, or some of its queries. How
//! many there are depends on the sizes alone, and in backward the gradients of keys and values are added over the units of
//! a head in order: so sums do not depend on the number of threads.

use std::ops::Range;

use super::super::structure::Structure;
use super::forward::{Forward, ForwardHead};
use super::pack::{RowLayout, Rows, SharedBuffer};
use super::softmax::{RowStats, Scoring};
use super::tile::{DenseHead, HeadMask};
use super::{Dims, TILE, decode};
use crate::cpu::parallel::for_each_with;
use crate::cpu::random::DropoutFactors;
use crate::cpu::simd::dispatch_vectors;

/// Units of a forward pass: enough for many threads.
const FORWARD_UNITS: usize = 64;

/// Tiles of queries in such a unit, at most.
const FORWARD_TILES: usize = 8;

/// The sizes of a call: sequences, query heads, key-value heads, and those of a head.
#[derive(Clone, Copy)]
pub(in super::super) struct Sizes {
    pub(in super::super) b: usize,
    pub(in super::super) h: usize,
    pub(in super::super) g: usize,
    pub(in super::super) dims: Dims,
}

impl Sizes {
    /// The query heads that share key-value head `g`.
    pub(super) fn heads(self, g: usize) -> Range<usize> {
        let per_group = self.h / self.g;
        g * per_group..(g + 1) * per_group
    }

    /// A unit of work of several parts for each key-value head of each sequence: that head, and its queries. Later
    /// queries, of which most masks let each see more keys, come first.
    pub(super) fn unit(self, unit: usize, parts: usize) -> ([usize; 2], Range<usize>) {
        let (head, part) = (unit / parts, parts - 1 - unit % parts);
        let tiles = self.dims.t.div_ceil(TILE);
        let start = |part: usize| (part * tiles / parts * TILE).min(self.dims.t);
        ([head / self.g, head % self.g], start(part)..start(part + 1))
    }

    /// Channels of a row of the output.
    pub(super) fn out_width(self, heads: &Heads) -> usize {
        self.dims.e + usize::from(heads.with_lse)
    }
}

/// Queries, keys or values of all sequences and heads.
#[derive(Clone, Copy)]
pub(in super::super) struct View<'a> {
    pub(in super::super) data: &'a [f32],
    pub(in super::super) layout: RowLayout,
}

impl<'a> View<'a> {
    pub(super) fn rows(self, b: usize, h: usize) -> Rows<'a> {
        self.layout.rows(self.data, b, h)
    }
}

/// A tensor that was broadcast to (B, H, T, S), where it lies.
#[derive(Clone, Copy)]
pub(in super::super) struct Dense<'a, T> {
    pub(in super::super) data: &'a [T],
    pub(in super::super) strides: [usize; 4],
}

impl<'a, T> Dense<'a, T> {
    fn head(self, b: usize, h: usize) -> DenseHead<'a, T> {
        let [batch, head, query_stride, key_stride] = self.strides;
        DenseHead { data: &self.data[b * batch + h * head..], query_stride, key_stride }
    }
}

/// What the heads of all sequences compute.
pub(in super::super) struct Heads<'a> {
    pub(in super::super) num_heads: usize,
    pub(in super::super) scale: f32,
    pub(in super::super) softcap: Option<f32>,
    /// The logit of each head's sink.
    pub(in super::super) sinks: Option<&'a [f32]>,
    /// The factors, and the index of the first sequence.
    pub(in super::super) dropout: Option<(&'a DropoutFactors, u64)>,
    pub(in super::super) structure: &'a Structure,
    pub(in super::super) allowed: Option<Dense<'a, u8>>,
    pub(in super::super) bias: Option<Dense<'a, f32>>,
    /// The slope of each head's linear bias.
    pub(in super::super) alibi: Option<&'a [f32]>,
    /// Whether the output has the log-sum-exp in a further channel.
    pub(in super::super) with_lse: bool,
    /// Whether there will be no backward pass.
    pub(in super::super) is_forward_only: bool,
}

impl Heads<'_> {
    pub(super) fn mask(&self, b: usize, h: usize) -> HeadMask<'_> {
        HeadMask {
            band: self.structure.band,
            sequence: self.structure.sequence(b),
            allowed: self.allowed.map(|allowed| allowed.head(b, h)),
            bias: self.bias.map(|bias| bias.head(b, h)),
            slope: self.alibi.map(|slopes| slopes[h]),
        }
    }

    pub(super) fn scoring(&self, b: usize, h: usize) -> Scoring<'_> {
        let stream =
            |first: u64| first.wrapping_add(b as u64).wrapping_mul(self.num_heads as u64).wrapping_add(h as u64);
        Scoring {
            scale: self.scale,
            softcap: self.softcap,
            sink: self.sinks.map(|sinks| sinks[h]),
            dropout: self.dropout.map(|(factors, first)| (factors, stream(first))),
        }
    }
}

/// The output, with rows where `layout` says, and what backward needs: (B, H, T).
pub(in super::super) fn forward(
    [q, k, v]: [View; 3],
    heads: &Heads,
    layout: RowLayout,
    sizes: Sizes,
) -> (Vec<f32>, Vec<RowStats>) {
    let Sizes { b, h, g, dims } = sizes;
    if dims.t == 1 && heads.is_forward_only {
        // With one position, heads lie next to one another in either order.
        return (decode::forward([q, k, v], heads, sizes), Vec::new());
    }
    let len = b * dims.t * h * sizes.out_width(heads);
    let mut out = Vec::with_capacity(len);
    let mut stats = vec![RowStats::default(); b * h * dims.t];
    let of_out = SharedBuffer::new(&mut out.spare_capacity_mut()[..len]);
    let of_stats = SharedBuffer::new(&mut stats);
    let stats_layout = RowLayout { offset: 0, batch_stride: h * dims.t, position_stride: 1, head_stride: dims.t };
    let parts = FORWARD_UNITS.div_ceil(b * g).clamp(dims.t.div_ceil(TILE * FORWARD_TILES), dims.t.div_ceil(TILE));
    for_each_with(
        b * g * parts,
        || Forward::new(dims),
        |work, unit| {
            let ([b_i, g_i], queries) = sizes.unit(unit, parts);
            work.turn_to([b_i, g_i]);
            for h_i in sizes.heads(g_i) {
                // SAFETY: each query of each head of each sequence is part of one unit, and of either layout no two
                // heads share a row.
                let (out, stats) = unsafe { (of_out.rows(layout, b_i, h_i), of_stats.rows(stats_layout, b_i, h_i)) };
                dispatch_vectors(ForwardHead {
                    work,
                    out,
                    stats,
                    queries: queries.clone(),
                    q: q.rows(b_i, h_i),
                    kv: [k.rows(b_i, g_i), v.rows(b_i, g_i)],
                    scoring: heads.scoring(b_i, h_i),
                    mask: heads.mask(b_i, h_i),
                    with_lse: heads.with_lse,
                });
            }
        },
    );
    // SAFETY: the units have written all rows of all heads, which are as many elements, and no two share one.
    unsafe { out.set_len(len) };
    (out, stats)
}
