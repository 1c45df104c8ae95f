//! Milliseconds and their medians.

use std::time::Instant;

/// Milliseconds of `work`, including the drop of its result.
pub fn ms<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<f64, E> {
    let begun = Instant::now();
    drop(work()?);
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// The median; the higher of the two middle values of an even number, NaN of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
