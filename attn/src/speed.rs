//! The speed of this machine, for the sizes that a time affords.

use std::time::{Duration, Instant};

use anyhow::Result;
use candle_attention::ops;
use candle_core::{DType, Device, Tensor};

/// The floating-point operations per second of a product of matrices on all threads, the fastest of those that fit into a
/// fifth of a second: (4096, 256) times (256, 256), of the shape of those in training.
pub fn flops() -> Result<f64> {
    const TIME: Duration = Duration::from_millis(150);
    const ROWS: usize = 4096;
    const DIM: usize = 256;
    let ones = |rows: usize| Tensor::ones((rows, DIM), DType::F32, &Device::Cpu);
    let (inputs, weight) = (ones(ROWS)?, ones(DIM)?);
    let (started, mut fastest) = (Instant::now(), f64::INFINITY);
    while started.elapsed() < TIME {
        let begun = Instant::now();
        ops::linear(&inputs, &weight, None)?;
        fastest = fastest.min(begun.elapsed().as_secs_f64());
    }
    Ok((2 * ROWS * DIM * DIM) as f64 / fastest)
}
