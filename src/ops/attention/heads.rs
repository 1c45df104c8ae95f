//! All heads of all sequences: how they are divided among threads, and where their rows are.

use super::kernel::{Backward, Dims, Forward, Saved};
use super::layout::{GradientLayout, Piece, Sizes};
use super::rows::{Place, Rows};
use super::scores::{Scoring, Softmax};
use super::single;
use super::visible::Visible;
use crate::cpu::parallel;

/// Queries, keys or values of all sequences and heads: (B, T, H, D) with any strides, except that the last is 1.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) data: &'a [f32],
    pub(super) batch_stride: usize,
    pub(super) position_stride: usize,
    pub(super) head_stride: usize,
}

impl<'a> View<'a> {
    pub(super) fn rows(self, b: usize, h: usize) -> Rows<'a> {
        Rows { data: &self.data[b * self.batch_stride + h * self.head_stride..], stride: self.position_stride }
    }
}

/// The mask, scale and dropout of each head, by sequence and head.
pub(super) trait Heads: Sync {
    type Visible: Visible;

    fn visible(&self, sequence: usize, head: usize) -> Self::Visible;

    fn scoring(&self, sequence: usize, head: usize) -> Scoring<'_>;

    /// Whether there will be no backward pass.
    fn is_forward_only(&self) -> bool;
}

/// Whether to split heads among threads, because there are fewer sequences than threads. The unit of work is then one
/// head of keys and values: its gradients have a single owner, so their sums do not depend on the number of threads.
fn splits_heads(sizes: Sizes) -> bool {
    sizes.b < parallel::threads() && sizes.g > 1
}

/// The output (B, T, H, E), and what backward needs: (B, H, T).
pub(super) fn forward([q, k, v]: [View; 3], heads: &impl Heads, sizes: Sizes) -> (Vec<f32>, Vec<Softmax>) {
    let Sizes { b, h, g, head: Dims { t, e, .. } } = sizes;
    if t == 1 && heads.is_forward_only() {
        return single::forward([q, k, v], heads, sizes);
    }
    let per_group = h / g;
    // Works on the query heads that share a key-value head; `places` says where the output of each belongs.
    let group = |work: &mut Forward,
                 [b_i, g_i]: [usize; 2],
                 out: &mut [f32],
                 softmax: &mut [Softmax],
                 places: &dyn Fn(usize) -> Place| {
        work.load(k.rows(b_i, g_i), v.rows(b_i, g_i));
        for (h_i, softmax) in sizes.heads(g_i).zip(softmax.chunks_exact_mut(t)) {
            let out = places(h_i).rows_mut(out);
            work.head(out, softmax, q.rows(b_i, h_i), heads.scoring(b_i, h_i), &heads.visible(b_i, h_i));
        }
    };
    let mut out = vec![0.0; b * t * h * e];
    let mut softmax = vec![Softmax::default(); b * h * t];
    if splits_heads(sizes) {
        let groups = parallel::map(b * g, |i| {
            let (mut out, mut softmax) = (vec![0.0; per_group * t * e], vec![Softmax::default(); per_group * t]);
            let local = |h_i: usize| Place { offset: h_i % per_group * t * e, stride: e };
            group(&mut Forward::new(sizes.head), [i / g, i % g], &mut out, &mut softmax, &local);
            (out, softmax)
        });
        for (i, (group_out, group_softmax)) in groups.iter().enumerate() {
            softmax[i * per_group * t..][..per_group * t].copy_from_slice(group_softmax);
            let out = &mut out[i / g * t * h * e..];
            for (h_i, rows) in sizes.heads(i % g).zip(group_out.chunks_exact(t * e)) {
                sizes.out(h_i).fill(out, rows, e);
            }
        }
    } else {
        parallel::for_each_chunk_pair((&mut out, t * h * e), (&mut softmax, h * t), |b_i, out, softmax| {
            let mut work = Forward::new(sizes.head);
            for (g_i, softmax) in softmax.chunks_exact_mut(per_group * t).enumerate() {
                group(&mut work, [b_i, g_i], out, softmax, &|h_i| sizes.out(h_i));
            }
        });
    }
    (out, softmax)
}

/// The gradients of queries, keys and values, in the buffers of `layout`.
pub(super) fn backward(
    [q, k, v]: [View; 3],
    (out, dout, softmax): (&[f32], &[f32], &[Softmax]),
    heads: &impl Heads,
    layout: GradientLayout,
    sizes: Sizes,
) -> Vec<Vec<f32>> {
    let Sizes { b, h, g, head: Dims { t, s, d, e } } = sizes;
    // The owner of a part of the gradients is a key-value head, with all query heads that share it.
    let group =
        |work: &mut Backward, [b_i, g_i]: [usize; 2], piece: &mut Piece, places: &dyn Fn(usize) -> [Place; 3]| {
            work.load(k.rows(b_i, g_i), v.rows(b_i, g_i));
            for h_i in sizes.heads(g_i) {
                let [out, dout] = [out, dout].map(|x| sizes.out(h_i).rows(&x[b_i * t * h * e..]));
                let saved = Saved { out, dout, softmax: &softmax[(b_i * h + h_i) * t..][..t] };
                let dq = places(h_i)[0].rows_mut(piece.buffer(0));
                work.head(dq, saved, q.rows(b_i, h_i), heads.scoring(b_i, h_i), &heads.visible(b_i, h_i));
            }
            let [_, dk, dv] = places(sizes.heads(g_i).start);
            work.store_dk(dk.rows_mut(piece.buffer(1)));
            work.store_dv(dv.rows_mut(piece.buffer(2)));
        };
    let lens = layout.lens(sizes);
    let mut gradients: Vec<Vec<f32>> = lens.iter().map(|len| vec![0.0; b * len]).collect();
    let mut pieces = Piece::all(&mut gradients, &lens);
    if splits_heads(sizes) {
        let per_group = h / g;
        let local = |h_i: usize| {
            let dq = h_i % per_group * t * d;
            [(dq, d), (0, d), (0, e)].map(|(offset, stride)| Place { offset, stride })
        };
        let groups = parallel::map(b * g, |i| {
            let mut data = [vec![0.0; per_group * t * d], vec![0.0; s * d], vec![0.0; s * e]];
            let mut piece = Piece::Separate(data.each_mut().map(Vec::as_mut_slice));
            group(&mut Backward::new(sizes.head), [i / g, i % g], &mut piece, &local);
            data
        });
        for (i, [dq, dk, dv]) in groups.iter().enumerate() {
            let (piece, g_i) = (&mut pieces[i / g], i % g);
            for (h_i, dq) in sizes.heads(g_i).zip(dq.chunks_exact(t * d)) {
                layout.places(h_i, g_i, sizes)[0].fill(piece.buffer(0), dq, d);
            }
            let [_, place_k, place_v] = layout.places(0, g_i, sizes);
            place_k.fill(piece.buffer(1), dk, d);
            place_v.fill(piece.buffer(2), dv, e);
        }
    } else {
        parallel::for_each(&mut pieces, |b_i, piece| {
            let mut work = Backward::new(sizes.head);
            for g_i in 0..g {
                group(&mut work, [b_i, g_i], piece, &|h_i| layout.places(h_i, g_i, sizes));
            }
        });
    }
    drop(pieces);
    gradients
}
