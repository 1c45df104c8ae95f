//! The mask in a tile of queries and keys.

use std::ops::Range;

use super::super::mask::Band;
use super::super::structure::{Sequence, Visibility};
use super::TILE;
use crate::cpu::micro_gemm::{GROUP, ROWS};

/// The mask of one head of one sequence.
#[derive(Clone, Copy)]
pub(in super::super) struct HeadMask<'a> {
    pub(in super::super) band: Band,
    pub(in super::super) sequence: &'a Sequence,
    pub(in super::super) allowed: Option<DenseHead<'a, u8>>,
    pub(in super::super) bias: Option<DenseHead<'a, f32>>,
    /// Of linear biases.
    pub(in super::super) slope: Option<f32>,
}

/// One head of a tensor that was broadcast to (B, H, T, S), where it lies.
#[derive(Clone, Copy)]
pub(in super::super) struct DenseHead<'a, T> {
    pub(in super::super) data: &'a [T],
    pub(in super::super) query_stride: usize,
    pub(in super::super) key_stride: usize,
}

impl<T: Copy> DenseHead<'_, T> {
    /// Calls `f` with each score and the element for this query and the score's key, from `keys.start` on.
    #[inline(always)]
    fn for_each(self, scores: &mut [f32], query: usize, keys: Range<usize>, f: impl Fn(&mut f32, T)) {
        if keys.is_empty() {
            return;
        }
        let elements = &self.data[query * self.query_stride + keys.start * self.key_stride..];
        let scores = scores.iter_mut().take(keys.len());
        match self.key_stride {
            1 => scores.zip(elements).for_each(|(score, x)| f(score, *x)),
            0 => scores.for_each(|score| f(score, elements[0])),
            stride => scores.zip(elements.iter().step_by(stride)).for_each(|(score, x)| f(score, *x)),
        }
    }
}

impl DenseHead<'_, u8> {
    /// How much of a tile of an allowed set is visible.
    #[inline(always)]
    fn visibility(self, queries: &Range<usize>, keys: &Range<usize>) -> Visibility {
        let [query_stride, key_stride] = [self.query_stride, self.key_stride];
        let (mut any, mut all) = (0, u8::MAX);
        for query in queries.clone().take(if query_stride == 0 { 1 } else { queries.len() }) {
            let row = &self.data[query * query_stride + keys.start * key_stride..];
            let mut look = |x: u8| (any, all) = (any | x, all.min(x));
            match key_stride {
                1 => row[..keys.len()].iter().for_each(|x| look(*x)),
                0 => look(row[0]),
                stride => row.iter().step_by(stride).take(keys.len()).for_each(|x| look(*x)),
            }
        }
        match (any, all) {
            (0, _) => Visibility::Nothing,
            (_, 0) => Visibility::Some,
            _ => Visibility::All,
        }
    }
}

/// What a query may see of a tile of keys.
pub(super) struct Tile<'a> {
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
    mask: HeadMask<'a>,
    /// The band in the tile's own coordinates: row `i` stands before column `i + before`, sees the first `floor` columns
    /// and `window` columns up to its position; rows before `first_row` see nothing.
    before: i64,
    floor: usize,
    window: i64,
    first_row: usize,
    /// Whether the band allows everything.
    is_whole: bool,
    /// Of each block of rows, the columns that its queries see by the band: the first, and one past the last.
    blocks: [[usize; 2]; TILE / ROWS],
    /// Whether some keys may be in other segments.
    compares_segments: bool,
    /// Whether some keys may be outside the allowed set.
    compares_allowed: bool,
    /// Whether the band is all that there is to the mask here.
    is_band: bool,
}

