//! The gradients of all heads of all sequences.

use std::ops::Range;

use super::backward::{Backward, BackwardHead, Saved};
use super::bias::{BiasRows, BiasShape, List};
use super::pack::{RowLayout, RowsMut, SharedBuffer, Uninit};
use super::parallel::{Heads, Sizes, View};
use super::softmax::RowStats;
use super::{Dims, TILE};
use crate::cpu::parallel::{for_each_chunk, for_each_with, map};
use crate::cpu::simd::{dispatch_vectors, exp};

/// Units of work, if the heads alone are fewer.
const UNITS: usize = 8;

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
    views: [View; 3],
    results: Results,
    heads: &Heads,
    (lens, places): (&[usize], [Place; 3]),
    bias: Option<BiasShape>,
    sizes: Sizes,
) -> (Vec<Vec<f32>>, Option<Vec<f32>>) {
    let Sizes { b, h, g, dims: Dims { t, s, d, e } } = sizes;
    let elements = b * (h * t * d + g * s * (d + e));
    assert_eq!(lens.iter().sum::<usize>(), elements, "the places of the gradients make up their buffers");
    let mut buffers: Vec<Vec<f32>> = lens.iter().map(|len| Vec::with_capacity(*len)).collect();
    let spare = buffers.iter_mut().zip(lens).map(|(buffer, len)| &mut buffer.spare_capacity_mut()[..*len]);
    let work = Gradients { views, results, heads, sizes, places, buffers: spare.map(SharedBuffer::new).collect() };
    let dbias = match bias {
        Some(shape) => Some(work.with_bias(shape)),
        None => {
            work.without_bias();
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

/// A backward pass, as its units see it.
struct Gradients<'a> {
    views: [View<'a>; 3],
    results: Results<'a>,
    heads: &'a Heads<'a>,
    sizes: Sizes,
    places: [Place; 3],
    buffers: Vec<SharedBuffer<'a, Uninit>>,
}

impl Gradients<'_> {
    /// Where to write the gradients of queries (0), keys (1) or values (2) of a head, which one unit does.
    fn rows(&self, which: usize, b: usize, head: usize) -> RowsMut<'_, Uninit> {
        let Place(buffer, layout) = self.places[which];
        // SAFETY: the places of queries, keys and values, and of their heads, do not overlap, and each query and each key
        // of each head of each sequence is part of one unit.
        unsafe { self.buffers[buffer].rows(layout, b, head) }
    }

    /// Processes some queries of the heads that share a key-value head.
    fn part(
        &self,
        work: &mut Backward,
        [b, g]: [usize; 2],
        queries: Range<usize>,
        dbias: Option<(&SharedBuffer<f32>, BiasShape)>,
    ) {
        let ([q, k, v], heads) = (self.views, self.heads);
        work.turn_to([b, g]);
        for h in self.sizes.heads(g) {
            dispatch_vectors(BackwardHead {
                work,
                dq: self.rows(0, b, h),
                saved: self.results.head(b, h, heads, self.sizes.dims.t),
                queries: queries.clone(),
                q: q.rows(b, h),
                kv: [k.rows(b, g), v.rows(b, g)],
                scoring: heads.scoring(b, h),
                mask: heads.mask(b, h),
                // SAFETY: units that share a bias are in one list, or add to different copies.
                dbias: dbias.map(|(buffer, shape)| unsafe { BiasRows::new(buffer, shape, b, h) }),
            });
        }
    }

    /// Processes all queries of the heads that share a key-value head.
    fn whole(&self, work: &mut Backward, [b, g]: [usize; 2], dbias: Option<(&SharedBuffer<f32>, BiasShape)>) {
        let dims = self.sizes.dims;
        self.part(work, [b, g], 0..dims.t, dbias);
        work.gradients.store(dims, self.rows(1, b, g), self.rows(2, b, g));
    }

    fn without_bias(&self) {
        let Sizes { b, g, dims, .. } = self.sizes;
        // Parts of at least two tiles, where there are few heads: each has gradients of its own for all keys.
        let parts = UNITS.div_ceil(b * g).clamp(1, (dims.t / TILE / 2).max(1));
        if parts == 1 {
            for_each_with(b * g, || Backward::new(dims), |work, head| self.whole(work, [head / g, head % g], None));
            return;
        }
        let mut of_parts = map(b * g * parts, |unit| {
            let (mut work, (head, queries)) = (Backward::new(dims), self.sizes.unit(unit, parts));
            self.part(&mut work, head, queries, None);
            work.gradients
        });
        for_each_chunk(&mut of_parts, parts, |head, of_parts| {
            let [sum, others @ ..] = of_parts else { return };
            others.iter().for_each(|other| sum.add(other));
            sum.store(dims, self.rows(1, head / g, head % g), self.rows(2, head / g, head % g));
        });
    }

    /// Returns the gradient of a bias.
    fn with_bias(&self, shape: BiasShape) -> Vec<f32> {
        let (lists, copies) = shape.lists(self.sizes);
        let mut copies = vec![vec![0.0; shape.elements()]; copies];
        let shared: Vec<SharedBuffer<f32>> = copies.iter_mut().map(|copy| SharedBuffer::new(copy)).collect();
        for_each_with(
            lists.len(),
            || Backward::new(self.sizes.dims),
            |work, i| {
                let List { copy, units } = &lists[i];
                units.iter().for_each(|head| self.whole(work, *head, Some((&shared[*copy], shape))));
            },
        );
        shape.sum(copies)
    }
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
