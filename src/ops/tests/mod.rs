//! Tests of all operations alike.

mod properties;
mod row_sums;
mod same_bits;
mod second_derivatives;