impl<'a> Tile<'a> {
    /// `None` if nothing in it is visible.
    #[inline(always)]
    pub(super) fn new(mask: HeadMask<'a>, queries: Range<usize>, keys: Range<usize>) -> Option<Self> {
        let segments = mask.sequence.segments.as_ref();
        let visibility = segments.map_or(Visibility::All, |segments| segments.visibility(&queries, &keys));
        let in_set = mask.allowed.map_or(Visibility::All, |allowed| allowed.visibility(&queries, &keys));
        if visibility == Visibility::Nothing || in_set == Visibility::Nothing {
            return None;
        }
        let (compares_segments, compares_allowed) = (visibility == Visibility::Some, in_set == Visibility::Some);
        let ((first, window), position) = (mask.band.bounds(), mask.sequence.first + queries.start as i64);
        let (len, rows) = (keys.len(), queries.len());
        let mut tile = Self {
            before: position + 1 - keys.start as i64,
            floor: first.saturating_sub(keys.start).min(len),
            window: i64::try_from(window).unwrap_or(i64::MAX).min(1 << 62),
            first_row: if mask.band == Band::Full { 0 } else { usize::try_from(-position).unwrap_or(0) },
            is_whole: false,
            blocks: [[0, len]; TILE / ROWS],
            compares_segments,
            compares_allowed,
            is_band: !compares_segments && !compares_allowed && mask.bias.is_none() && mask.slope.is_none(),
            queries,
            keys,
            mask,
        };
        // Both ends of what a query sees never lie before those of an earlier query.
        tile.is_whole = tile.band(0).end == len && tile.band(rows - 1) == (0..len);
        if !tile.is_whole {
            for (row, block) in (0..rows).step_by(ROWS).zip(0..) {
                tile.blocks[block] = [tile.band(row).start, tile.band((row + ROWS).min(rows) - 1).end];
            }
        }
        Some(tile)
    }

    /// The columns that the query of a row sees by the band.
    #[inline(always)]
    pub(super) fn band(&self, row: usize) -> Range<usize> {
        if self.is_whole {
            return 0..self.keys.len();
        }
        if row < self.first_row {
            return 0..0;
        }
        let (position, len) = (row as i64 + self.before, self.keys.len());
        let end = within(position, len);
        let end = if end < self.floor { self.floor } else { end };
        within(position - self.window, end)..end
    }

    /// The columns that the queries of the block that starts at a row see.
    #[inline(always)]
    pub(super) fn columns_of(&self, row: usize) -> Range<usize> {
        let [start, end] = self.blocks[row / ROWS];
        start.min(end)..end
    }

    /// The rows of the blocks of queries that see one of the keys of the block that starts at a column.
    #[inline(always)]
    pub(super) fn rows_of(&self, column: usize) -> Range<usize> {
        let rows = self.queries.len();
        if self.is_whole {
            return 0..rows;
        }
        let blocks = &self.blocks[..rows.div_ceil(ROWS)];
        let first = blocks.iter().position(|[_, end]| *end > column).unwrap_or(blocks.len());
        let last = blocks.iter().rposition(|[start, _]| *start < column + ROWS).map_or(0, |block| block + 1);
        (first * ROWS).min(rows)..(last * ROWS).min(rows).max((first * ROWS).min(rows))
    }

    /// The number of scores of a row that are computed, from the first: whole groups.
    #[inline(always)]
    pub(super) fn computed(&self, row: usize) -> usize {
        self.columns_of(row).end.next_multiple_of(GROUP)
    }

    /// Adds the bias to a query's scores of keys in its band, and hides those that something else excludes.
    #[inline(always)]
    pub(super) fn mask_scores(&self, scores: &mut [f32], query: usize, band: &Range<usize>) {
        let HeadMask { sequence, allowed, bias, slope, .. } = self.mask;
        if self.is_band {
            return;
        }
        let first = self.keys.start + band.start;
        let (scores, keys) = (&mut scores[band.clone()], first..first + band.len());
        if let Some(slope) = slope {
            let position = sequence.first + query as i64 - keys.start as i64;
            for (score, i) in scores.iter_mut().zip(0..) {
                *score -= slope * (position - i).abs() as f32;
            }
        }
        if let Some(bias) = bias {
            let add = |score: &mut f32, x: f32| *score = if x == f32::NEG_INFINITY { x } else { *score + x };
            bias.for_each(scores, query, keys.clone(), add);
        }
        if let Some(allowed) = allowed.filter(|_| self.compares_allowed) {
            allowed.for_each(scores, query, keys.clone(), |score, x| {
                *score = if x == 0 { f32::NEG_INFINITY } else { *score };
            });
        }
        if let Some(segments) = sequence.segments.as_ref().filter(|_| self.compares_segments) {
            let segment = segments.queries[query];
            for (score, of_key) in scores.iter_mut().zip(&segments.keys[keys]) {
                *score = if *of_key == segment { *score } else { f32::NEG_INFINITY };
            }
        }
    }
}

/// A number, moved into `0..=max`. Not `clamp`, which the compiler does not place inside kernels.
#[inline(always)]
fn within(x: i64, max: usize) -> usize {
    if x < 0 {
        0
    } else if x > max as i64 {
        max
    } else {
        x as usize
    }
}
