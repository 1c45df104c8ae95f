//! Peak memory and time, forward and backward, of operations that must not hold everything at once: attention over
//! 32768 positions; attention composed of candle's operations over 8192, in chunks and with all weights at once; and a
//! linear layer with cross-entropy over 32768 classes, fused, as two operations, and with
//! candle-nn.
//!
//!     cargo bench -p candle-attention --bench memory
//!
//! Each side is a process of its own; its peak is Linux's `VmHWM`, so other systems only get times. In the second
//! table, memory is counted from what the process holds once its inputs exist.

use anyhow::{Context, Result, bail};
use candle_attention::ops;
use candle_core::{Device, Module, Tensor, Var};
use candle_nn::Linear;

#[path = "../attn/src/allocator.rs"]
mod allocator;

mod support {
    pub mod args;
    pub mod contest;
    pub mod peer;
    pub mod status;
    pub mod timing;
}
use support::{args, contest::Contest, peer, status::mebibytes, timing};

/// B, T, H, D of attention, and of that composed in `f64`; N, C, V of the linear layer with cross-entropy.
const LONG: [usize; 4] = [1, 32768, 8, 64];
const COMPOSED: [usize; 4] = [1, 8192, 1, 64];
const WIDE: [usize; 3] = [4096, 384, 32768];

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    if let Some(side) = peer::served_side() {
        return serve(&side);
    }
    let (is_bench, _) = args::read();
    let (long, composed, [n, c, v], rounds) = match is_bench {
        true => (LONG, COMPOSED, WIDE, 3),
        false => ([1, 7, 2, 3], [1, 7, 2, 3], [7, 3, 5], 1),
    };

    let [b, t, h, d] = long;
    let mut contest = Contest::default();
    contest.enter("fused", peer::this_bench(&format!("attention {b} {t} {h} {d}"))?)?;
    contest.ask("once", 1)?;
    contest.print_head(&format!("causal attention, B {b} H {h} D {d} T {t}"));
    contest.print_row("forward and backward, ms", 0);
    contest.print_row("peak of the process, MiB", 1);
    println!();

    let [b, t, h, d] = composed;
    let mut contest = Contest::default();
    contest.enter("in chunks", peer::this_bench(&format!("chunks {b} {t} {h} {d}"))?)?;
    contest.enter("with all weights", peer::this_bench(&format!("weights {b} {t} {h} {d}"))?)?;
    contest.ask("once", 1)?;
    contest.print_head(&format!("causal attention in f64, composed, B {b} H {h} D {d} T {t}"));
    contest.print_row("forward and backward, ms", 0);
    contest.print_row("peak of the process, MiB", 1);
    println!();

    let mut contest = Contest::default();
    contest.enter("fused", peer::this_bench(&format!("fused {n} {c} {v}"))?)?;
    contest.enter("two operations", peer::this_bench(&format!("unfused {n} {c} {v}"))?)?;
    let mut candle_nn = peer::this_bench(&format!("composed {n} {c} {v}"))?;
    // candle's pool as users of candle-nn have it.
    candle_nn.env("CANDLE_NUM_THREADS", peer::threads().to_string());
    contest.enter("candle-nn", candle_nn)?;
    contest.ask("once", rounds)?;
    contest.print_head(&format!("linear and cross-entropy, N {n} C {c} V {v}"));
    contest.print_row("forward and backward, ms", 0);
    contest.print_row("peak above the inputs, MiB", 2);
    Ok(())
}

/// Answers as the side: with milliseconds of forward and backward, the peak so far, and the part of it above the
/// inputs.
fn serve(side: &str) -> Result<()> {
    let (name, sizes) = side.split_once(' ').context("expected a side and its sizes")?;
    let sizes = sizes.split(' ').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    match (name, &sizes[..]) {
        ("attention", &[b, t, h, d]) => {
            let [q, k, v] = [input(&[b, t, h, d])?, input(&[b, t, h, d])?, input(&[b, t, h, d])?];
            let options = ops::AttentionOptions::default();
            measure(|| ops::attention(&q, &k, &v, &options))
        }
        (_, &[b, t, h, d]) => {
            let input = || Var::randn(0f64, 0.1f64, (b, t, h, d), &Device::Cpu);
            let (q, k, v, options) = (input()?, input()?, input()?, ops::AttentionOptions::default());
            match name {
                "chunks" => measure(|| ops::attention(&q, &k, &v, &options)),
                _ => measure(|| Ok(ops::attention_with_weights(&q, &k, &v, &options)?.0)),
            }
        }
        (_, &[n, channels, classes]) => {
            let (xs, weight) = (input(&[n, channels])?, input(&[classes, channels])?);
            let targets: Vec<u32> = (0..n).map(|i| (i * i % classes) as u32).collect();
            let targets = Tensor::from_vec(targets, n, &Device::Cpu)?;
            let options = ops::CrossEntropyOptions::default();
            match name {
                "fused" => measure(|| ops::linear_cross_entropy(&xs, &weight, None, &targets, &options)),
                "unfused" => measure(|| ops::cross_entropy(&ops::linear(&xs, &weight, None)?, &targets, &options)),
                _ => measure(|| {
                    let logits = Linear::new(weight.as_tensor().clone(), None).forward(&xs)?;
                    candle_nn::loss::cross_entropy(&logits, &targets)
                }),
            }
        }
        _ => bail!("expected sizes, got {side:?}"),
    }
}

fn input(shape: &[usize]) -> Result<Var> {
    Ok(Var::randn(0f32, 0.1f32, shape, &Device::Cpu)?)
}

/// Answers with the time and memory of `forward` and its backward pass.
fn measure(forward: impl Fn() -> candle_core::Result<Tensor>) -> Result<()> {
    let held = mebibytes("VmRSS");
    peer::serve(|_| {
        let ms = timing::ms(|| forward()?.backward())?;
        let peak = mebibytes("VmHWM");
        Ok(vec![ms, peak, peak - held])
    })
}
