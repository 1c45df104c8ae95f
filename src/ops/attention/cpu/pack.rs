//! Strided rows of a head, and copies of them in the layouts that products need.

use std::marker::PhantomData;
use std::ops::Range;

use super::TILE;
use crate::cpu::micro_gemm::GROUP;

/// Where the rows of a tensor of heads, (B, T, H, D), begin in a buffer. The channels of a row are adjacent.
#[derive(Clone, Copy)]
pub(in super::super) struct RowLayout {
    pub(in super::super) offset: usize,
    pub(in super::super) batch_stride: usize,
    pub(in super::super) position_stride: usize,
    pub(in super::super) head_stride: usize,
}

impl RowLayout {
    /// Of a contiguous tensor (B, `t`, `h`, `d`).
    pub(in super::super) fn contiguous(t: usize, h: usize, d: usize) -> Self {
        Self { offset: 0, batch_stride: t * h * d, position_stride: h * d, head_stride: d }
    }

    fn start(self, b: usize, h: usize) -> usize {
        self.offset + b * self.batch_stride + h * self.head_stride
    }

    /// The rows of a head.
    pub(super) fn rows(self, data: &[f32], b: usize, h: usize) -> Rows<'_> {
        Rows { data: &data[self.start(b, h)..], stride: self.position_stride }
    }
}

/// The rows of one head, `stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn row(self, i: usize, len: usize) -> &'a [f32] {
        &self.data[i * self.stride..i * self.stride + len]
    }

    /// Copies some rows of `len` channels, times `factor`, to rows of whole groups, `stride` apart. Returns the largest magnitude before
    /// that; NaN if there is one.
    #[inline(always)]
    pub(super) fn copy(self, rows: Range<usize>, len: usize, factor: f32, to: &mut [f32], stride: usize) -> f32 {
        let mut max = [0; GROUP];
        for (row, to) in rows.zip(to.chunks_exact_mut(stride)) {
            let ((groups, rest), (to, _)) = (self.row(row, len).as_chunks(), to.as_chunks_mut());
            for (group, to) in groups.iter().zip(to.iter_mut()) {
                raise(&mut max, group);
                *to = group.map(|x| x * factor);
            }
            if !rest.is_empty() {
                let group = padded_group(rest);
                raise(&mut max, &group);
                to[groups.len()] = group.map(|x| x * factor);
            }
        }
        highest(max)
    }

    /// Copies the rows of a tile, at most [`TILE`], transposed: (len, TILE); the columns after the last are zeros. Returns
    /// the largest magnitude; NaN if there is one.
    #[inline(always)]
    pub(super) fn copy_columns(self, rows: Range<usize>, len: usize, to: &mut [f32]) -> f32 {
        let mut max = [0; GROUP];
        for first in rows.clone().step_by(GROUP) {
            for channel in (0..len).step_by(GROUP) {
                let mut square = [[0.0; GROUP]; GROUP];
                for row in first..rows.end.min(first + GROUP) {
                    let channels = &self.row(row, len)[channel..];
                    let group = channels.first_chunk().copied().unwrap_or_else(
                        #[inline(always)]
                        || padded_group(channels),
                    );
                    raise(&mut max, &group);
                    square[row - first] = group;
                }
                let square = half_transposed(&half_transposed(&half_transposed(&half_transposed(&square))));
                for i in 0..GROUP.min(len - channel) {
                    to[(channel + i) * TILE + first - rows.start..][..GROUP].copy_from_slice(&square[i]);
                }
            }
        }
        highest(max)
    }
}

/// Fewer elements than a group, with zeros after them.
#[inline(always)]
fn padded_group(rest: &[f32]) -> [f32; GROUP] {
    let mut group = [0.0; GROUP];
    group[..rest.len()].copy_from_slice(rest);
    group
}

/// Raises magnitudes, as bits, to those of a group. In this order, that of the numbers, NaN is above all.
#[inline(always)]
fn raise(max: &mut [u32; GROUP], group: &[f32; GROUP]) {
    for lane in 0..GROUP {
        max[lane] = max[lane].max(group[lane].abs().to_bits());
    }
}

fn highest(max: [u32; GROUP]) -> f32 {
    f32::from_bits(max.into_iter().fold(0, u32::max))
}

/// A perfect shuffle of the rows of a square and their elements: four of them transpose it. Loops of this form become
/// shuffles of vectors.
#[inline(always)]
fn half_transposed(square: &[[f32; GROUP]; GROUP]) -> [[f32; GROUP]; GROUP] {
    const HALF: usize = GROUP / 2;
    let mut out = [[0.0; GROUP]; GROUP];
    for i in 0..HALF {
        for j in 0..HALF {
            out[2 * i][2 * j] = square[i][j];
            out[2 * i][2 * j + 1] = square[i + HALF][j];
            out[2 * i + 1][2 * j] = square[i][j + HALF];
            out[2 * i + 1][2 * j + 1] = square[i + HALF][j + HALF];
        }
    }
    out
}

/// A buffer that several threads write at once, each to rows of its own.
pub(super) struct SharedBuffer<'a> {
    start: *mut f32,
    len: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for a unique borrow of `f32`s, and the only access, `rows`, leaves it to its caller that no rows are
// used twice at once.
unsafe impl Sync for SharedBuffer<'_> {}

impl<'a> SharedBuffer<'a> {
    pub(super) fn new(buffer: &'a mut [f32]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len(), borrowed: PhantomData }
    }

    /// The rows of a head, to write to.
    ///
    /// # Safety
    /// While a row of the result is in use, on this thread or another, no row that overlaps it may be used through
    /// another result.
    pub(super) unsafe fn rows(&self, layout: RowLayout, b: usize, h: usize) -> RowsMut<'a> {
        let start = layout.start(b, h);
        assert!(start <= self.len, "a head begins past its buffer");
        // SAFETY: `start` is within the buffer or one past its end, as just checked.
        let first = unsafe { self.start.add(start) };
        RowsMut { start: first, len: self.len - start, stride: layout.position_stride, borrowed: PhantomData }
    }
}

/// The rows of one head, to write to.
pub(super) struct RowsMut<'a> {
    start: *mut f32,
    len: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

impl RowsMut<'_> {
    pub(super) fn row(&mut self, i: usize, len: usize) -> &mut [f32] {
        let first = i * self.stride;
        assert!(first + len <= self.len, "a row reaches past its buffer");
        // SAFETY: the row lies within the buffer, as just checked; the unique borrow of `self` keeps it from being used
        // twice through this, and the contract of `SharedBuffer::rows` from being used through another.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }

    /// Writes the first `len` elements of rows that are `stride` apart.
    pub(super) fn fill(&mut self, rows: &[f32], stride: usize, len: usize) {
        rows.chunks_exact(stride).enumerate().for_each(|(i, row)| self.row(i, len).copy_from_slice(&row[..len]));
    }
}
