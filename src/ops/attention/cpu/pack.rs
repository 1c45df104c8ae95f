//! Strided rows of a head, and copies of them in the layouts that products need.

use std::marker::PhantomData;
use std::ops::Range;

use super::{TILE, tiles};

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

    /// Copies some rows of `len` channels, times `factor`, to rows `stride` apart.
    #[inline(always)]
    pub(super) fn copy(self, rows: Range<usize>, len: usize, factor: f32, to: &mut [f32], stride: usize) {
        for (row, to) in rows.zip(to.chunks_exact_mut(stride)) {
            for (to, x) in to.iter_mut().zip(self.row(row, len)) {
                *to = x * factor;
            }
        }
    }

    /// Copies all `s` rows, transposed tile by tile: (S / TILE, len, TILE).
    #[inline(always)]
    pub(super) fn copy_columns(self, s: usize, len: usize, to: &mut [f32]) {
        for (keys, to) in tiles(0..s).zip(to.chunks_exact_mut((len * TILE).max(1))) {
            // Four rows at a time. The last is repeated as padding, whose columns are never used.
            for first in keys.clone().step_by(4) {
                let row = |i: usize| self.row((first + i).min(s - 1), len);
                let (rows, column) = (row(0).iter().zip(row(1)).zip(row(2)).zip(row(3)), first - keys.start);
                for ((((a, b), c), d), to) in rows.zip(to.chunks_exact_mut(TILE)) {
                    to[column..column + 4].copy_from_slice(&[*a, *b, *c, *d]);
                }
            }
        }
    }

    /// The largest magnitude in these rows; NaN if there is one.
    #[inline(always)]
    pub(super) fn max_magnitude(self, rows: Range<usize>, len: usize) -> f32 {
        // As integers, magnitudes are in the same order, and NaN is above all.
        let max = |row: &[f32]| row.iter().fold(0, |max: u32, x| max.max(x.abs().to_bits()));
        f32::from_bits(rows.fold(0, |all: u32, i| all.max(max(self.row(i, len)))))
    }
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
