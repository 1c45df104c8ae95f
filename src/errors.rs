//! Helpers for error messages.

use candle_core::Error;

/// The error without the backtrace that candle appends to its text when `RUST_BACKTRACE` is set, for use inside another
/// error's message.
pub(crate) fn bare(error: &Error) -> &Error {
    match error {
        Error::WithBacktrace { inner, .. } => bare(inner),
        error => error,
    }
}

/// The most faults that are named one by one.
#[cfg(feature = "lm")]
const NAMED: usize = 12;

/// Faults as one line; of many, the first ones and how many more there are.
#[cfg(feature = "lm")]
pub(crate) fn listed(faults: &[String]) -> String {
    let (named, rest) = faults.split_at(faults.len().min(NAMED));
    let more = if rest.is_empty() { String::new() } else { format!("; and {} more", rest.len()) };
    format!("{}{more}", named.join("; "))
}
