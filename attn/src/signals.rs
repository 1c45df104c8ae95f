//! Ctrl-C and other requests to stop: during training the first one finishes the step and saves, another one after a
//! second exits at once.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use candle_attention::train::RunDir;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::terminal::{end, note};

/// What the program is doing when a signal arrives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stage {
    /// There is nothing to keep.
    Nothing,
    /// There is a run that can be resumed, and nothing is changing it.
    Saved,
    /// The run is being trained.
    Training,
    /// The run is complete and saved.
    Complete,
}

struct State {
    stage: Stage,
    /// The folder of a run that is being created, with nothing in it to keep, and whether it is new itself.
    unfinished: Option<(PathBuf, bool)>,
    /// The signal that asked last, and when.
    request: Option<(i32, Instant)>,
}

static STATE: Mutex<State> = Mutex::new(State { stage: Stage::Nothing, unfinished: None, request: None });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    /// From here on a signal finds this stage, and removes no folder.
    pub fn enter(self) {
        let mut state = state();
        (state.stage, state.unfinished) = (self, None);
    }
}

/// Creates the folder of a run; a signal before the next stage removes what is in it of an unfinished run.
pub fn create<T, E>(folder: &Path, create: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    // Locked all the while: a signal finds a folder that it can remove, or none.
    let mut state = state();
    let is_new = !folder.exists();
    let created = create()?;
    state.unfinished = Some((folder.to_path_buf(), is_new));
    Ok(created)
}

/// Waits for the end of the process if a signal is ending it: what fails meanwhile is not to be told.
pub fn wait_for_end() {
    drop(state());
}

/// The exit code of a run that a signal has stopped, if one has: 128 and the signal's number.
pub fn exit_code() -> Option<u8> {
    state().request.map(|(signal, _)| (128 + signal) as u8)
}

/// From here on SIGINT, SIGTERM and SIGHUP are handled: outside training they end the process at once. SIGHUP stays
/// ignored if it was, as under nohup.
pub fn listen() -> Result<()> {
    let received = Arc::new(AtomicUsize::new(0));
    let mut signals = vec![SIGINT, SIGTERM];
    #[cfg(unix)]
    if !is_hangup_ignored() {
        signals.push(signal_hook::consts::SIGHUP);
    }
    // SAFETY: it may be ignored at any time. A file beyond the limit of its size is then an error like any other.
    #[cfg(unix)]
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN)
    };
    for signal in signals {
        signal_hook::flag::register_usize(signal, received.clone(), signal as usize)
            .context("cannot listen for signals")?;
    }
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let signal = received.swap(0, Ordering::SeqCst) as i32;
            if signal != 0 {
                stop(signal);
            }
        }
    })?;
    Ok(())
}

/// What a signal does, on a thread of its own.
fn stop(signal: i32) {
    /// The time in which a repeated signal is the same request: a closing terminal sends two, as does `timeout`.
    const SAME_REQUEST: Duration = Duration::from_secs(1);
    let mut state = state();
    if state.request.is_some_and(|(_, at)| at.elapsed() < SAME_REQUEST) {
        return;
    }
    let is_first = state.request.replace((signal, Instant::now())).is_none();
    if state.stage == Stage::Training && is_first {
        drop(state);
        note("stopping after this step, to save the run; once more to exit at once");
        return;
    }
    let message = match state.stage {
        Stage::Nothing => "stopped; nothing was saved",
        Stage::Saved => "stopped; the run can be resumed from its last checkpoint",
        Stage::Training => "stopped at once; the run can be resumed from its last checkpoint",
        Stage::Complete => "stopped; the run is complete and saved",
    };
    if let Some((root, is_new)) = &state.unfinished {
        // Another thread may still be writing files into it.
        const TRIES: usize = 50;
        (0..TRIES).any(|_| RunDir::remove_unfinished(root, *is_new));
    }
    // The state stays locked: from here on the creation of a run cannot be completed.
    end(&format!("\n{message}"), 128 + signal);
}

#[cfg(unix)]
fn is_hangup_ignored() -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: with a null action the call changes nothing and fills `action`, which is read only where it succeeded.
    unsafe {
        libc::sigaction(libc::SIGHUP, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
