//! Tests of all operations alike.

mod bf16;
mod properties;
mod row_sums;
mod same_bits;
mod second_derivatives;
