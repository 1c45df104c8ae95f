//! What a run tells of itself, step by step: the metrics, one JSON object a line, and what is drawn from them.
//!
//! `metrics.jsonl` is the truth. The loss plot and the event file for TensorBoard are derived from its lines, anew at the
//! start of every session: after a crash they are again what the lines say.

mod charts;
mod history;
mod line;
mod plot;
mod tensorboard;

pub(crate) use charts::{Charts, PLOT};
pub use history::{History, Series};
pub use line::{Line, lines};
