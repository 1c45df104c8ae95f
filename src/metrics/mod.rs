//! The metrics of a run, one JSON object per line, and what is derived from them.
//!
//! `metrics.jsonl` is the source of truth. The loss plot and the event file for TensorBoard are derived from its lines,
//! and rewritten at the start of every session, so that they agree with it after a crash as well.

mod charts;
mod history;
mod line;
mod plot;
mod tensorboard;

pub(crate) use charts::{Charts, PLOT};
pub use history::{History, Series};
pub use line::{Line, lines};
