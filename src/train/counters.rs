//! What a run has counted so far.

use serde::{Deserialize, Serialize};

/// What a run has counted so far: part of its state, so that a resumed run skips and stops where the whole would.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Counters {
    /// Bad steps skipped.
    pub skipped: u64,
    /// Bad steps skipped since the last good one.
    pub skipped_in_a_row: u64,
    /// Validations since that of the lowest loss.
    pub without_improvement: u64,
}
