//! Protection against libraries that panic on what they find in a file.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use super::Result;

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// The result of `work`, which calls a library, or what that said in a panic.
///
/// What `work` changes must not be used after a panic. The panic is still printed to standard error by the process's
/// panic hook; see [`hide_caught_panics`].
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let was_guarded = IS_GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(was_guarded);
    result.map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given").to_string()
    })
}

/// Keeps panics of the tokenizers library and of candle's GGUF reader that become errors from being printed. Other panics
/// go to the panic hook that was installed before, on every thread.
///
/// A panic hook belongs to the whole process, so this is for programs to call at their start, as `attn` does.
pub fn hide_caught_panics() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                before(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_library_is_an_error() {
        hide_caught_panics();
        let error = caught(|| -> u32 { panic!("index {}", 7) }).unwrap_err();
        assert_eq!(error, "index 7");
        assert_eq!(caught(|| 3).unwrap(), 3);
        assert!(!IS_GUARDED.get());
    }
}
