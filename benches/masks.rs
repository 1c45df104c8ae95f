//! What masks cost: attention in `f32` with each kind of mask, beside causal attention in the same run.
//!
//!     cargo bench -p candle-attention --bench masks
//!
//! Masks take turns, round by round; a ratio is the median over the rounds of a mask's time divided by that of causal
//! attention. A mask is worth its keep if that is not above the share of (query, key) pairs that it leaves visible, times
//! what is read for it.

use anyhow::Result;
use candle_attention::ops::{AttentionOptions, KeyPadding, Mask, attention};
use candle_core::{Device, Result as CandleResult, Tensor, Var};

#[path = "../attn/src/allocator.rs"]
mod allocator;

mod support {
    pub mod args;
    pub mod timing;
}
use support::{args, timing};

/// Documents in a sequence, and keys of a window.
const DOCUMENTS: usize = 16;
const WINDOW: usize = 128;

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    let (is_bench, _) = args::read();
    let (rounds, [b, h, t, d]) = if is_bench { (15, [2, 8, 1024, 64]) } else { (1, [2, 2, 32, 5]) };
    let input = || Var::randn(0f32, 1f32, (b, t, h, d), &Device::Cpu);
    let tracked = [input()?, input()?, input()?];
    let constant = tracked.each_ref().map(|var| var.as_detached_tensor());
    let masks = masks([b, h, t])?;
    let mut times = vec![[vec![], vec![]]; masks.len()];
    for _ in 0..rounds {
        for ((_, _, options), times) in masks.iter().zip(&mut times) {
            let of = |[q, k, v]: [&Tensor; 3]| attention(q, k, v, options);
            times[0].push(timing::ms(|| of(constant.each_ref()))?);
            times[1].push(timing::ms(|| of(tracked.each_ref().map(|var| var.as_tensor()))?.backward())?);
        }
    }
    println!("B {b} H {h} T {t} D {d}\n");
    println!("| mask | pairs | forward ms | ratio | forward and backward ms | ratio |\n|---|---|---|---|---|---|");
    for ((name, pairs, _), [forward, both]) in masks.iter().zip(&times) {
        let cells = [(forward, &times[0][0]), (both, &times[0][1])].map(|(own, causal)| {
            let ratios = own.iter().zip(causal).map(|(own, causal)| own / causal).collect();
            format!("{:.3} | {:.2}", timing::median(own.clone()), timing::median(ratios))
        });
        println!("| {name} | {:.2} | {} | {} |", pairs / masks[0].1, cells[0], cells[1]);
    }
    Ok(())
}

/// Each kind of mask for sequences of `t` positions, with the share of all pairs that it leaves visible.
fn masks([b, h, t]: [usize; 3]) -> CandleResult<Vec<(&'static str, f64, AttentionOptions)>> {
    let numbers: Vec<u32> = (0..b * t).map(|i| (i % t * DOCUMENTS / t) as u32).collect();
    let documents = Some(Tensor::from_vec(numbers, (b, t), &Device::Cpu)?);
    let below: Vec<u8> = (0..t * t).map(|i| u8::from(i % t <= i / t)).collect();
    let allowed = Some(Tensor::from_vec(below, (t, t), &Device::Cpu)?);
    let bias = Tensor::randn(0f32, 1f32, (1, h, t, t), &Device::Cpu)?;
    let tracked = Var::from_tensor(&bias)?.as_tensor().clone();
    let padding = |padding| Mask { key_padding: Some(padding), ..Mask::causal() };
    let share = WINDOW as f64 / t as f64;
    let masks = [
        ("causal", 0.5, Mask::causal()),
        ("full", 1.0, Mask::full()),
        ("window of 128", share, Mask::window(WINDOW)),
        ("prefix of 128", 0.5, Mask::prefix(WINDOW)),
        ("16 documents", 0.5 / DOCUMENTS as f64, Mask { documents: documents.clone(), ..Mask::causal() }),
        ("16 documents in a window of 128", 0.5 / DOCUMENTS as f64, Mask { documents, ..Mask::window(WINDOW) }),
        ("a quarter of padding on the left", 0.28, padding(KeyPadding::Left(vec![t - t / 4; b]))),
        ("a quarter of padding on the right", 0.47, padding(KeyPadding::Right(vec![t - t / 4; b]))),
        ("linear bias", 0.5, Mask { alibi: Some(Mask::alibi_slopes(h)), ..Mask::causal() }),
        ("dense set, causal", 0.5, Mask { allowed, ..Mask::full() }),
        ("bias (1, H, T, S)", 0.5, Mask { bias: Some(bias), ..Mask::causal() }),
        ("tracked bias (1, H, T, S)", 0.5, Mask { bias: Some(tracked), ..Mask::causal() }),
    ];
    Ok(masks.map(|(name, pairs, mask)| (name, pairs, AttentionOptions { mask, ..Default::default() })).to_vec())
}
