//! Ctrl-C and other requests to stop: during training the first one finishes the step and saves, the second one exits
//! at once.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use anyhow::{Context, Result};
use candle_attention::text::remove_temporary_files;
use candle_attention::train::remove_unfinished_runs;

use super::terminal::note;

/// The exit code of a process that a signal has stopped.
const STOPPED: i32 = 130;

/// What a signal finds.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
pub enum Stage {
    /// There is nothing to keep.
    Nothing,
    /// The folder of a new run is being created.
    Creating,
    /// There is a run that can be resumed, and nothing is changing it.
    Saved,
    /// The run is being trained.
    Training,
    /// The run is complete and saved.
    Complete,
}

static STAGE: AtomicU8 = AtomicU8::new(Stage::Nothing as u8);
static IS_ASKED_TO_STOP: AtomicBool = AtomicBool::new(false);

impl Stage {
    /// From here on a signal finds this stage.
    pub fn enter(self) {
        STAGE.store(self as u8, Ordering::SeqCst);
    }

    fn now() -> Self {
        let stage = STAGE.load(Ordering::SeqCst);
        let all = [Self::Nothing, Self::Creating, Self::Saved, Self::Training, Self::Complete];
        all.into_iter().find(|&known| known as u8 == stage).unwrap_or(Self::Nothing)
    }
}

/// From here on SIGINT, SIGTERM and SIGHUP are handled: outside training they end the process at once. SIGHUP stays
/// ignored if it was, as under nohup.
pub fn listen() -> Result<()> {
    #[cfg(unix)]
    let ignores_hangup = hangup::is_ignored();
    #[cfg(unix)]
    file_size::ignore();
    ctrlc::set_handler(stop).context("cannot listen for Ctrl-C")?;
    #[cfg(unix)]
    if ignores_hangup {
        hangup::ignore();
    }
    Ok(())
}

/// The handler of a signal, on a thread of its own.
fn stop() {
    let stage = Stage::now();
    let is_first = !IS_ASKED_TO_STOP.swap(true, Ordering::SeqCst);
    if stage == Stage::Training && is_first {
        note("stopping after this step, to save the run; once more to exit at once");
        return;
    }
    remove_temporary_files();
    remove_unfinished_runs();
    let (message, code) = match stage {
        Stage::Nothing => ("stopped, with nothing saved", STOPPED),
        Stage::Creating => ("stopped before training began", STOPPED),
        Stage::Saved => ("stopped; the run can be resumed from its last checkpoint", STOPPED),
        Stage::Training => ("stopped at once; the run can be resumed from its last checkpoint", STOPPED),
        Stage::Complete => ("stopped; the run is complete and saved", 0),
    };
    note(&format!("\n{message}"));
    std::process::exit(code);
}

/// Whether there was a signal.
pub fn is_asked_to_stop() -> bool {
    IS_ASKED_TO_STOP.load(Ordering::SeqCst)
}

/// ctrlc handles SIGHUP even where it is ignored; this keeps it ignored.
#[cfg(unix)]
mod hangup {
    pub fn is_ignored() -> bool {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: with a null action the call changes nothing and fills `action`, which is read only where it
        // succeeded.
        unsafe {
            libc::sigaction(libc::SIGHUP, std::ptr::null(), action.as_mut_ptr()) == 0
                && action.assume_init().sa_sigaction == libc::SIG_IGN
        }
    }

    pub fn ignore() {
        // SAFETY: SIG_IGN installs no handler, so no code can run in a signal context.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    }
}

/// Ignored, so that exceeding the limit on file sizes is an error, like a full disk.
#[cfg(unix)]
mod file_size {
    pub fn ignore() {
        // SAFETY: SIG_IGN installs no handler, so no code can run in a signal context.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    }
}
