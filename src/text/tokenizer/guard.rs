//! Protection against what a third-party `tokenizer.json` can make the library do.

use crate::host::{Result, caught};

/// The result of `work`, which calls the library, or what it said in a panic.
///
/// In many places the library unwraps what it finds in a `tokenizer.json` (unknown tokens, bytes of a character map,
/// lengths of pieces), on opening it or later with some text. Nothing is reused after a panic: if opening fails there is
/// no tokenizer, and calls on an open one change nothing but caches of results.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    caught(work).map_err(|message| format!("expected a tokenizer that the library can use, but it fails: {message}"))
}
