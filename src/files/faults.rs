//! Simulated faults for tests: a killed process, a full disk, a read-only disk, a transient error.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::ControlFlow;

use super::Change;
use super::power::Made;

/// What goes wrong, at which change on disk, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// The process is killed before this change.
    Killed(u64),
    /// The process is killed in the middle of this change.
    Torn(u64),
    /// From this change on the disk is full.
    Full(u64),
    /// Only this change fails, before it has any effect.
    Once(u64),
    /// Every change fails.
    ReadOnly,
}

#[derive(Default)]
struct State {
    fault: Option<Fault>,
    available: Option<u64>,
    changes: u64,
    made: Option<Vec<Made>>,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

/// Runs `work` with a fault on this thread; also gives the number of changes that it attempted.
pub(crate) fn with<T>(fault: Option<Fault>, work: impl FnOnce() -> T) -> (T, u64) {
    STATE.replace(State { fault, ..State::default() });
    let result = work();
    (result, STATE.take().changes)
}

/// Runs `work` on a disk that reports `bytes` of free space.
pub(crate) fn with_available_space<T>(bytes: u64, work: impl FnOnce() -> T) -> T {
    STATE.replace(State { available: Some(bytes), ..State::default() });
    let result = work();
    STATE.take();
    result
}

/// The number of changes so far.
pub(crate) fn changes() -> u64 {
    STATE.with_borrow(|state| state.changes)
}

/// Runs `work`, and gives the changes that it made.
pub(crate) fn recorded(work: impl FnOnce()) -> Vec<Made> {
    STATE.replace(State { made: Some(Vec::new()), ..State::default() });
    work();
    STATE.take().made.unwrap_or_default()
}

pub(super) fn available_space() -> Option<u64> {
    STATE.with_borrow(|state| state.available)
}

/// Lets the fault strike if `change` is its target; breaks if the change can be skipped.
pub(super) fn strike(change: Change) -> io::Result<ControlFlow<()>> {
    let (fault, n) = STATE.with_borrow_mut(|state| {
        state.changes += 1;
        if let Some(made) = &mut state.made {
            made.push(Made::of(change));
        }
        (state.fault, state.changes - 1)
    });
    match fault {
        Some(Fault::Torn(at)) if n == at => {
            half(change)?;
            Err(io::Error::other("killed"))
        }
        Some(Fault::Killed(at) | Fault::Torn(at)) if n >= at => Err(io::Error::other("killed")),
        Some(Fault::Full(at)) if n >= at && needs_space(change) => {
            half(change)?;
            Err(io::ErrorKind::StorageFull.into())
        }
        Some(Fault::Once(at)) if n == at => Err(io::Error::other("input/output error")),
        Some(Fault::ReadOnly) => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        // Syncing is slow, and makes no difference to a process that is killed.
        Some(_) if matches!(change, Change::SyncFile(_) | Change::SyncFolder(_)) => Ok(ControlFlow::Break(())),
        _ => Ok(ControlFlow::Continue(())),
    }
}

fn needs_space(change: Change) -> bool {
    use Change::{Copy, CreateFolder, Link, Write, WriteAt};
    matches!(change, CreateFolder(_) | Write(..) | Copy { .. } | Link { .. } | WriteAt { .. })
}

/// Makes half of a change that has parts.
fn half(change: Change) -> io::Result<()> {
    match change {
        Change::Write(path, bytes) => Change::Write(path, &bytes[..bytes.len() / 2]).apply_to_disk(),
        Change::WriteAt { file, path, at, bytes } => {
            Change::WriteAt { file, path, at, bytes: &bytes[..bytes.len() / 2] }.apply_to_disk()
        }
        Change::Copy { from, to } => {
            let mut content = Vec::new();
            File::open(from)?.take(fs::metadata(from)?.len() / 2).read_to_end(&mut content)?;
            fs::write(to, content)
        }
        Change::RemoveFolder(path) => match fs::read_dir(path)?.next() {
            Some(entry) if entry.as_ref().is_ok_and(|entry| entry.path().is_file()) => fs::remove_file(entry?.path()),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}
