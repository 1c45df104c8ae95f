//! All heads of all sequences: how they are divided among threads, and where their rows are.
//!
//! The unit of work is a key-value head of a sequence, with the query heads that share it, or some of its queries. How
//! many there are depends on the sizes alone, and in backward the gradients of keys and values are added over the units of
//! a head in order: so sums do not depend on the number of threads.

use std::ops::Range;

use super::super::structure::Structure;
use super::backward::{Backward, BackwardHead, Saved};
use super::bias::{BiasRows, BiasShape, List};
use super::forward::{Forward, ForwardHead};
use super::pack::{RowLayout, Rows, SharedBuffer};
use super::softmax::{RowStats, Scoring};
use super::tile::{DenseHead, HeadMask};
use super::{Dims, TILE, decode};
use crate::cpu::parallel::{for_each_chunk, for_each_with, map};
use crate::cpu::random::DropoutFactors;
use crate::cpu::simd::{dispatch_vectors, exp};

/// Units of a forward pass: enough for many threads.
const FORWARD_UNITS: usize = 64;

/// Tiles of queries in such a unit, at most.
const FORWARD_TILES: usize = 8;

/// Units of a backward pass, if the heads alone are fewer.
const BACKWARD_UNITS: usize = 8;

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

    /// A unit of work of several parts for each key-value head of each sequence: that head, and its queries. Later
    /// queries, of which most masks let each see more keys, come first.
    fn unit(self, unit: usize, parts: usize) -> ([usize; 2], Range<usize>) {
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

/// The gradients of queries, keys and values, in buffers of these lengths, at their places; and that of a bias of shape
/// `bias`.
pub(in super::super) fn backward(
    [q, k, v]: [View; 3],
    results: Results,
    heads: &Heads,
    (lens, [dq, dk, dv]): (&[usize], [Place; 3]),
    bias: Option<BiasShape>,
    sizes: Sizes,
) -> (Vec<Vec<f32>>, Option<Vec<f32>>) {
    let Sizes { b, h, g, dims } = sizes;
    let elements = b * (h * dims.t * dims.d + g * dims.s * (dims.d + dims.e));
    assert_eq!(lens.iter().sum::<usize>(), elements, "the places of the gradients make up their buffers");
    let mut buffers: Vec<Vec<f32>> = lens.iter().map(|len| Vec::with_capacity(*len)).collect();
    let spare = buffers.iter_mut().zip(lens).map(|(buffer, len)| &mut buffer.spare_capacity_mut()[..*len]);
    let shared: Vec<SharedBuffer<_>> = spare.map(SharedBuffer::new).collect();
    // SAFETY: the places of queries, keys and values, and of their heads, do not overlap, and each query and each key of
    // each head of each sequence is part of one unit.
    let rows = |Place(buffer, layout): Place, b: usize, head: usize| unsafe { shared[buffer].rows(layout, b, head) };
    let part = |work: &mut Backward,
                [b_i, g_i]: [usize; 2],
                queries: Range<usize>,
                dbias: Option<(&SharedBuffer<f32>, BiasShape)>| {
        work.turn_to([b_i, g_i]);
        for h_i in sizes.heads(g_i) {
            dispatch_vectors(BackwardHead {
                work,
                dq: rows(dq, b_i, h_i),
                saved: results.head(b_i, h_i, heads, dims.t),
                queries: queries.clone(),
                q: q.rows(b_i, h_i),
                kv: [k.rows(b_i, g_i), v.rows(b_i, g_i)],
                scoring: heads.scoring(b_i, h_i),
                mask: heads.mask(b_i, h_i),
                // SAFETY: units that share a bias are in one list, or add to different copies.
                dbias: dbias.map(|(buffer, shape)| unsafe { BiasRows::new(buffer, shape, b_i, h_i) }),
            });
        }
    };
    let whole = |work: &mut Backward, [b_i, g_i]: [usize; 2], dbias: Option<(&SharedBuffer<f32>, BiasShape)>| {
        part(work, [b_i, g_i], 0..dims.t, dbias);
        work.gradients.store(dims, rows(dk, b_i, g_i), rows(dv, b_i, g_i));
    };
    // Parts of at least two tiles, where there are few heads: each has gradients of its own for all keys.
    let parts = BACKWARD_UNITS.div_ceil(b * g).clamp(1, (dims.t / TILE / 2).max(1));
    let dbias = match bias {
        Some(shape) => {
            let (lists, copies) = shape.lists(sizes);
            let mut copies = vec![vec![0.0; shape.elements()]; copies];
            let shared: Vec<SharedBuffer<f32>> = copies.iter_mut().map(|copy| SharedBuffer::new(copy)).collect();
            let list = |work: &mut Backward, i: usize| {
                let List { copy, units } = &lists[i];
                units.iter().for_each(|at| whole(work, *at, Some((&shared[*copy], shape))));
            };
            for_each_with(lists.len(), || Backward::new(dims), list);
            Some(shape.sum(copies))
        }
        None if parts == 1 => {
            for_each_with(b * g, || Backward::new(dims), |work, i| whole(work, [i / g, i % g], None));
            None
        }
        None => {
            let mut sums = map(b * g * parts, |unit| {
                let (mut work, (head, queries)) = (Backward::new(dims), sizes.unit(unit, parts));
                part(&mut work, head, queries, None);
                work.gradients
            });
            for_each_chunk(&mut sums, parts, |head, sums| {
                let [sum, others @ ..] = sums else { return };
                others.iter().for_each(|other| sum.add(other));
                sum.store(dims, rows(dk, head / g, head % g), rows(dv, head / g, head % g));
            });
            None
        }
    };
    for (buffer, len) in buffers.iter_mut().zip(lens) {
        // SAFETY: all rows at all places have been written, which are as many elements as the buffers have, and no two
        // share one.
        unsafe { buffer.set_len(*len) };
    }
    (buffers, dbias)
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
