//! A team of threads for regions of a few microseconds: between regions they wait a moment on the processor, then asleep.
//!
//! The caller of [`Team::run`] opens a region with some free seats, works itself, and closes it when its own part has
//! ended. A worker that sees a free seat takes it and does the same work. Free seats and workers inside are one word,
//! always changed as a whole: a worker that comes late, because it slept or was not scheduled, finds no seat, and the
//! caller waits for nobody but those that have taken one.
//!
//! Why not another's: rayon's threads are asleep between regions, and waking one takes longer than most regions here. Of
//! the pools that spin before they sleep, `micropool` (0.4) aborts the process if work panics, and the others were in
//! their beta, or wait for all threads to take part. `tests/loom` checks this file under a model of all schedules.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

#[cfg(candle_attention_loom)]
use loom::{sync, thread};
#[cfg(not(candle_attention_loom))]
use std::{sync, thread};

use sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize};
use sync::{Arc, Mutex};
use thread::Thread;

/// In the word: the number of workers inside.
const INSIDE: usize = (1 << 12) - 1;
/// In the word: set if the caller sleeps until the last worker has left.
const CALLER_SLEEPS: usize = 1 << 12;
/// In the word: set if workers are to end.
const END: usize = 1 << 13;
/// In the word: one free seat. The bits from here on are their number.
const SEAT: usize = 1 << 14;

/// Threads that wait for work. There are none until the first region.
pub(crate) struct Team {
    shared: Arc<Shared>,
    /// Locked while a region is open.
    crew: Mutex<Crew>,
}

/// What callers and workers share, apart from other data that changes.
#[repr(align(128))]
struct Shared {
    word: AtomicUsize,
    /// The region that is open or still has workers inside.
    region: AtomicPtr<Region<'static>>,
}

/// What is to be done, on the stack of the caller.
struct Region<'a> {
    work: &'a (dyn Fn() + Sync),
    /// The caller, once it sleeps.
    caller: Mutex<Option<Thread>>,
    /// What the first panic of a worker carries.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// The workers that have been started.
#[derive(Default)]
struct Crew {
    workers: Vec<Worker>,
    /// Whether another thread could not be started.
    is_full: bool,
}

struct Worker {
    thread: Thread,
    is_asleep: Arc<AtomicBool>,
}

impl Team {
    pub(crate) fn new() -> Self {
        let shared = Shared { word: AtomicUsize::new(0), region: AtomicPtr::new(std::ptr::null_mut()) };
        Self { shared: Arc::new(shared), crew: Mutex::new(Crew::default()) }
    }

    /// Calls `work` on this thread and at the same time on up to `helpers` others, each once.
    ///
    /// Others may come late or not at all, so `work` is to take pieces of a whole until none is left. Nobody helps while
    /// another region is open, or where threads cannot be started. A panic is resumed here after all calls have ended.
    pub(crate) fn run(&self, helpers: usize, work: &(dyn Fn() + Sync)) {
        let Ok(mut crew) = self.crew.try_lock() else { return work() };
        let helpers = crew.grow(helpers.min(INSIDE), &self.shared);
        let region = Region { work, caller: Mutex::new(None), panic: Mutex::new(None) };
        self.shared.region.store(std::ptr::from_ref(&region).cast_mut().cast(), Relaxed);
        self.shared.word.swap(helpers * SEAT, AcqRel);
        crew.wake(helpers);
        // A panic must not leave this function before the workers have left the region.
        let outcome = catch_unwind(AssertUnwindSafe(work));
        self.shared.close(&region);
        drop(crew);
        let panic = region.panic.into_inner().ok().flatten();
        if let Some(panic) = outcome.err().or(panic) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.word.fetch_or(END, AcqRel);
        if let Ok(crew) = self.crew.lock() {
            crew.wake(usize::MAX);
        }
    }
}

impl Crew {
    /// Starts workers until there are this many, and returns how many of them there are.
    fn grow(&mut self, wanted: usize, shared: &Arc<Shared>) -> usize {
        while self.workers.len() < wanted && !self.is_full {
            let is_asleep = Arc::new(AtomicBool::new(false));
            let (shared, its) = (shared.clone(), is_asleep.clone());
            let builder = thread::Builder::new().name("candle-attention".into());
            match builder.spawn(move || shared.serve(&its)) {
                Ok(handle) => self.workers.push(Worker { thread: handle.thread().clone(), is_asleep }),
                Err(_) => self.is_full = true,
            }
        }
        wanted.min(self.workers.len())
    }

