//! Row look-up and the sums of its gradient, on slices.

use crate::cpu::parallel::{CHUNK, for_each_chunk};
use crate::cpu::simd::dispatch;
use crate::cpu::sums::{ROWS, sum_rows};

/// `out[i] = weight[ids[i]]`, rows of `c` channels.
pub(super) fn forward(out: &mut [f32], weight: &[f32], ids: &[u32], c: usize) {
    let rows = (CHUNK / c).max(1);
    for_each_chunk(out, rows * c, |piece, out| {
        for (out, id) in out.chunks_exact_mut(c).zip(&ids[piece * rows..]) {
            out.copy_from_slice(&weight[*id as usize * c..][..c]);
        }
    });
}

/// `dweight[ids[i]] += dout[i]`, as `out[i] = weight[ids[i]]`. Each chunk owns some rows of the weight.
pub(super) fn backward(dweight: &mut [f32], dout: &[f32], ids: &[u32], c: usize) {
    let (starts, positions) = positions_by_id(ids, dweight.len() / c);
    let rows = (CHUNK / c).max(1);
    for_each_chunk(dweight, rows * c, |piece, dweight| {
        for (id, row) in (piece * rows..).zip(dweight.chunks_exact_mut(c)) {
            let own = &positions[starts[id]..starts[id + 1]];
            let of = |i: usize| &dout[own[i] * c..][..c];
            match own.len() {
                0 => {}
                // One block: the same sum, without an allocation.
                1..=ROWS => dispatch(
                    #[inline(always)]
                    || (0..own.len()).for_each(|i| add(row, of(i))),
                ),
                n => row.copy_from_slice(&sum_rows(
                    n,
                    c,
                    #[inline(always)]
                    |i, sums| add(sums, of(i)),
                )),
            }
        }
    });
}

#[inline(always)]
fn add(sums: &mut [f32], row: &[f32]) {
    sums.iter_mut().zip(row).for_each(|(sum, d)| *sum += d);
}

/// The positions of each id below `v`, in order, and where in these those of an id start; at `v`, the end.
fn positions_by_id(ids: &[u32], v: usize) -> (Vec<usize>, Vec<usize>) {
    let mut starts = vec![0; v + 1];
    ids.iter().for_each(|id| starts[*id as usize + 1] += 1);
    (0..v).for_each(|id| starts[id + 1] += starts[id]);
    let (mut next, mut positions) = (starts.clone(), vec![0; ids.len()]);
    for (position, id) in ids.iter().enumerate() {
        let place = &mut next[*id as usize];
        positions[*place] = position;
        *place += 1;
    }
    (starts, positions)
}
