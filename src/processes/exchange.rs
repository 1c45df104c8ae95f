//! What the processes exchange in a step: slices of gradients, and of updated weights.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::division::Piece;
use super::tree::{Root, Tree, subtrees};
use super::{Division, Processes, share_of};
use crate::cpu::parallel::{CHUNK, for_each_chunk};
use crate::cpu::storage::values;
use crate::cpu::sums::BLOCK;

/// The bytes of some numbers, as they travel: in little-endian order.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    /// Writes the numbers to `out`.
    pub(crate) fn read(&self, out: &mut [f32]) {
        let bytes = self.0.as_chunks().0;
        for_each_chunk(out, CHUNK, |i, out| {
            out.iter_mut().zip(&bytes[i * CHUNK..]).for_each(|(x, &bytes)| *x = f32::from_le_bytes(bytes));
        });
    }
}

fn write(bytes: &mut [u8], values: &[f32]) {
    for_each_chunk(bytes.as_chunks_mut().0, CHUNK, |i, bytes| {
        bytes.iter_mut().zip(&values[i * CHUNK..]).for_each(|(bytes, x)| *bytes = x.to_le_bytes());
    });
}

/// Takes the first `len` off a slice.
fn take<'a>(rest: &mut &'a mut [u8], len: usize) -> &'a mut [u8] {
    rest.split_off_mut(..len).unwrap_or_default()
}

/// Ranges of the elements of all processes: in each, every process sends about [`TOGETHER`] numbers.
fn rounds(division: &Division, copies: usize) -> impl Iterator<Item = Range<usize>> {
    /// Numbers that are sent together: few enough for buffers to stay small, enough for latency not to matter.
    const TOGETHER: usize = 1 << 23;
    let count = division.pieces.len();
    let longest = (0..count).map(|rank| division.len(rank)).max().unwrap_or_default();
    let len = (TOGETHER / (count * copies.max(1))).next_multiple_of(BLOCK);
    (0..longest).step_by(len).map(move |start| start..start + len)
}

fn elements(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.len).sum()
}

/// Adds the gradients of all shards: of this process those of the subtrees `own`, a tensor for each of the division. Gives
/// the sums of this process's pieces.
pub(crate) fn reduce(
    processes: &dyn Processes,
    division: &Division,
    shards: usize,
    own: Vec<Root<Vec<Tensor>>>,
) -> Result<Vec<Vec<f32>>> {
    let (rank, count) = (processes.rank(), processes.count());
    let all: Vec<Vec<(usize, u32)>> = (0..count).map(|rank| subtrees(share_of(shards, rank, count))).collect();
    let contiguous = |root: &Root<Vec<Tensor>>| root.sum.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>();
    let own = own.iter().map(contiguous).collect::<Result<Vec<_>>>()?;
    let own = own.iter().map(|root| root.iter().map(values).collect()).collect::<Result<Vec<Vec<_>>>>()?;
    let mut sums = Vec::with_capacity(division.len(rank));
    let (mut send, mut receive) = (vec![], vec![]);
    for range in rounds(division, all.iter().map(Vec::len).max().unwrap_or_default()) {
        let pieces: Vec<Vec<Piece>> = (0..count).map(|rank| division.within(rank, &range)).collect();
        let sent: Vec<usize> = pieces.iter().map(|pieces| 4 * own.len() * elements(pieces)).collect();
        let len = elements(&pieces[rank]);
        let received: Vec<usize> = all.iter().map(|subtrees| 4 * subtrees.len() * len).collect();
        send.resize(sent.iter().sum(), 0);
        receive.resize(received.iter().sum(), 0);
        let mut rest = &mut send[..];
        for (pieces, root) in pieces.iter().flat_map(|pieces| own.iter().map(move |root| (pieces, root))) {
            pieces.iter().for_each(|piece| write(take(&mut rest, 4 * piece.len), &root[piece.tensor][piece.range()]));
        }
        processes.all_to_all(&send, &sent, &mut receive, &received)?;
        let (mut tree, mut rest) = (Tree::default(), &receive[..]);
        for &(first, level) in all.iter().flatten() {
            let mut sum = vec![0.0; len];
            Bytes(rest.split_off(..4 * len).unwrap_or_default()).read(&mut sum);
            tree.push(Root { first, level, sum }, add)?;
        }
        sums.extend(tree.finish(add)?.unwrap_or_default());
    }
    let mut rest = &sums[..];
    let pieces = division.pieces[rank].iter();
    Ok(pieces.map(|piece| rest.split_off(..piece.len).unwrap_or_default().to_vec()).collect())
}

fn add(mut a: Vec<f32>, b: Vec<f32>) -> Result<Vec<f32>> {
    for_each_chunk(&mut a, CHUNK, |i, a| a.iter_mut().zip(&b[i * CHUNK..]).for_each(|(a, b)| *a += b));
    Ok(a)
}

/// Gives the numbers of all processes to `put`, piece by piece: of this process those of its pieces are `own`.
pub(crate) fn all_gather(
    processes: &dyn Processes,
    division: &Division,
    own: &[&[f32]],
    put: &mut dyn FnMut(Piece, Bytes) -> Result<()>,
) -> Result<()> {
    let (rank, count) = (processes.rank(), processes.count());
    let (mut send, mut all) = (vec![], vec![]);
    let places = &division.pieces[rank];
    for range in rounds(division, 1) {
        let pieces: Vec<Vec<Piece>> = (0..count).map(|rank| division.within(rank, &range)).collect();
        let received: Vec<usize> = pieces.iter().map(|pieces| 4 * elements(pieces)).collect();
        send.resize(received[rank], 0);
        all.resize(received.iter().sum(), 0);
        let mut rest = &mut send[..];
        for piece in &pieces[rank] {
            // A process has one piece of a tensor at most.
            let at = places.binary_search_by_key(&piece.tensor, |place| place.tensor).unwrap_or_default();
            let start = piece.start - places[at].start;
            write(take(&mut rest, 4 * piece.len), &own[at][start..start + piece.len]);
        }
        processes.all_gather(&send, &mut all, &received)?;
        let mut rest = &all[..];
        for piece in pieces.concat() {
            put(piece, Bytes(rest.split_off(..4 * piece.len).unwrap_or_default()))?;
        }
    }
    Ok(())
}
