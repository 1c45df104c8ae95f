//! Causal attention in `f32`, forward and backward, compared with torch's `scaled_dot_product_attention` in the same
//! run.
//!
//!     CANDLE_ATTENTION_PYTHON=venv/bin/python cargo bench -p candle-attention --bench attention
//!
//! Without the variable there is no torch column. If `CANDLE_ATTENTION_OTHER_BUILD` is set to the program of this bench
//! built with other flags, it adds a column.
//!
//! A turn is the median of 7 runs after 2 uncounted ones, a figure the median of the turns. Each side gets its usual
//! layout: (B, T, H, D) here, (B, H, T, D) in torch. Forward keeps no graph; backward starts from ones. The limit is
//! the time of the matrix products over the allowed half of the positions, two forward and five backward, at the rate
//! that `gemm` reaches on large matrices.

use anyhow::{Context, Result};
use candle_attention::ops::{AttentionOptions, attention};
use candle_core::{Device, Result as CandleResult, Var};

#[path = "../attn/src/allocator.rs"]
mod allocator;

mod support {
    pub mod args;
    pub mod arithmetic;
    pub mod contest;
    pub mod peer;
    pub mod rivals;
    pub mod timing;
}
use support::{args, arithmetic, contest::Contest, peer, rivals, timing};

/// B, H, T, D, and turns.
const SHAPES: [([usize; 4], usize); 6] = [
    ([12, 4, 64, 32], 15),
    ([8, 6, 256, 64], 15),
    ([4, 8, 512, 64], 9),
    ([2, 8, 1024, 64], 5),
    ([1, 8, 2048, 64], 5),
    ([1, 8, 4096, 64], 3),
];

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    match peer::served_side().as_deref() {
        Some("limit") => return peer::serve(|question| limit(shape(question)?)),
        Some(_) => return peer::serve(|question| measure(shape(question)?)),
        None => {}
    }
    let (is_bench, _) = args::read();
    let shapes: &[_] = if is_bench { &SHAPES } else { &[([2, 3, 7, 5], 1)] };

    let mut contest = Contest::default();
    contest.enter("candle-attention", peer::this_bench("ours")?)?;
    contest.enter("arithmetic limit", peer::this_bench("limit")?)?;
    if let Some(command) = rivals::other_build("ours") {
        contest.enter("other build", command)?;
    }
    if let Some(command) = rivals::python("torch_attention.py") {
        contest.enter("torch", command)?;
    }
    contest.print_head("ms");
    for &([b, h, t, d], turns) in shapes {
        contest.ask(&format!("{b} {h} {t} {d}"), turns)?;
        contest.print_row(&format!("B {b} H {h} T {t} D {d} forward"), 0);
        contest.print_row(&format!("B {b} H {h} T {t} D {d} forward and backward"), 1);
    }
    Ok(())
}

fn shape(question: &str) -> Result<[usize; 4]> {
    let sizes = question.split(' ').map(str::parse).collect::<Result<Vec<_>, _>>()?;
    sizes.try_into().ok().context("expected B, H, T and D")
}

/// Milliseconds of forward, and of forward and backward.
fn measure([b, h, t, d]: [usize; 4]) -> Result<Vec<f64>> {
    let input = || Var::randn(0f32, 1f32, (b, t, h, d), &Device::Cpu);
    let (q, k, v) = (input()?, input()?, input()?);
    let options = AttentionOptions::default();
    let [constant_q, constant_k, constant_v] = [&q, &k, &v].map(|var| var.as_detached_tensor());
    Ok(vec![
        median_ms(|| attention(&constant_q, &constant_k, &constant_v, &options))?,
        median_ms(|| attention(&q, &k, &v, &options)?.backward())?,
    ])
}

fn median_ms<T>(mut work: impl FnMut() -> CandleResult<T>) -> CandleResult<f64> {
    for _ in 0..2 {
        work()?;
    }
    Ok(timing::median((0..7).map(|_| timing::ms(&mut work)).collect::<CandleResult<_>>()?))
}

fn limit([b, h, t, d]: [usize; 4]) -> Result<Vec<f64>> {
    // Over all positions it would be twice as much.
    let product = (b * h * t * t * d) as f64;
    Ok(vec![arithmetic::limit_ms(2.0 * product), arithmetic::limit_ms(7.0 * product)])
}
