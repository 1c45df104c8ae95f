//! Causal attention composed from candle's differentiable operations.

use candle_core::{D, Device, Result, Tensor};

/// The weighted sums (B, T, H, D) of `v`, for `q`, `k` and `v` of (B, T, H, D) and `mask` from [`causal_mask`].
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let by_head = |x: &Tensor| x.transpose(1, 2)?.contiguous(); // (B, H, T, D)
    let (q, k, v) = (by_head(q)?, by_head(k)?, by_head(v)?);
    let scale = 1.0 / (q.dim(3)? as f64).sqrt();
    let scores = (q.matmul(&k.t()?)? * scale)?.broadcast_add(mask)?; // (B, H, T, T)
    candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&v)?.transpose(1, 2)
}

/// (T, T): minus infinity where the key comes after the query.
pub fn causal_mask(t: usize) -> Result<Tensor> {
    let term = |i: usize| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 };
    Tensor::from_vec((0..t * t).map(term).collect(), (t, t), &Device::Cpu)
}
