//! What kernels stand on: vector instructions, matrix products, threads, random numbers, sums in a fixed order.
//!
//! Nothing here knows a formula of a layer. The modules are private to the crate; what users may call of them is
//! re-exported by [`ops`](crate::ops).

pub(crate) mod allocation;
pub(crate) mod checks;
pub(crate) mod elementwise;
pub(crate) mod few_rows;
pub(crate) mod matmul;
pub(crate) mod micro_gemm;
pub(crate) mod parallel;
pub(crate) mod random;
pub(crate) mod simd;
pub(crate) mod storage;
#[cfg_attr(not(feature = "lm"), allow(dead_code, reason = "only the trainer adds up gradients"))]
pub(crate) mod sums;
pub(crate) mod team;
pub(crate) mod tensor_file;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod transpose;
