//! All heads of all sequences: how they are divided among threads, and where their rows are.
//!
//! The unit of work is a key-value head of a sequence, with the query heads that share it: its gradients have a single
//! owner, so sums do not depend on the number of threads.

use std::ops::Range;

use super::super::structure::Structure;
use super::backward::{Backward, Saved};
use super::bias::{BiasRows, BiasShape, List};
use super::forward::Forward;
use super::pack::{RowLayout, Rows, SharedBuffer};
use super::softmax::{RowStats, Scoring};
use super::tile::{DenseHead, HeadMask};
use super::{Dims, decode};
use crate::cpu::parallel::{for_each_chunk_with, for_each_with, map};
use crate::cpu::random::DropoutFactors;
use crate::cpu::simd::exp;

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
    fn heads(self, g: usize) -> Range<usize> {
        let per_group = self.h / self.g;
        g * per_group..(g + 1) * per_group
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
    let mut out = vec![0.0; b * dims.t * h * sizes.out_width(heads)];
    let mut stats = vec![RowStats::default(); b * h * dims.t];
    let shared = SharedBuffer::new(&mut out);
    for_each_chunk_with(
        &mut stats,
        h / g * dims.t,
        || Forward::new(dims),
        |work, unit, stats| {
            let (b_i, g_i) = (unit / g, unit % g);
            work.load(k.rows(b_i, g_i), v.rows(b_i, g_i));
            for (h_i, stats) in sizes.heads(g_i).zip(stats.chunks_exact_mut(dims.t)) {
                // SAFETY: each head of each sequence is part of one unit, and of `layout` no two heads share a row.
                let out = unsafe { shared.rows(layout, b_i, h_i) };
                let (scoring, mask) = (heads.scoring(b_i, h_i), heads.mask(b_i, h_i));
                work.head(out, stats, q.rows(b_i, h_i), scoring, mask, heads.with_lse);
            }
        },
    );
    (out, stats)
}

/// What forward gave, and the gradient of it; both of one layout.
#[derive(Clone, Copy)]
pub(in super::super) struct Results<'a> {
    pub(in super::super) out: &'a [f32],
    pub(in super::super) dout: &'a [f32],
    pub(in super::super) layout: RowLayout,
    pub(in super::super) stats: &'a [RowStats],
}

impl<'a> Results<'a> {
    fn head(self, b: usize, h: usize, heads: &Heads, t: usize) -> Saved<'a> {
        let Self { out, dout, layout, stats } = self;
        let stats = &stats[(b * heads.num_heads + h) * t..][..t];
        Saved { out: layout.rows(out, b, h), dout: layout.rows(dout, b, h), stats, with_lse: heads.with_lse }
    }
}

/// A buffer for gradients, as its number among those of a call, and where the rows lie in it.
#[derive(Clone, Copy)]
pub(in super::super) struct Place(pub(in super::super) usize, pub(in super::super) RowLayout);

/// The gradients of queries, keys and values are written to `buffers`, at their `places`; that of a bias of shape `bias`
/// is returned.
pub(in super::super) fn backward(
    [q, k, v]: [View; 3],
    results: Results,
    heads: &Heads,
    (buffers, places): (&mut [Vec<f32>], [Place; 3]),
    bias: Option<BiasShape>,
    sizes: Sizes,
) -> Option<Vec<f32>> {
    let Sizes { b, g, dims, .. } = sizes;
    let buffers: Vec<SharedBuffer> = buffers.iter_mut().map(|buffer| SharedBuffer::new(buffer)).collect();
    let [dq, dk, dv] = places;
    let unit = |work: &mut Backward, [b_i, g_i]: [usize; 2], dbias: Option<(&SharedBuffer, BiasShape)>| {
        // SAFETY: each head of each sequence is part of one unit, and the places of queries, keys and values, and of
        // their heads, do not overlap.
        let rows = |Place(buffer, layout): Place, head: usize| unsafe { buffers[buffer].rows(layout, b_i, head) };
        work.load(k.rows(b_i, g_i), v.rows(b_i, g_i));
        for h_i in sizes.heads(g_i) {
            // SAFETY: units that share a bias are in one list, or add to different copies.
            let dbias = dbias.map(|(buffer, shape)| unsafe { BiasRows::new(buffer, shape, b_i, h_i) });
            let saved = results.head(b_i, h_i, heads, dims.t);
            let (scoring, mask) = (heads.scoring(b_i, h_i), heads.mask(b_i, h_i));
            work.head((rows(dq, h_i), q.rows(b_i, h_i)), saved, scoring, mask, dbias);
        }
        work.store_dk(rows(dk, g_i));
        work.store_dv(rows(dv, g_i));
    };
    let Some(shape) = bias else {
        for_each_with(b * g, || Backward::new(dims), |work, i| unit(work, [i / g, i % g], None));
        return None;
    };
    let (lists, copies) = shape.lists(sizes);
    let mut copies = vec![vec![0.0; shape.elements()]; copies];
    let shared: Vec<SharedBuffer> = copies.iter_mut().map(|copy| SharedBuffer::new(copy)).collect();
    for_each_with(
        lists.len(),
        || Backward::new(dims),
        |work, i| {
            let List { copy, units } = &lists[i];
            units.iter().for_each(|at| unit(work, *at, Some((&shared[*copy], shape))));
        },
    );
    Some(shape.sum(copies))
}

/// The gradient of each head's sink: minus the sum over queries of the sink's weight times the mean that the gradient of
/// the softmax subtracts.
pub(in super::super) fn sink_gradient(results: Results, heads: &Heads, sinks: &[f32], sizes: Sizes) -> Vec<f32> {
    let Dims { t, e, .. } = sizes.dims;
    map(sizes.h, |h| {
        let of_sequence = |b: usize| {
            let saved = results.head(b, h, heads, t);
            let of_query = |query: usize| {
                let RowStats { max, inv_sum } = saved.stats[query];
                f64::from(exp(sinks[h] - max) * inv_sum * saved.mean(query, e))
            };
            (0..t).map(of_query).sum::<f64>()
        };
        -(0..sizes.b).map(of_sequence).sum::<f64>() as f32
    })
}
