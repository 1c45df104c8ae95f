//! What moves weights along their gradients: [`adamw`] and [`muon`], one step on one variable each; [`Schedule`]s of the
//! learning rate, [`clip_factor`], and [`moving_average`].
//!
//! They work on the variables of any candle model.

mod adamw;
mod cautious;
mod clip;
mod moving_average;
mod muon;
#[cfg(feature = "lm")]
mod optimizer;
mod schedule;

pub use adamw::{AdamWStep, Moments, adamw};
pub use cautious::Cautious;
pub use clip::{clip_factor, global_norm};
pub use moving_average::moving_average;
pub use muon::{MuonStep, muon};
#[cfg(feature = "lm")]
pub(crate) use optimizer::{Group, Optimizer, Rates, Rule};
pub use schedule::{LrSchedule, Schedule};
