//! How many threads an operation uses.
//!
//! By default, an operation splits its work over a [team](super::team) of as many threads as rayon's current pool has.
//! Inside [`sequential`] it stays on the calling thread, so that several can run side by side, for instance one for each
//! shard of a batch: that scales better than splitting many small operations.
//!
//! Each thread takes the next item whenever it has finished one. A region costs less than a microsecond if the threads are
//! awake, and an item about a tenth of that, so items are worth it from some microseconds on.

use std::cell::Cell;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread::LocalKey;

use super::team::Team;

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

/// Elements of a chunk for work of about a nanosecond each or less: a few microseconds.
pub(crate) const CHUNK: usize = 8 * 1024;

static TEAM: LazyLock<Team> = LazyLock::new(Team::new);

/// The number of threads that an operation may use here.
pub(crate) fn threads() -> usize {
    if SEQUENTIAL.get() { 1 } else { rayon::current_num_threads() }
}

/// Calls `work` for each item, in order but at the same time, with a state that `init` makes once on each thread. A single
/// item may itself be split.
fn share<I, W>(items: I, init: impl Fn() -> W + Sync, work: impl Fn(&mut W, I::Item) + Sync)
where
    I: ExactSizeIterator + Send,
{
    let threads = if items.len() < 2 { 1 } else { threads().min(items.len()) };
    if threads == 1 {
        let mut state = None;
        return items.for_each(|item| work(state.get_or_insert_with(&init), item));
    }
    let items = Mutex::new(items);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    TEAM.run(threads - 1, &|| {
        sequential(|| {
            let mut state = None;
            while let Some(item) = next() {
                work(state.get_or_insert_with(&init), item);
            }
        });
    });
}

/// Calls `work` with each item, starting them in order: if the most expensive come first, all threads finish at about
/// the same time.
pub(crate) fn for_each<I: ExactSizeIterator + Send>(items: I, work: impl Fn(I::Item) + Sync) {
    share(items, || (), |(), item| work(item));
}

/// Calls `work` with the index and content of each chunk of `len` elements of `out` (the last may be shorter).
pub(crate) fn for_each_chunk<T: Send>(out: &mut [T], len: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    for_each(out.chunks_mut(len).enumerate(), |(i, chunk)| work(i, chunk));
}

/// Calls `work` with the index and content of each pair of chunks of two outputs, given with their chunk lengths.
pub(crate) fn for_each_chunk_pair<A: Send, B: Send>(
    (a, a_len): (&mut [A], usize),
    (b, b_len): (&mut [B], usize),
    work: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    for_each(a.chunks_mut(a_len).zip(b.chunks_mut(b_len)).enumerate(), |(i, (a, b))| work(i, a, b));
}

/// Calls `work` for `0..n`, with a state that `init` makes once on each thread.
pub(crate) fn for_each_with<W>(n: usize, init: impl Fn() -> W + Sync, work: impl Fn(&mut W, usize) + Sync) {
    share(0..n, init, work);
}

/// The results of `work` for `0..n`, in order.
pub(crate) fn map<R: Send>(n: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let mut results: Vec<Option<R>> = (0..n).map(|_| None).collect();
    for_each(results.iter_mut().enumerate(), |(i, result)| *result = Some(work(i)));
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;
    use std::thread;

    fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
    }

    #[test]
    fn every_item_is_done_once_on_any_number_of_threads() {
        for (threads, n) in [1, 2, 5].into_iter().flat_map(|threads| [0, 1, 2, 7, 1000].map(|n| (threads, n))) {
            on_threads(threads, || {
                assert_eq!(map(n, |i| 3 * i), (0..n).map(|i| 3 * i).collect::<Vec<_>>());
                let mut out = vec![0; n];
                for_each_chunk(&mut out, 3, |i, chunk| chunk.iter_mut().for_each(|x| *x += i + 1));
                assert_eq!(out, (0..n).map(|i| i / 3 + 1).collect::<Vec<_>>());
                let mut other = vec![0; n.div_ceil(3)];
                for_each_chunk_pair((&mut out, 3), (&mut other, 1), |_, out, sum| sum[0] += out.iter().sum::<usize>());
                assert_eq!(other.iter().sum::<usize>(), out.iter().sum::<usize>());
                let states = Mutex::new(HashSet::new());
                let init = || states.lock().unwrap().insert(thread::current().id());
                for_each_with(n, init, |_, _| assert_eq!(super::threads() == 1, threads == 1 || n > 1));
                let states = states.into_inner().unwrap().len();
                assert!(states <= threads.min(n) && (states > 0) == (n > 0), "{states} states on {threads} threads");
            });
        }
    }

    /// Each waits inside a region for the others: with fewer than all threads it would not end.
    #[test]
    fn all_threads_take_part() {
        let team = Team::new();
        for threads in [2, 5, 3] {
            let (barrier, inside) = (Barrier::new(threads), Mutex::new(HashSet::new()));
            team.run(threads - 1, &|| {
                barrier.wait();
                inside.lock().unwrap().insert(thread::current().id());
            });
            assert_eq!(inside.into_inner().unwrap().len(), threads);
        }
    }

    #[test]
    fn a_region_inside_a_region_stays_on_its_thread() {
        on_threads(3, || {
            let threads = map(7, |_| map(5, |_| thread::current().id()));
            assert!(threads.iter().all(|inner| inner.iter().all(|id| *id == inner[0])));
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        on_threads(3, || {
            for bad in [0, 50, 99] {
                let work = || map(100, |i| assert_ne!(i, bad, "a bad item"));
                let panic = catch_unwind(AssertUnwindSafe(work)).unwrap_err();
                assert!(panic.downcast::<String>().unwrap().contains("a bad item"));
                assert_eq!(map(100, |i| i).len(), 100);
            }
        });
    }

    /// One of them has the team, the others work alone.
    #[test]
    fn callers_do_not_disturb_one_another() {
        thread::scope(|scope| {
            for caller in 0..5 {
                let rounds = move || {
                    for round in 0..1000 {
                        let expected = (0..50).map(|i| i + round * caller).collect::<Vec<_>>();
                        assert_eq!(map(50, |i| i + round * caller), expected);
                    }
                };
                scope.spawn(move || on_threads(3, rounds));
            }
        });
    }
}
