//! Strided rows of a head, and copies of them in the layouts that products need.

use std::ops::Range;

use super::scores::TILE;

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
}

/// The rows of one head, to write to.
pub(super) struct RowsMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) stride: usize,
}

impl RowsMut<'_> {
    pub(super) fn row(&mut self, i: usize, len: usize) -> &mut [f32] {
        &mut self.data[i * self.stride..i * self.stride + len]
    }

    /// Writes the first `len` elements of rows that are `stride` apart.
    pub(super) fn fill(&mut self, rows: &[f32], stride: usize, len: usize) {
        rows.chunks_exact(stride).enumerate().for_each(|(i, row)| self.row(i, len).copy_from_slice(&row[..len]));
    }
}

/// The place of a head's rows in a buffer.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) offset: usize,
    pub(super) stride: usize,
}

impl Place {
    pub(super) fn rows(self, data: &[f32]) -> Rows<'_> {
        Rows { data: &data[self.offset..], stride: self.stride }
    }

    pub(super) fn rows_mut(self, data: &mut [f32]) -> RowsMut<'_> {
        RowsMut { data: &mut data[self.offset..], stride: self.stride }
    }

    /// Copies contiguous rows of `len` elements to this place.
    pub(super) fn fill(self, data: &mut [f32], rows: &[f32], len: usize) {
        self.rows_mut(data).fill(rows, len, len);
    }
}

/// A range, cut at multiples of [`TILE`].
pub(super) fn tiles(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    (range.start / TILE * TILE..end).step_by(TILE).map(move |start| start..end.min(start + TILE))
}
