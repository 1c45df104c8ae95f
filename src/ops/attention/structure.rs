//! What a mask's structure allows, in plain numbers: of each sequence, the position of its first query and the segments
//! that its queries and keys belong to. It takes memory linear in the number of positions, and is what the kernel and
//! the composed operation both read.

use std::ops::Range;

use candle_core::Result;

use super::cpu::{TILE, tiles};
use super::mask::{Band, KeyPadding, Mask};

/// The band, and what else each sequence allows.
#[derive(Clone)]
pub(super) struct Structure {
    pub(super) band: Band,
    /// Of each sequence, or one that stands for all.
    sequences: Vec<Sequence>,
}

/// A sequence's part of the structure.
#[derive(Clone)]
pub(super) struct Sequence {
    /// The position of its first query.
    pub(super) first: i64,
    pub(super) segments: Option<Segments>,
}

/// Numbers of queries and keys, which must be equal for a query to see a key: those of documents, and others for
/// padding.
#[derive(Clone)]
pub(super) struct Segments {
    pub(super) queries: Vec<u32>,
    pub(super) keys: Vec<u32>,
    /// The lowest and highest number in each tile.
    query_tiles: Vec<[u32; 2]>,
    key_tiles: Vec<[u32; 2]>,
}

/// How much of a tile of queries and keys is visible.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Visibility {
    Nothing,
    Some,
    All,
}

impl Structure {
    /// The structure of a checked mask for `b` sequences of `t` queries and `s` keys.
    pub(super) fn new(mask: &Mask, [b, t, s]: [usize; 3]) -> Result<Self> {
        let documents = mask.documents.as_ref().map(|numbers| numbers.to_vec2::<u32>()).transpose()?;
        let real = match &mask.key_padding {
            Some(KeyPadding::Real(keys)) => keys.to_vec2::<u8>()?,
            _ => Vec::new(),
        };
        let sequence = |i: usize| {
            let first = mask.query_positions.as_ref().map_or(s as i64 - t as i64, |positions| positions[i]);
            let is_real: Option<Vec<bool>> = mask.key_padding.as_ref().map(|padding| match padding {
                KeyPadding::Left(lengths) => (0..s).map(|key| key >= s - lengths[i]).collect(),
                KeyPadding::Right(lengths) => (0..s).map(|key| key < lengths[i]).collect(),
                KeyPadding::Real(_) => real[i].iter().map(|x| *x != 0).collect(),
            });
            let documents = documents.as_ref().map(|numbers| numbers[i].as_slice());
            let segments = (documents.is_some() || is_real.is_some())
                .then(|| Segments::new(documents, is_real.as_deref(), first, [t, s]));
            Sequence { first, segments }
        };
        let differ = documents.is_some() || mask.key_padding.is_some() || mask.query_positions.is_some();
        let sequences = if differ { (0..b).map(sequence).collect() } else { vec![sequence(0)] };
        Ok(Self { band: mask.band, sequences })
    }

    /// The part of a sequence.
    pub(super) fn sequence(&self, b: usize) -> &Sequence {
        if self.sequences.len() == 1 { &self.sequences[0] } else { &self.sequences[b] }
    }

    /// The parts of all sequences, or one that stands for all.
    pub(super) fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// A range of the `s` keys outside which these queries see nothing, in any sequence.
    pub(super) fn keys(&self, queries: &Range<usize>, s: usize) -> Range<usize> {
        let seen = |sequence: &Sequence| sequence.keys(self.band, queries, s);
        let all = self.sequences.iter().map(seen).filter(|seen| !seen.is_empty());
        all.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
    }
}

impl Sequence {
    /// A range of the `s` keys outside which these queries see nothing.
    pub(super) fn keys(&self, band: Band, queries: &Range<usize>, s: usize) -> Range<usize> {
        if band == Band::Full {
            return 0..s;
        }
        // The first query that sees anything, and the last, which sees furthest.
        let first = queries.start.max(usize::try_from(-self.first).unwrap_or(0));
        if first >= queries.end {
            return 0..0;
        }
        let last = band.keys(self.first + queries.end as i64 - 1, s);
        band.keys(self.first + first as i64, s).start..last.end
    }
}

impl Segments {
    fn new(documents: Option<&[u32]>, is_real: Option<&[bool]>, first: i64, [t, s]: [usize; 2]) -> Self {
        let [of_padding, of_nothing] = unused(documents.unwrap_or(&[0]));
        // Without documents, all are part of one; a position outside the keys has none.
        let document = |position: i64| match documents {
            Some(numbers) => usize::try_from(position).ok().and_then(|i| numbers.get(i)).copied().unwrap_or(of_nothing),
            None => 0,
        };
        let of_key = |key: usize| match is_real {
            Some(is_real) if !is_real[key] => of_padding,
            _ => document(key as i64),
        };
        let of_query = |query: usize| document(first + query as i64);
        let (queries, keys): (Vec<u32>, Vec<u32>) = ((0..t).map(of_query).collect(), (0..s).map(of_key).collect());
        let (query_tiles, key_tiles) = (bounds(&queries), bounds(&keys));
        Self { queries, keys, query_tiles, key_tiles }
    }

    /// How much of a tile is visible, as far as the bounds of its numbers tell.
    pub(super) fn visibility(&self, queries: &Range<usize>, keys: &Range<usize>) -> Visibility {
        let ([a, b], [c, d]) = (self.query_tiles[queries.start / TILE], self.key_tiles[keys.start / TILE]);
        match () {
            () if b < c || d < a => Visibility::Nothing,
            () if a == b && c == d => Visibility::All,
            () => Visibility::Some,
        }
    }
}

/// The two lowest numbers that do not occur.
fn unused(numbers: &[u32]) -> [u32; 2] {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut free = (0..=u32::MAX).filter(|number| sorted.binary_search(number).is_err());
    // A sequence of 2^32 - 1 documents does not fit into memory.
    [free.next().unwrap_or(u32::MAX), free.next().unwrap_or(u32::MAX)]
}

/// The lowest and highest number in each tile.
fn bounds(numbers: &[u32]) -> Vec<[u32; 2]> {
    let bound = |tile: Range<usize>| {
        let numbers = numbers[tile].iter();
        [numbers.clone().min().copied().unwrap_or(0), numbers.max().copied().unwrap_or(0)]
    };
    tiles(0..numbers.len()).map(bound).collect()
}
