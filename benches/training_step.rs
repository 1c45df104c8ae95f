//! Milliseconds of a training step, and how near they come to the arithmetic alone.
//!
//!     cargo bench --bench training_step
//!
//! The arithmetic: 6 * (weights of the matrix products, a tied head counted once) * B * T, and 7 * L * B * T^2 * C for
//! causal attention, at the rate that `gemm` reaches on large matrices on all threads in the same run.

use std::time::Instant;

use candle_attention::model::ModelConfig;
use candle_attention::text::Corpus;
use candle_attention::train::{TrainOptions, Trainer};
use candle_core::{Device, Result};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    // SAFETY: nothing else runs yet. candle's own pool would spin beside the shards.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    // Without `--bench`, which `cargo bench` passes, it is run once as a test.
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let cpu = ModelConfig::gpt2(65);
    let baby = ModelConfig {
        context_len: 256,
        embed_dim: 384,
        num_layers: 6,
        num_heads: 6,
        hidden_dim: 1536,
        ..ModelConfig::gpt2(65)
    };
    let rate = if is_bench { gemm_rate(1024, 20) } else { gemm_rate(64, 1) };
    println!("gemm, {} threads: {:.0} GFLOP/s", rayon::current_num_threads(), rate / 1e9);
    println!("                         median ms   p10 ms  tokens/s  GFLOP/s  of the arithmetic limit");
    for (name, config, batch_size, steps) in
        [("A: 4L 4H 128C T64 B12", &cpu, 12, 60), ("B: 6L 6H 384C T256 B8", &baby, 8, 7)]
    {
        let mut times = step_times(config, batch_size, if is_bench { steps } else { 1 })?;
        times.sort_by(f64::total_cmp);
        let (median, p10) = (times[times.len() / 2], times[times.len() / 10]);
        let (tokens, flops) = ((batch_size * config.context_len) as f64, flops(config, batch_size));
        println!(
            "{name:24} {:9.1} {:8.1} {:9.0} {:8.0} {:11.0} %",
            median * 1e3,
            p10 * 1e3,
            tokens / median,
            flops / median / 1e9,
            100.0 * flops / rate / median
        );
        if !is_bench {
            break;
        }
    }
    Ok(())
}

/// Seconds of each of some training steps on random ids, after some that are not counted.
fn step_times(config: &ModelConfig, batch_size: usize, steps: usize) -> Result<Vec<f64>> {
    let ids: Vec<u32> = (0..100_000u64).map(|i| (i * i % 9973 % 65) as u32).collect();
    let corpus = Corpus {
        train: ids,
        validation: vec![],
        train_bytes: 100_000,
        validation_bytes: 0,
        fingerprint: String::new(),
    };
    let options = TrainOptions { batch_size, ..Default::default() };
    let mut trainer = Trainer::new(config, &options, corpus, &Device::Cpu)?;
    for _ in 0..steps.div_ceil(6) {
        trainer.train_step()?;
    }
    (0..steps)
        .map(|_| {
            let begun = Instant::now();
            trainer.train_step()?;
            Ok(begun.elapsed().as_secs_f64())
        })
        .collect()
}

/// Multiplications and additions of a step.
fn flops(config: &ModelConfig, batch_size: usize) -> f64 {
    let matrices =
        config.parameters().into_iter().filter(|(name, shape)| shape.len() == 2 && !name.starts_with("position"));
    let weights: usize = matrices.map(|(_, shape)| shape[0] * shape[1]).sum();
    let (b, t, c, l) =
        (batch_size as f64, config.context_len as f64, config.embed_dim as f64, config.num_layers as f64);
    6.0 * weights as f64 * b * t + 7.0 * l * b * t * t * c
}

/// Multiplications and additions a second of products of matrices of `n` by `n`, the best of some.
fn gemm_rate(n: usize, repeats: usize) -> f64 {
    let (a, b) = (vec![1f32; n * n], vec![1f32; n * n]);
    let mut c = vec![0f32; n * n];
    let stride = n as isize;
    let parallelism = gemm::Parallelism::Rayon(rayon::current_num_threads());
    let mut best = f64::INFINITY;
    for _ in 0..repeats {
        let begun = Instant::now();
        // SAFETY: all three are whole matrices of n rows of n elements.
        unsafe {
            gemm::gemm(
                n,
                n,
                n,
                c.as_mut_ptr(),
                1,
                stride,
                false,
                a.as_ptr(),
                1,
                stride,
                b.as_ptr(),
                1,
                stride,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
        best = best.min(begun.elapsed().as_secs_f64());
    }
    2.0 * (n * n * n) as f64 / best
}
