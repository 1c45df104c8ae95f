//! The speed of this machine, for the sizes that a time affords.

use std::time::{Duration, Instant};

use anyhow::Result;
use candle_attention::ops;
use candle_core::{DType, Device, Tensor};

/// The floating-point operations per second of a product of matrices on all threads, with whatever else runs now:
/// (4096, 256) times (256, 256), of the shape of those in training, repeated for a tenth of a second.
pub fn flops() -> Result<f64> {
    const TIME: Duration = Duration::from_millis(100);
    const ROWS: usize = 4096;
    const DIM: usize = 256;
    let ones = |rows: usize| Tensor::ones((rows, DIM), DType::F32, &Device::Cpu);
    let (inputs, weight) = (ones(ROWS)?, ones(DIM)?);
    // The first gets memory, and wakes the threads.
    ops::linear(&inputs, &weight, None)?;
    let (started, mut products) = (Instant::now(), 0);
    while started.elapsed() < TIME {
        ops::linear(&inputs, &weight, None)?;
        products += 1;
    }
    Ok(f64::from(products) * (2 * ROWS * DIM * DIM) as f64 / started.elapsed().as_secs_f64())
}
