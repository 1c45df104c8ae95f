//! Attention composed of candle's own differentiable operations: the specification, for any dtype and device.

use candle_core::{D, Result, Tensor};

use super::AttentionOptions;
use crate::cpu::random::DropoutOptions;
use crate::cpu::storage::{nothing_of, precise};

/// See [`super::attention_with_weights`]; the arguments have been checked.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<(Tensor, Tensor)> {
    let (b, t, h, d) = q.dims4()?;
    let (_, s, _, e) = v.dims4()?;
    if [q, k, v].iter().any(|tensor| tensor.elem_count() == 0) {
        // Zeros with zero gradients; candle's maximum over nothing would be an error.
        let nothing = (nothing_of(q)? + nothing_of(k)? + nothing_of(v)?)?;
        return Ok((nothing.broadcast_as((b, t, h, e))?, nothing.broadcast_as((b, h, t, s))?));
    }

    // In half precision, sums would stop growing at a few hundred.
    let (dtype, precise) = (q.dtype(), precise(q.dtype()));
    let (q, k, v) = (q.to_dtype(precise)?, k.to_dtype(precise)?, v.to_dtype(precise)?);

    let q = (q * options.scale.factor(d))?;
    let q = q.transpose(1, 2)?.contiguous()?; // (B, H, T, D)
    let k = for_each_query_head(&k, h)?; // (B, H, S, D)
    let v = for_each_query_head(&v, h)?; // (B, H, S, E)

    let scores = q.matmul(&k.t()?)?; // (B, H, T, S)
    let scores = match options.softcap {
        Some(cap) => ((scores / cap)?.tanh()? * cap)?,
        None => scores,
    };
    let scores = match options.mask.additive([b, t, s], scores.dtype(), scores.device())? {
        Some(mask) => scores.broadcast_add(&mask)?,
        None => scores,
    };
    let weights = softmax(&scores)?; // (B, H, T, S)
    let kept = match &options.dropout {
        Some(dropout) if dropout.rate > 0.0 => (&weights * dropout_factors(dropout, &weights)?)?,
        _ => weights.clone(),
    };
    let out = kept.matmul(&v)?.transpose(1, 2)?; // (B, T, H, E)
    Ok((out.to_dtype(dtype)?, weights.to_dtype(dtype)?))
}

/// The factors of dropout on the weights (B, H, T, S).
fn dropout_factors(options: &DropoutOptions, weights: &Tensor) -> Result<Tensor> {
    let (_, h, t, s) = weights.dims4()?;
    let (factors, first_stream) = (options.factors()?, options.first_sequence.wrapping_mul(h as u64));
    let mut values = vec![0f32; weights.elem_count()];
    for (row, values) in values.chunks_exact_mut(s).enumerate() {
        factors.fill(first_stream.wrapping_add((row / t) as u64), ((row % t) as u64) << 32, values);
    }
    Tensor::from_vec(values, weights.shape(), weights.device())?.to_dtype(weights.dtype())
}

/// (B, S, G, D) to (B, H, S, D): each head repeated for every query head that uses it.
fn for_each_query_head(xs: &Tensor, h: usize) -> Result<Tensor> {
    let (b, s, g, d) = xs.dims4()?;
    let xs = xs.transpose(1, 2)?.unsqueeze(2)?; // (B, G, 1, S, D)
    xs.broadcast_as((b, g, h / g, s, d))?.reshape((b, h, s, d))?.contiguous()
}

/// Softmax over the last dimension; a row of only minus infinities gives zeros.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    // Shifting a row does not change its softmax, so the maximum is a constant, without a gradient.
    let max = scores.detach().max_keepdim(D::Minus1)?;
    let max = max.eq(f64::NEG_INFINITY)?.where_cond(&max.zeros_like()?, &max)?;
    let numerators = scores.broadcast_sub(&max)?.exp()?;
    let sums = numerators.sum_keepdim(D::Minus1)?;
    // Where nothing is allowed, every numerator is 0, so any divisor but 0 gives zeros.
    let empty = sums.eq(0.0)?.to_dtype(sums.dtype())?;
    numerators.broadcast_div(&(sums + empty)?)
}
