//! What holds for every operation.

mod properties;
mod same_bits;
