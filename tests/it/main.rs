//! All integration tests in one binary: each link of one costs seconds.

mod chapter;
mod gradient_traps;
mod layer;
mod ops;
mod support;

#[cfg(feature = "cli")]
mod command;
#[cfg(feature = "lm")]
mod corpus;
#[cfg(feature = "lm")]
mod model;
#[cfg(feature = "lm")]
mod training;
