//! Protection against what a third-party `tokenizer.json` can make the library do.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::host::Result;

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// The result of `work`, which calls the library, or what it said in a panic.
///
/// In many places the library unwraps what it finds in a `tokenizer.json` (unknown tokens, bytes of a character map,
/// lengths of pieces), on opening it or later with some text. Nothing is reused after a panic: if opening fails there is
/// no tokenizer, and calls on an open one change nothing but caches of results.
///
/// The panic is still printed to standard error by the process's panic hook; see [`hide_caught_panics`].
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let was_guarded = IS_GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(was_guarded);
    result.map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        format!("expected a tokenizer that the library can use, but it fails: {message}")
    })
}

/// Keeps panics of the tokenizers library that become errors from being printed. Other panics go to the panic hook that
/// was installed before, on every thread.
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
    fn a_panic_of_the_library_is_an_error() {
        hide_caught_panics();
        let error = guarded(|| -> u32 { panic!("index {}", 7) }).unwrap_err();
        assert!(error.ends_with("but it fails: index 7"), "{error}");
        assert_eq!(guarded(|| 3).unwrap(), 3);
        assert!(!IS_GUARDED.get());
    }
}
