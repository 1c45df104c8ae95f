//! Faults that tests let strike at a chosen change on disk: a kill, a full disk, a transient error.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::Change;

/// What goes wrong, at which change, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// The process is killed before this change.
    Killed(usize),
    /// The process is killed in the middle of this change: half of what it adds to a file is there.
    Torn(usize),
    /// From this change on the disk is full.
    Full(usize),
    /// Only this change fails.
    Once(usize),
}

#[derive(Default)]
struct State {
    fault: Option<Fault>,
    made: Vec<(Change, PathBuf)>,
}

thread_local! {
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
}

/// Runs `work` on this thread with a fault; also gives the changes that it attempted, in order.
pub(crate) fn with<T>(fault: Option<Fault>, work: impl FnOnce() -> T) -> (T, Vec<(Change, PathBuf)>) {
    STATE.replace(Some(State { fault, made: Vec::new() }));
    let result = work();
    (result, STATE.take().unwrap_or_default().made)
}

/// Makes a change, unless the fault strikes.
pub(crate) fn gate(change: Change, path: &Path, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let noted = STATE.with_borrow_mut(|state| {
        let state = state.as_mut()?;
        state.made.push((change, path.to_path_buf()));
        Some((state.fault, state.made.len() - 1))
    });
    let Some((fault, n)) = noted else { return make() };
    match fault {
        Some(Fault::Torn(at)) if n == at && change == Change::Write => {
            half(path, make).and(Err(io::Error::other("killed")))
        }
        Some(Fault::Killed(at) | Fault::Torn(at)) if n >= at => Err(io::Error::other("killed")),
        Some(Fault::Full(at)) if n >= at && change == Change::Write => {
            half(path, make).and(Err(io::ErrorKind::StorageFull.into()))
        }
        Some(Fault::Full(at)) if n >= at && change == Change::CreateFolder => Err(io::ErrorKind::StorageFull.into()),
        Some(Fault::Once(at)) if n == at => Err(io::Error::other("input/output error")),
        // Syncing is slow, and makes no difference to a process that is killed.
        Some(_) if matches!(change, Change::Sync | Change::SyncFolder) => Ok(()),
        _ => make(),
    }
}

/// Makes a change of which half of what it adds to the file remains.
fn half(path: &Path, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let before = std::fs::metadata(path).map_or(0, |found| found.len());
    make()?;
    let file = File::options().write(true).open(path)?;
    file.set_len((before + file.metadata()?.len()) / 2)
}
