//! The metrics of a run, one JSON object per line, and what is derived from them.
//!
//! `metrics.jsonl` is the source of truth. The loss plot and the event file for TensorBoard are derived from its lines,
//! and rewritten at the start of every session, so that they agree with it after a crash as well.

mod history;
mod line;
mod log;
mod plot;
mod tensorboard;

pub use history::{History, Points, thinned};
pub use line::{Line, lines};
pub(super) use log::Metrics;
