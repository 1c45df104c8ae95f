//! The kernels of attention, on slices: tile by tile, with memory linear in the number of positions.
//!
//! One head of keys and values is copied into the layouts that the products of tiles need, tile by tile as they are
//! needed, and serves all query heads that share it. Each of these is processed in tiles of [`TILE`] queries and keys.
//! Forward keeps two numbers a query, from which backward recomputes the weights of a tile, as in FlashAttention (Dao et
//! al. 2022, arXiv:2205.14135).
//! Tiles in which nothing is visible are never computed, and of the others only the blocks that some query sees.

mod backward;
mod bias;
mod decode;
mod forward;
mod gradients;
mod pack;
mod parallel;
mod softmax;
mod softmax_backward;
mod tile;

use std::ops::Range;

use crate::cpu::micro_gemm::GROUP;

pub(super) use bias::BiasShape;
#[cfg(feature = "lm")]
pub(super) use decode::forward_into as one_query;
pub(super) use gradients::{Place, Results, backward, sink_gradient};
pub(super) use pack::RowLayout;
pub(super) use parallel::{Dense, Heads, Sizes, View, forward};
pub(super) use softmax::RowStats;

/// Queries, and keys, in a tile: its scores stay in the L1 cache.
pub(super) const TILE: usize = 64;

/// A range, cut at multiples of [`TILE`].
pub(super) fn tiles(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    let start = if range.is_empty() { end } else { range.start / TILE * TILE };
    (start..end).step_by(TILE).map(move |start| start..end.min(start + TILE))
}

/// Queries (T) and keys (S) of a sequence, channels of queries and keys (D) and of values (E).
#[derive(Clone, Copy)]
pub(super) struct Dims {
    pub(super) t: usize,
    pub(super) s: usize,
    pub(super) d: usize,
    pub(super) e: usize,
}

/// Channels, rounded up to whole groups.
fn padded(channels: usize) -> usize {
    channels.next_multiple_of(GROUP)
}
