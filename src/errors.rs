//! Errors inside errors, and several in one.

use candle_core::Error;

/// The error without the backtrace that candle appends to its text when `RUST_BACKTRACE` is set: what to put inside
/// another error's message.
pub(crate) fn bare(error: &Error) -> &Error {
    match error {
        Error::WithBacktrace { inner, .. } => bare(inner),
        error => error,
    }
}

/// Faults that are named one by one.
#[cfg(feature = "lm")]
const NAMED: usize = 12;

/// Faults as one line, and how many more there are than it names.
#[cfg(feature = "lm")]
pub(crate) fn listed(faults: &[String]) -> String {
    let (named, rest) = faults.split_at(faults.len().min(NAMED));
    let more = if rest.is_empty() { String::new() } else { format!("; and {} more", rest.len()) };
    format!("{}{more}", named.join("; "))
}
