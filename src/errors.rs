//! Errors inside errors.

use candle_core::Error;

/// The error without the backtrace that candle appends to its text when `RUST_BACKTRACE` is set: what to put inside
/// another error's message.
pub(crate) fn bare(error: &Error) -> &Error {
    match error {
        Error::WithBacktrace { inner, .. } => bare(inner),
        error => error,
    }
}
