//! The time of the multiplications and additions alone.

use std::time::Instant;

/// Rows and columns of matrices large enough for `gemm`'s highest rate.
const N: usize = 1024;

/// Products that are timed, after one that is not.
const PRODUCTS: usize = 8;

/// Milliseconds of this many floating-point operations at the rate that `gemm` now reaches on large matrices and all
/// threads, in the best of several products.
#[allow(dead_code)]
pub fn limit_ms(flops: f64) -> f64 {
    flops * times().into_iter().fold(f64::INFINITY, f64::min)
}

/// The same in the mean of several products: for what is a mean itself, over longer than the machine keeps its speed.
#[allow(dead_code)]
pub fn mean_limit_ms(flops: f64) -> f64 {
    flops * times().iter().sum::<f64>() / PRODUCTS as f64
}

/// Milliseconds of an operation, of each of several products.
fn times() -> Vec<f64> {
    let (a, b, mut c) = (vec![1f32; N * N], vec![1f32; N * N], vec![0f32; N * N]);
    let mut time = || {
        let begun = Instant::now();
        multiply(&mut c, &a, &b);
        begun.elapsed().as_secs_f64() * 1e3 / (2.0 * (N * N * N) as f64)
    };
    time();
    std::iter::repeat_with(time).take(PRODUCTS).collect()
}

/// `c = a b`.
fn multiply(c: &mut [f32], a: &[f32], b: &[f32]) {
    let stride = N as isize;
    let threads = gemm::Parallelism::Rayon(rayon::current_num_threads());
    let (c, a, b) = (c.as_mut_ptr(), a.as_ptr(), b.as_ptr());
    // SAFETY: all three are matrices of N rows of N elements.
    unsafe {
        gemm::gemm(N, N, N, c, 1, stride, false, a, 1, stride, b, 1, stride, 0.0, 1.0, false, false, false, threads);
    }
}
