//! Ctrl-C and requests to terminate: the first one lets training finish its step and save, the second leaves at once.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use candle_attention::text::remove_temporary_files;

use super::terminal::note;

/// The exit code of a process that a signal has stopped before it was done.
const STOPPED: i32 = 130;

/// Whether there is training to be saved.
static IS_TRAINING: AtomicBool = AtomicBool::new(false);
/// Whether all there is to save is saved.
static IS_WHOLE: AtomicBool = AtomicBool::new(false);
static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP are listened to: without training to be saved they leave at once. A SIGHUP
/// that is ignored, as under nohup, stays so.
pub fn listen() -> Result<()> {
    #[cfg(unix)]
    let ignores_hangup = hangup::is_ignored();
    #[cfg(unix)]
    file_size::ignore();
    ctrlc::set_handler(|| {
        if IS_WHOLE.load(Ordering::SeqCst) {
            note("\nstopped; the run is whole and saved");
            std::process::exit(0);
        }
        let is_first = !ASKED.swap(true, Ordering::SeqCst);
        let is_training = IS_TRAINING.load(Ordering::SeqCst);
        if !is_first || !is_training {
            remove_temporary_files();
            if !is_training {
                note("stopped, with nothing saved");
            }
            std::process::exit(STOPPED);
        }
        note("stopping after this step, to leave the run in good order; once more to leave at once");
    })
    .context("cannot listen for Ctrl-C")?;
    #[cfg(unix)]
    if ignores_hangup {
        hangup::ignore();
    }
    Ok(())
}

/// Runs `training`, which asks [`is_asked_to_stop`] from time to time.
pub fn while_training<T>(training: impl FnOnce() -> T) -> T {
    IS_TRAINING.store(true, Ordering::SeqCst);
    let result = training();
    IS_TRAINING.store(false, Ordering::SeqCst);
    result
}

/// From now on the run is whole and saved, and a signal ends the process in good order.
pub fn run_is_whole() {
    IS_WHOLE.store(true, Ordering::SeqCst);
}

/// Whether there was a signal.
pub fn is_asked_to_stop() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// What ctrlc does not do: it takes SIGHUP from whoever ignores it.
#[cfg(unix)]
mod hangup {
    pub fn is_ignored() -> bool {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: with a null action the call changes nothing and fills `action`, which is read only where it succeeded.
        unsafe {
            libc::sigaction(libc::SIGHUP, std::ptr::null(), action.as_mut_ptr()) == 0
                && action.assume_init().sa_sigaction == libc::SIG_IGN
        }
    }

    pub fn ignore() {
        // SAFETY: no handler of ours is installed, so none can do anything that is forbidden in one.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    }
}

/// Without its signal, a limit on the size of files is an error like that of a full disk.
#[cfg(unix)]
mod file_size {
    pub fn ignore() {
        // SAFETY: no handler of ours is installed, so none can do anything that is forbidden in one.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    }
}