    /// Wakes sleepers until this many workers are awake.
    fn wake(&self, wanted: usize) {
        let sleepers = || self.workers.iter().filter(|worker| worker.is_asleep.load(Relaxed));
        let awake = self.workers.len() - sleepers().count();
        for worker in sleepers().take(wanted.saturating_sub(awake)) {
            worker.is_asleep.store(false, Release);
            worker.thread.unpark();
        }
    }
}

impl Shared {
    /// The life of a worker.
    fn serve(&self, is_asleep: &AtomicBool) {
        loop {
            if !spin_until(|| self.word.load(Relaxed) >= END) {
                self.sleep(is_asleep);
            }
            let take_seat = |word: usize| (word >= SEAT).then(|| word - SEAT + 1);
            match self.word.fetch_update(AcqRel, Relaxed, take_seat) {
                // SAFETY: there was a free seat, so a region was open; its caller wrote the pointer before it opened it.
                // The pointer stays, and the region in its place on the stack, until the caller returns from `close`,
                // which waits for this worker to be counted out in `leave`.
                Ok(_) => self.visit(unsafe { &*self.region.load(Relaxed) }),
                Err(word) if word & END != 0 => return,
                Err(_) => {}
            }
        }
    }

    /// Sleeps until it is woken, unless there is something to do.
    fn sleep(&self, is_asleep: &AtomicBool) {
        is_asleep.store(true, Relaxed);
        // Reads by a change of the word, if to the same: either this comes after the change that opens a region and sees
        // its seats, or that one comes after this and its thread sees the flag.
        if self.word.fetch_or(0, AcqRel) >= END {
            is_asleep.store(false, Relaxed);
        }
        while is_asleep.load(Acquire) {
            thread::park();
        }
    }

    /// Works in a region, and is counted out of it.
    fn visit(&self, region: &Region) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(region.work))
            && let Ok(mut first) = region.panic.lock()
        {
            first.get_or_insert(panic);
        }
        let mut word = self.word.load(Acquire);
        loop {
            // Without the free seats: one leaves when nothing is left to do.
            let rest = word % SEAT - 1;
            let caller = match rest & (CALLER_SLEEPS | INSIDE) {
                CALLER_SLEEPS => region.caller.lock().ok().and_then(|caller| caller.clone()),
                _ => None,
            };
            match self.word.compare_exchange(word, rest, AcqRel, Acquire) {
                // The region may be gone.
                Ok(_) => return caller.into_iter().for_each(|caller| caller.unpark()),
                Err(now) => word = now,
            }
        }
    }

    /// Takes away the free seats, and waits until nobody is inside.
    fn close(&self, region: &Region) {
        let is_empty = || self.word.load(Acquire) & INSIDE == 0;
        if self.word.fetch_and(SEAT - 1, AcqRel) & INSIDE == 0 || spin_until(is_empty) {
            return;
        }
        if let Ok(mut caller) = region.caller.lock() {
            *caller = Some(thread::current());
        }
        self.word.fetch_or(CALLER_SLEEPS, AcqRel);
        while !is_empty() {
            thread::park();
        }
    }
}

/// Waits on the processor, first without and then with giving way to other threads; false if that took too long.
#[cfg(not(candle_attention_loom))]
fn spin_until(is_done: impl Fn() -> bool) -> bool {
    use std::time::{Duration, Instant};
    /// About as long as it takes to wake a thread: by then, sleeping would have cost the same.
    const WITHOUT_YIELDING: Duration = Duration::from_micros(50);
    /// Longer than what lies between the regions of a step, mostly.
    const TOO_LONG: Duration = Duration::from_micros(200);
    let begun = Instant::now();
    loop {
        for _ in 0..64 {
            if is_done() {
                return true;
            }
            std::hint::spin_loop();
        }
        match begun.elapsed() {
            waited if waited >= TOO_LONG => return false,
            waited if waited >= WITHOUT_YIELDING => thread::yield_now(),
            _ => {}
        }
    }
}

#[cfg(candle_attention_loom)]
fn spin_until(is_done: impl Fn() -> bool) -> bool {
    is_done()
}
