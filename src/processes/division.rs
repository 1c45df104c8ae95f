//! Which process adds and updates which elements of a model's tensors.

use std::cmp::Reverse;
use std::ops::Range;

use crate::cpu::sums::BLOCK;

/// What matters of a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) elements: usize,
    /// For a tensor that only a single process can update, the work of an update.
    pub(crate) whole: Option<usize>,
}

/// Some elements of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) tensor: usize,
    pub(crate) start: usize,
    pub(crate) len: usize,
}

impl Piece {
    pub(crate) fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// The pieces of each process, in the order of tensors. Tensors that can be divided are one sequence, of which each process
/// gets a part of about the same length that begins with a block, so that the sums of blocks are not divided; of the others
/// each gets some, the largest first to the process with the least work.
pub(crate) struct Division {
    pub(crate) pieces: Vec<Vec<Piece>>,
}

impl Division {
    pub(crate) fn new(shapes: &[Shape], processes: usize) -> Self {
        let mut pieces = vec![vec![]; processes];
        let total: usize = shapes.iter().filter(|shape| shape.whole.is_none()).map(|shape| shape.elements).sum();
        let (mut rank, mut done) = (0, 0);
        // What the processes up to one are to have.
        let wanted = |rank: usize| (total as u128 * (rank as u128 + 1) / processes as u128) as usize;
        for (tensor, shape) in shapes.iter().enumerate().filter(|(_, shape)| shape.whole.is_none()) {
            let mut start = 0;
            while start < shape.elements {
                while rank + 1 < processes && done >= wanted(rank) {
                    rank += 1;
                }
                let len = match rank + 1 < processes {
                    true => (wanted(rank) - done).next_multiple_of(BLOCK).min(shape.elements - start),
                    false => shape.elements - start,
                };
                pieces[rank].push(Piece { tensor, start, len });
                (start, done) = (start + len, done + len);
            }
        }
        let mut whole: Vec<(usize, usize)> =
            shapes.iter().enumerate().filter_map(|(tensor, shape)| Some((tensor, shape.whole?))).collect();
        whole.sort_by_key(|&(_, work)| Reverse(work));
        let mut load = vec![0; processes];
        for (tensor, work) in whole {
            let rank = (0..processes).min_by_key(|&rank| load[rank]).unwrap_or_default();
            load[rank] += work;
            pieces[rank].push(Piece { tensor, start: 0, len: shapes[tensor].elements });
        }
        pieces.iter_mut().for_each(|pieces| pieces.sort_by_key(|piece| piece.tensor));
        Self { pieces }
    }

    /// The number of elements of a process.
    pub(super) fn len(&self, rank: usize) -> usize {
        self.pieces[rank].iter().map(|piece| piece.len).sum()
    }

    /// The elements of a tensor that a process has, as far as they lie in a range of them.
    #[cfg(feature = "lm")]
    pub(crate) fn within_tensor(&self, rank: usize, tensor: usize, range: &Range<usize>) -> Range<usize> {
        let piece = self.pieces[rank].iter().find(|piece| piece.tensor == tensor);
        let Range { start, end } = piece.map_or(0..0, Piece::range);
        start.clamp(range.start, range.end)..end.clamp(range.start, range.end)
    }

    /// The pieces of a process, as far as they lie in a range of its elements.
    pub(super) fn within(&self, rank: usize, range: &Range<usize>) -> Vec<Piece> {
        let mut before = 0;
        let within = self.pieces[rank].iter().filter_map(|piece| {
            let (first, end) = (range.start.max(before), range.end.min(before + piece.len));
            let start = piece.start + first - before;
            before += piece.len;
            (first < end).then(|| Piece { tensor: piece.tensor, start, len: end - first })
        });
        within.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divided(elements: usize) -> Shape {
        Shape { elements, whole: None }
    }

    /// Each element has one process, and slices begin with blocks.
    #[test]
    fn every_element_belongs_to_one_process() {
        let shapes = [divided(10), Shape { elements: 6, whole: Some(3) }, divided(3 * BLOCK + 7), divided(0)];
        let large =
            [divided(100 * BLOCK + 1), Shape { elements: 77, whole: Some(70) }, divided(1), divided(50 * BLOCK)];
        // Fewer elements than processes among them.
        for shapes in [&shapes[..], &large, &shapes[..1], &large[2..3], &[]] {
            for processes in 1..9 {
                let division = Division::new(shapes, processes);
                let mut owners: Vec<Vec<usize>> = shapes.iter().map(|shape| vec![0; shape.elements]).collect();
                for piece in division.pieces.iter().flatten() {
                    assert!(piece.len > 0 && piece.start.is_multiple_of(BLOCK));
                    owners[piece.tensor][piece.range()].iter_mut().for_each(|count| *count += 1);
                }
                assert!(owners.concat().iter().all(|&count| count == 1), "{processes} processes");
                // Pieces of a tensor follow each other in the order of ranks, from which norms are put together.
                let in_order = division.pieces.iter().flatten().filter(|piece| piece.tensor == 0);
                assert!(in_order.map(|piece| piece.start).is_sorted());
            }
        }
        let even = Division::new(&large, 4);
        assert!((0..4).all(|rank| even.len(rank).abs_diff(150 * BLOCK / 4) <= 2 * BLOCK));
    }

    #[test]
    fn tensors_that_are_not_divided_go_to_the_process_with_the_least_work() {
        let shapes = [5, 9, 4, 4, 8].map(|work| Shape { elements: 1, whole: Some(work) });
        let tensors = |pieces: &Vec<Piece>| pieces.iter().map(|piece| piece.tensor).collect::<Vec<_>>();
        let division = Division::new(&shapes, 2);
        // 9 and 4, then 8, 5 and 4.
        assert_eq!(division.pieces.iter().map(tensors).collect::<Vec<_>>(), [vec![1, 2, 3], vec![0, 4]]);
    }

    #[test]
    fn a_range_of_a_process_is_cut_from_its_pieces() {
        let division = Division::new(&[divided(5), divided(7), divided(2)], 1);
        let piece = |tensor, start, len| Piece { tensor, start, len };
        assert_eq!(division.within(0, &(3..13)), [piece(0, 3, 2), piece(1, 0, 7), piece(2, 0, 1)]);
        assert_eq!(division.within(0, &(6..8)), [piece(1, 1, 2)]);
        assert_eq!(division.within(0, &(14..20)), []);
    }
}
