//! What moves weights along their gradients: the optimizers [`AdamW`] and [`Muon`], with groups of parameters, clipping and
//! a state that is saved; below them [`adamw`] and [`muon`], one step on one variable each; [`LrSchedule`], [`clip_factor`]
//! and [`moving_average`].
//!
//! They work on the variables of any candle model.

mod adamw;
mod cautious;
mod clip;
mod group_optimizer;
mod moving_average;
mod muon;
mod optimizer;
mod schedule;

pub use adamw::{AdamWStep, Moments, adamw};
pub use cautious::Cautious;
#[cfg(feature = "lm")]
pub(crate) use clip::norm_of_all;
pub use clip::{clip_factor, global_norm};
pub use group_optimizer::{AdamW, GroupOptimizer, Hyperparameters, Muon, ParamGroup, ParamsAdamW, ParamsMuon};
pub use moving_average::moving_average;
pub use muon::{MuonStep, muon};
pub use optimizer::Rule;
pub(crate) use optimizer::{Group, Optimizer, Rates};
pub use schedule::{LrSchedule, Schedule};
