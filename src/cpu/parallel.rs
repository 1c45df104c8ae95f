//! How many threads an operation uses.
//!
//! By default, an operation splits its work over rayon's threads. Inside [`sequential`] it stays on the calling thread,
//! so that several can run side by side, for instance one for each shard of a batch: that scales better than splitting
//! many small operations.

use std::cell::Cell;
use std::thread::LocalKey;

use rayon::prelude::*;

thread_local! {
    static SEQUENTIAL: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with every operation of this module confined to the calling thread.
///
/// ```
/// use candle_attention::ops;
/// use candle_core::{DType, Device, Tensor};
///
/// let xs = Tensor::ones((3, 5), DType::F32, &Device::Cpu)?;
/// let ys = ops::sequential(|| ops::gelu_erf(&xs))?;
/// assert_eq!(ys.dims(), [3, 5]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn sequential<R>(work: impl FnOnce() -> R) -> R {
    with_flag(&SEQUENTIAL, work)
}

/// Runs `work` with a flag of this thread set.
pub(crate) fn with_flag<R>(flag: &'static LocalKey<Cell<bool>>, work: impl FnOnce() -> R) -> R {
    /// Restores the previous value, even if `work` panics.
    struct Restore(&'static LocalKey<Cell<bool>>, bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(flag, flag.replace(true));
    work()
}

/// The number of threads that an operation may use here.
pub(crate) fn threads() -> usize {
    if SEQUENTIAL.get() { 1 } else { rayon::current_num_threads() }
}

/// Calls `work` with the index and content of each chunk of `len` elements of `out` (the last may be shorter).
pub(crate) fn for_each_chunk<T: Send>(out: &mut [T], len: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    if threads() == 1 {
        out.chunks_mut(len).enumerate().for_each(|(i, chunk)| work(i, chunk));
    } else {
        out.par_chunks_mut(len).enumerate().for_each(|(i, chunk)| sequential(|| work(i, chunk)));
    }
}

/// Calls `work` with the index and content of each pair of chunks of two outputs, given with their chunk lengths.
pub(crate) fn for_each_chunk_pair<A: Send, B: Send>(
    (a, a_len): (&mut [A], usize),
    (b, b_len): (&mut [B], usize),
    work: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    if threads() == 1 {
        a.chunks_mut(a_len).zip(b.chunks_mut(b_len)).enumerate().for_each(|(i, (a, b))| work(i, a, b));
    } else {
        let pairs = a.par_chunks_mut(a_len).zip(b.par_chunks_mut(b_len));
        pairs.enumerate().for_each(|(i, (a, b))| sequential(|| work(i, a, b)));
    }
}

/// Jobs for each thread: few enough that their states cost little, and enough that all threads finish at about the same
/// time.
const JOBS: usize = 4;

/// As [`for_each_chunk`], with a state, for instance buffers, that `init` makes once for many chunks.
pub(crate) fn for_each_chunk_with<T: Send, W>(
    out: &mut [T],
    len: usize,
    init: impl Fn() -> W + Sync + Send,
    work: impl Fn(&mut W, usize, &mut [T]) + Sync + Send,
) {
    if threads() == 1 {
        let mut state = init();
        out.chunks_mut(len).enumerate().for_each(|(i, chunk)| work(&mut state, i, chunk));
    } else {
        let few = out.len().div_ceil(len).div_ceil(JOBS * threads());
        let chunks = out.par_chunks_mut(len).enumerate().with_min_len(few);
        chunks.for_each_init(init, |state, (i, chunk)| sequential(|| work(state, i, chunk)));
    }
}

/// Calls `work` for `0..n`, with a state that `init` makes once for many calls.
pub(crate) fn for_each_with<W>(
    n: usize,
    init: impl Fn() -> W + Sync + Send,
    work: impl Fn(&mut W, usize) + Sync + Send,
) {
    if threads() == 1 {
        let mut state = init();
        (0..n).for_each(|i| work(&mut state, i));
    } else {
        let few = n.div_ceil(JOBS * threads());
        (0..n).into_par_iter().with_min_len(few).for_each_init(init, |state, i| sequential(|| work(state, i)));
    }
}

/// Calls `work` with the index and value of each item.
#[cfg(feature = "lm")]
pub(crate) fn for_each<T: Send>(items: &mut [T], work: impl Fn(usize, &mut T) + Sync) {
    if threads() == 1 {
        items.iter_mut().enumerate().for_each(|(i, item)| work(i, item));
    } else {
        items.par_iter_mut().enumerate().for_each(|(i, item)| sequential(|| work(i, item)));
    }
}

/// Calls `work` with each item, starting them in order: if the most expensive come first, all threads finish at about
/// the same time.
pub(crate) fn for_each_in_order<T: Send>(items: &mut [T], work: impl Fn(&mut T) + Sync) {
    if threads() == 1 {
        items.iter_mut().for_each(work);
    } else {
        let work = &work;
        rayon::scope_fifo(|scope| {
            for item in items {
                scope.spawn_fifo(move |_| sequential(|| work(item)));
            }
        });
    }
}

/// The results of `work` for `0..n`, in order.
pub(crate) fn map<R: Send>(n: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
    if threads() == 1 {
        (0..n).map(work).collect()
    } else {
        (0..n).into_par_iter().map(|i| sequential(|| work(i))).collect()
    }
}
