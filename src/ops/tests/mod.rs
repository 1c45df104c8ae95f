//! Tests of all operations alike.

mod properties;
mod same_bits;
