//! The team of threads under loom, which runs a test once for each order in which threads may read and write, up to a
//! number of preemptions:
//!
//!     RUSTFLAGS="--cfg loom" cargo test --release --locked --manifest-path tests/loom/Cargo.toml --target-dir target/loom
#![cfg(all(test, candle_attention_loom))]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};

#[path = "../../src/cpu/team.rs"]
mod team;
use team::Team;

/// Pieces that are written without a lock: loom reports two threads at one, or one left when the caller reads it.
struct Whole {
    next: AtomicUsize,
    pieces: Vec<UnsafeCell<usize>>,
}

// SAFETY: of the pieces each is taken once, and `expect_done` is called when nobody works any more; loom checks both.
unsafe impl Sync for Whole {}

impl Whole {
    fn new(n: usize) -> Self {
        Self { next: AtomicUsize::new(0), pieces: (0..n).map(|_| UnsafeCell::new(0)).collect() }
    }

    fn work(&self) {
        while let Some(piece) = self.pieces.get(self.next.fetch_add(1, Relaxed)) {
            // SAFETY: as for `Sync`.
            piece.with_mut(|piece| unsafe { *piece += 1 });
        }
    }

    fn expect_done(&self) {
        // SAFETY: as for `Sync`.
        self.pieces.iter().for_each(|piece| piece.with(|piece| assert_eq!(unsafe { *piece }, 1)));
    }
}

/// Runs a region of so many pieces with so many helpers.
fn run(team: &Team, helpers: usize, pieces: usize) {
    let whole = Whole::new(pieces);
    team.run(helpers, &|| whole.work());
    whole.expect_done();
}

fn in_every_order(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 10_000;
    model.check(test);
}

#[test]
fn a_worker_helps_in_one_region_after_another() {
    in_every_order(3, || {
        let team = Team::new();
        (0..2).for_each(|_| run(&team, 1, 2));
    });
}

#[test]
fn two_workers_share_a_region() {
    in_every_order(2, || run(&Team::new(), 2, 2));
}

#[test]
fn a_second_caller_works_alone() {
    in_every_order(2, || {
        let team = Arc::new(Team::new());
        let other = team.clone();
        let other = loom::thread::spawn(move || run(&other, 1, 2));
        run(&team, 1, 2);
        other.join().unwrap();
    });
}

#[test]
fn a_panic_reaches_the_caller_when_all_have_left() {
    in_every_order(3, || {
        let (team, whole, calls) = (Team::new(), Whole::new(2), AtomicUsize::new(0));
        let panicking = || {
            whole.work();
            if calls.fetch_add(1, Relaxed) == 0 {
                resume_unwind(Box::new("a reason"));
            }
        };
        let panic = catch_unwind(AssertUnwindSafe(|| team.run(1, &panicking))).unwrap_err();
        assert_eq!(*panic.downcast::<&str>().unwrap(), "a reason");
        whole.expect_done();
        run(&team, 1, 2);
    });
}
