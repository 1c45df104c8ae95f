//! What the processes exchange in a step: slices of gradients, and of updated weights.

use std::convert::Infallible;
use std::ops::Range;

use candle_core::{Result, Tensor};

use super::division::Piece;
use super::tree::{Root, Tree, subtrees};
use super::{Division, Processes, share_of};
use crate::cpu::parallel::{CHUNK, for_each_chunk};
use crate::cpu::storage::{Values, values};
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

/// Ranges of the elements of all processes: in each, every process sends about [`together`] numbers.
fn rounds(division: &Division, copies: usize) -> impl Iterator<Item = Range<usize>> {
    let count = division.pieces.len();
    let longest = (0..count).map(|rank| division.len(rank)).max().unwrap_or_default();
    let len = (together(count) / (count * copies.max(1))).next_multiple_of(BLOCK);
    (0..longest).step_by(len).map(move |start| start..start + len)
}

/// Numbers that a process sends together: few enough to stay in a processor's cache, and for each other process enough for latency
/// to matter little. In tests every exchange has several rounds.
fn together(count: usize) -> usize {
    if cfg!(test) { BLOCK } else { (1 << 20).max(count << 16) }
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
    let in_order = all.concat();
    let contiguous = |root: &Root<Vec<Tensor>>| root.sum.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>();
    let own = own.iter().map(contiguous).collect::<Result<Vec<_>>>()?;
    let own = own.iter().map(|root| root.iter().map(values).collect()).collect::<Result<Vec<Vec<_>>>>()?;
    let mut sums: Vec<Vec<f32>> = division.pieces[rank].iter().map(|piece| vec![0.0; piece.len]).collect();
    let (mut send, mut receive) = (vec![], vec![]);
    for range in rounds(division, all.iter().map(Vec::len).max().unwrap_or_default()) {
        let pieces: Vec<Vec<Piece>> = (0..count).map(|rank| division.within(rank, &range)).collect();
        // What is for this process is there.
        let bytes =
            |roots: usize, to: usize, from: usize| if to == from { 0 } else { 4 * roots * elements(&pieces[to]) };
        let sent: Vec<usize> = (0..count).map(|to| bytes(own.len(), to, rank)).collect();
        let received: Vec<usize> = (0..count).map(|from| bytes(all[from].len(), rank, from)).collect();
        send.resize(sent.iter().sum(), 0);
        receive.resize(received.iter().sum(), 0);
        pack(&mut send, &own, &pieces, rank);
        processes.all_to_all(&send, &sent, &mut receive, &received)?;
        let parts = parts(&receive, &own, &all, &pieces[rank], rank);
        for (i, piece) in pieces[rank].iter().enumerate() {
            let at = place(division, rank, piece);
            let start = piece.start - division.pieces[rank][at].start;
            let of_piece: Vec<&Source> = parts.iter().map(|part| &part[i]).collect();
            add_up(&mut sums[at][start..start + piece.len], &in_order, &of_piece);
        }
    }
    Ok(sums)
}

/// Writes what the other processes add of the subtrees `own`: process by process, subtree by subtree, piece by piece.
fn pack(mut send: &mut [u8], own: &[Vec<Values<'_>>], pieces: &[Vec<Piece>], rank: usize) {
    for (_, pieces) in pieces.iter().enumerate().filter(|(to, _)| *to != rank) {
        for (root, piece) in own.iter().flat_map(|root| pieces.iter().map(move |piece| (root, piece))) {
            write(take(&mut send, 4 * piece.len), &root[piece.tensor][piece.range()]);
        }
    }
}

/// The numbers of each subtree of all processes, in their order, piece by piece; what others have [packed](pack) is `received`.
fn parts<'a>(
    mut received: &'a [u8],
    own: &'a [Vec<Values<'_>>],
    all: &[Vec<(usize, u32)>],
    pieces: &[Piece],
    rank: usize,
) -> Vec<Vec<Source<'a>>> {
    let mut parts = Vec::with_capacity(all.iter().map(Vec::len).sum());
    for (from, subtrees) in all.iter().enumerate() {
        for (i, _) in subtrees.iter().enumerate() {
            let part = pieces.iter().map(|piece| match from == rank {
                true => Source::Own(&own[i][piece.tensor][piece.range()]),
                false => Source::Received(Bytes(received.split_off(..4 * piece.len).unwrap_or_default())),
            });
            parts.push(part.collect());
        }
    }
    parts
}

/// Adds up the parts of these subtrees, each given by its first shard and its level, over the tree of all.
fn add_up(sums: &mut [f32], subtrees: &[(usize, u32)], parts: &[&Source]) {
    for_each_chunk(sums, CHUNK, |chunk, out| {
        let range = chunk * CHUNK..chunk * CHUNK + out.len();
        let mut tree = Tree::default();
        for (&(first, level), part) in subtrees.iter().zip(parts) {
            let Ok(()) = tree.push(Root { first, level, sum: part.values(&range) }, add);
        }
        let Ok(sum) = tree.finish(add);
        out.copy_from_slice(&sum.unwrap_or_default());
    });
}

/// Numbers of this process or of another.
enum Source<'a> {
    Own(&'a [f32]),
    Received(Bytes<'a>),
}

impl Source<'_> {
    fn values(&self, range: &Range<usize>) -> Vec<f32> {
        match self {
            Self::Own(values) => values[range.clone()].to_vec(),
            Self::Received(Bytes(bytes)) => {
                bytes.as_chunks().0[range.clone()].iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
            }
        }
    }
}

fn add(mut a: Vec<f32>, b: Vec<f32>) -> std::result::Result<Vec<f32>, Infallible> {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    Ok(a)
}

/// Where a process has the piece that this is a part of: it has one piece of a tensor at most.
fn place(division: &Division, rank: usize, piece: &Piece) -> usize {
    division.pieces[rank].binary_search_by_key(&piece.tensor, |place| place.tensor).unwrap_or_default()
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
    for range in rounds(division, 1) {
        let pieces: Vec<Vec<Piece>> = (0..count).map(|rank| division.within(rank, &range)).collect();
        let received: Vec<usize> = pieces.iter().map(|pieces| 4 * elements(pieces)).collect();
        send.resize(received[rank], 0);
        all.resize(received.iter().sum(), 0);
        let mut rest = &mut send[..];
        for piece in &pieces[rank] {
            let at = place(division, rank, piece);
            let start = piece.start - division.pieces[rank][at].start;
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
