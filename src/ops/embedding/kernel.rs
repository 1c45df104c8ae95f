//! Row look-up and the sums of its gradient, on slices.

use crate::cpu::parallel::{for_each_chunk, threads};
use crate::cpu::simd::dispatch;

/// Elements per chunk: enough to be worth handing to a thread.
const CHUNK: usize = 16 * 1024;

/// `out[i] = weight[ids[i]]`, rows of `c` channels.
pub(super) fn forward(out: &mut [f32], weight: &[f32], ids: &[u32], c: usize) {
    let rows = (CHUNK / c).max(1);
    for_each_chunk(out, rows * c, |piece, out| {
        for (out, id) in out.chunks_exact_mut(c).zip(&ids[piece * rows..]) {
            out.copy_from_slice(&weight[*id as usize * c..][..c]);
        }
    });
}

/// `dweight[ids[i]] += dout[i]`, as `out[i] = weight[ids[i]]`.
///
/// Each chunk owns some rows of the weight and adds to each in the order of positions, so the number of chunks, which
/// is that of the threads, does not affect the result.
pub(super) fn backward(dweight: &mut [f32], dout: &[f32], ids: &[u32], c: usize) {
    let rows = (dweight.len() / c).div_ceil(threads());
    for_each_chunk(dweight, rows * c, |piece, dweight| {
        let own = piece * rows..piece * rows + dweight.len() / c;
        dispatch(
            #[inline(always)]
            || {
                for (id, dout) in ids.iter().zip(dout.chunks_exact(c)) {
                    let id = *id as usize;
                    if own.contains(&id) {
                        let row = &mut dweight[(id - own.start) * c..][..c];
                        row.iter_mut().zip(dout).for_each(|(sum, d)| *sum += d);
                    }
                }
            },
        );
    });
}
