//! Counters of a run.

use serde::{Deserialize, Serialize};

/// Counters that are part of a run's state, so that a resumed run skips and stops where an uninterrupted one would.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Counters {
    /// Bad steps skipped.
    pub skipped: u64,
    /// Bad steps skipped since the last good one.
    pub skipped_in_a_row: u64,
    /// Validations since the one with the lowest loss.
    pub without_improvement: u64,
}
