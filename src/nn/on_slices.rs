//! Layers on slices, without a graph: what `forward` gives for a few rows of `f32` on the CPU, for decoding, where
//! tensors would take longer than the arithmetic.

use candle_core::{Result, Tensor};

use super::{LayerNorm, Linear, LoraLinear, Projection, RmsNorm, RotaryEmbedding};
use crate::cpu::few_rows::{self, Layer};
use crate::cpu::storage::{InOrder, values};
use crate::ops;

impl LayerNorm {
    /// `forward` of rows (rows, C).
    pub(crate) fn forward_rows(&self, ys: &mut [f32], xs: &[f32]) -> Result<()> {
        let (weight, bias) = (InOrder::of(self.weight())?, self.bias().map(InOrder::of).transpose()?);
        ops::norm_rows(ys, xs, [&weight, bias.as_deref().unwrap_or_default()], self.remove_mean(), self.eps());
        Ok(())
    }
}

impl RmsNorm {
    /// `forward` of rows (rows, C).
    pub(super) fn forward_rows(&self, ys: &mut [f32], xs: &[f32]) -> Result<()> {
        ops::norm_rows(ys, xs, [&InOrder::of(self.weight())?, &[]], false, self.eps());
        Ok(())
    }
}

impl RotaryEmbedding {
    /// `forward` of heads (H, D), all of whose channels are rotated, at one position.
    pub(super) fn forward_rows(&self, ys: &mut [f32], xs: &[f32], position: usize) -> Result<()> {
        let (cos, sin) = self.tables(position, 1)?; // (1, D/2)
        ops::rotary_rows(ys, xs, [&values(&cos)?, &values(&sin)?], self.pairs);
        Ok(())
    }
}

impl Projection {
    /// `forward` of `rows` rows on slices, without a graph: one to three projections of one input side by side are
    /// written to `out` (rows, N), or with `adds` added to it.
    pub(crate) fn forward_rows(all: &[&Self], out: &mut [f32], adds: bool, xs: &[f32], rows: usize) -> Result<()> {
        if adds && all.iter().any(|one| matches!(one, Self::Adapted(_))) {
            let mut ys = vec![0.0; out.len()];
            Self::forward_rows(all, &mut ys, false, xs, rows)?;
            out.iter_mut().zip(ys).for_each(|(out, y)| *out += y);
            return Ok(());
        }
        let mut bases = [all[0].base(); 3];
        bases.iter_mut().zip(all).for_each(|(base, one)| *base = one.base());
        linear_rows(&bases[..all.len()], out, adds, xs, rows)?;
        let (width, mut first) = (out.len() / rows, 0);
        for one in all {
            let n = one.base().weight().dim(0)?;
            if let Self::Adapted(lora) = one {
                let ys = lora.adapter_rows(xs, rows)?; // (rows, n)
                for (out, ys) in out.chunks_exact_mut(width).zip(ys.chunks_exact(n)) {
                    out[first..].iter_mut().zip(ys).for_each(|(out, y)| *out += y);
                }
            }
            first += n;
        }
        Ok(())
    }
}

impl LoraLinear {
    /// The adapter's output (rows, out) for `rows` rows on a slice, without a graph.
    fn adapter_rows(&self, xs: &[f32], rows: usize) -> Result<Vec<f32>> {
        let of = |weight: &Tensor, xs: &[f32]| -> Result<Vec<f32>> {
            let mut ys = vec![0.0; rows * weight.dim(0)?];
            linear_rows(&[&Linear::new(weight.clone(), None)], &mut ys, false, xs, rows)?;
            Ok(ys)
        };
        let mut down = of(self.a(), xs)?; // (rows, r)
        down.iter_mut().for_each(|x| *x *= self.scale() as f32);
        of(self.b(), &down)
    }
}

/// `forward` of `rows` rows on slices, without a graph: up to three layers of one input side by side are written to `out`
/// (rows, N), or with `adds` added to it.
fn linear_rows(layers: &[&Linear], out: &mut [f32], adds: bool, xs: &[f32], rows: usize) -> Result<()> {
    const MAX: usize = 3;
    let mut held = [const { None }; 2 * MAX];
    for (layer, held) in layers.iter().zip(held.as_chunks_mut().0) {
        *held = [Some(InOrder::of(layer.weight())?), layer.bias().map(InOrder::of).transpose()?];
    }
    let slice = |i: usize| held[i].as_deref().unwrap_or_default();
    let layers_of: [Layer; MAX] = std::array::from_fn(|i| Layer { weight: slice(2 * i), bias: slice(2 * i + 1) });
    few_rows::linear(out, adds, xs, rows, &layers_of[..layers.len()]);
    Ok(())
}
