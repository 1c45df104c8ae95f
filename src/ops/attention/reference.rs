//! Attention composed of candle's own differentiable operations: the specification, for any dtype and device, for a
//! block of queries and the keys that they may see.

use std::ops::Range;

use candle_core::{D, DType, Device, Result, Tensor};

use super::AttentionOptions;
use super::structure::{Sequence, Structure};
use crate::cpu::random::DropoutOptions;

/// What a call computes, with its tensors in the dtype of the computation.
#[derive(Clone)]
pub(super) struct Composed {
    pub(super) options: AttentionOptions,
    pub(super) structure: Structure,
    /// Of any shape that broadcasts to (B, H, T, S).
    pub(super) bias: Option<Tensor>,
    /// Whether queries, keys and values are finite, and their products too. If not, products must leave out what is
    /// hidden, because 0 times NaN is NaN.
    pub(super) is_tame: bool,
}

/// The results for some queries.
pub(super) struct Block {
    /// (B, T, H, E)
    pub(super) out: Tensor,
    /// (B, H, T, S), before dropout
    pub(super) weights: Tensor,
    /// (B, H, T)
    pub(super) lse: Tensor,
}

impl Composed {
    /// The results for the queries of a range, `q` (B, T, H, D), and the keys of another, `k` (B, S, G, D) and `v`
    /// (B, S, G, E), with `sinks` (H).
    pub(super) fn block(
        &self,
        q: &Tensor,
        [k, v]: [&Tensor; 2],
        sinks: Option<&Tensor>,
        (queries, keys): (Range<usize>, Range<usize>),
    ) -> Result<Block> {
        let (b, t, h, d) = q.dims4()?;
        let s = keys.len();
        let (dtype, device) = (q.dtype(), q.device());

        // As a tensor: candle cuts the gradient of a product with the number 0.
        let scale = constant(self.options.scale.factor(d), dtype, device)?;
        let q = q.transpose(1, 2)?.broadcast_mul(&scale)?.contiguous()?; // (B, H, T, D)
        let k = repeat_kv(k, h)?; // (B, H, S, D)
        let v = repeat_kv(v, h)?; // (B, H, S, E)
        let bias = self.bias.as_ref().map(|bias| part(bias, &queries, &keys)).transpose()?;
        let visible = self.visible(bias.as_ref(), [b, h], &queries, &keys, device)?; // (B, H, T, S)
        let hidden_products = visible.as_ref().filter(|_| !self.is_tame);

        let products = match hidden_products {
            None => q.matmul(&k.t()?)?, // (B, H, T, S)
            Some(visible) => {
                let k = only(visible, &k)?; // (B, H, T, S, D)
                q.unsqueeze(3)?.broadcast_mul(&k)?.sum(D::Minus1)?
            }
        };
        let scores = self.scores(products, [bias.as_ref(), visible.as_ref()], &queries, &keys)?; // (B, H, T, S)
        let (weights, lse) = softmax(&scores, sinks)?; // (B, H, T, S), (B, H, T)
        let weights = match hidden_products {
            Some(visible) => visible.where_cond(&weights, &weights.zeros_like()?.detach())?,
            None => weights,
        };
        let kept = match &self.options.dropout {
            Some(dropout) if dropout.rate > 0.0 => (&weights * dropout_factors(dropout, &weights, &queries, &keys)?)?,
            _ => weights.clone(),
        };
        let out = match hidden_products {
            None => kept.matmul(&v)?,
            Some(visible) => kept.unsqueeze(4)?.broadcast_mul(&only(visible, &v)?)?.sum(3)?,
        };
        debug_assert_eq!(weights.dims(), [b, h, t, s]);
        Ok(Block { out: out.transpose(1, 2)?.contiguous()?, weights, lse })
    }

    /// From products (B, H, T, S) to scores, with a bias and minus infinity where nothing is visible.
    fn scores(
        &self,
        products: Tensor,
        [bias, visible]: [Option<&Tensor>; 2],
        queries: &Range<usize>,
        keys: &Range<usize>,
    ) -> Result<Tensor> {
        let (dtype, device) = (products.dtype(), products.device().clone());
        let mut scores = match self.options.softcap {
            Some(cap) => ((products / cap)?.tanh()? * cap)?,
            None => products,
        };
        if let Some(bias) = self.linear_bias(queries, keys, dtype, &device)? {
            scores = scores.broadcast_sub(&bias)?;
        }
        if let Some(bias) = bias {
            scores = scores.broadcast_add(bias)?;
        }
        let Some(visible) = visible else { return Ok(scores) };
        let hidden = constant(f64::NEG_INFINITY, dtype, &device)?.broadcast_as(scores.shape())?;
        visible.where_cond(&scores, &hidden)
    }

    /// `t` queries in chunks of `rows`, each with the keys that it sees, of `s`.
    pub(super) fn ranges(
        &self,
        t: usize,
        s: usize,
        rows: usize,
    ) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + '_ {
        (0..t).step_by(rows).map(move |start| {
            let queries = start..t.min(start + rows);
            let keys = self.structure.keys(&queries, s);
            // Nothing is visible of one key, as of none, which candle's operations do not take.
            (queries, if keys.is_empty() { 0..1 } else { keys })
        })
    }

    /// Where some query of some head sees a key: (B, S, 1, 1).
    pub(super) fn seen(&self, [b, h]: [usize; 2], t: usize, s: usize, device: &Device) -> Result<Tensor> {
        let seen = Tensor::zeros((b, s), DType::U8, device)?;
        for (queries, keys) in self.ranges(t, s, 64) {
            let bias = self.bias.as_ref().map(|bias| part(bias, &queries, &keys)).transpose()?;
            let visible = match self.visible(bias.as_ref(), [b, h], &queries, &keys, device)? {
                Some(visible) => visible.contiguous()?.max(2)?.max(1)?, // (B, S)
                None => Tensor::ones((b, keys.len()), DType::U8, device)?,
            };
            let before = seen.narrow(1, keys.start, keys.len())?;
            seen.slice_set(&before.maximum(&visible)?.contiguous()?, 1, keys.start)?;
        }
        seen.reshape((b, s, 1, 1))
    }

    /// Where a query sees a key, (B, H, T, S); `None` if everywhere.
    fn visible(
        &self,
        bias: Option<&Tensor>,
        [b, h]: [usize; 2],
        queries: &Range<usize>,
        keys: &Range<usize>,
        device: &Device,
    ) -> Result<Option<Tensor>> {
        let mask = &self.options.mask;
        let mut parts = self.structure_parts(queries, keys, device)?;
        if let Some(allowed) = &mask.allowed {
            parts.push(part(allowed, queries, keys)?.ne(0u8)?);
        }
        if let Some(bias) = bias {
            parts.push(bias.detach().ne(f64::NEG_INFINITY)?);
        }
        let all = parts.into_iter().map(Ok).reduce(|a, b| a?.broadcast_mul(&b?));
        all.map(|visible| visible?.broadcast_as((b, h, queries.len(), keys.len()))).transpose()
    }

    /// What the band and the segments allow, as parts that broadcast to (B, H, T, S); none if they allow everything.
    fn structure_parts(&self, queries: &Range<usize>, keys: &Range<usize>, device: &Device) -> Result<Vec<Tensor>> {
        let (sequences, band) = (self.structure.sequences(), self.structure.band);
        // For each query of each sequence: (B, 1, T, 1).
        let column = |f: &dyn Fn(&Sequence, usize) -> u32| {
            let values: Vec<u32> =
                sequences.iter().flat_map(|one| queries.clone().map(move |query| f(one, query))).collect();
            Tensor::from_vec(values, (sequences.len(), 1, queries.len(), 1), device)
        };
        let seen = |one: &Sequence, query: usize| band.keys(one.first + query as i64, keys.end);
        let mut parts = Vec::new();
        let sees_all = |seen: Range<usize>| seen.start <= keys.start && seen.end >= keys.end;
        if !sequences.iter().all(|one| queries.clone().all(|query| sees_all(seen(one, query)))) {
            let numbers = Tensor::arange(keys.start as u32, keys.end as u32, device)?.reshape((1, 1, 1, ()))?;
            let (first, end) = (
                column(&|one, query| seen(one, query).start as u32)?,
                column(&|one, query| seen(one, query).end as u32)?,
            );
            parts.push(numbers.broadcast_ge(&first)?.broadcast_mul(&numbers.broadcast_lt(&end)?)?);
        }
        if sequences.iter().all(|one| one.segments.is_some()) {
            let of_query = column(&|one, query| one.segments.as_ref().map_or(0, |segments| segments.queries[query]))?;
            let of_keys: Vec<u32> = sequences
                .iter()
                .filter_map(|one| one.segments.as_ref())
                .flat_map(|segments| segments.keys[keys.clone()].to_vec())
                .collect();
            let of_keys = Tensor::from_vec(of_keys, (sequences.len(), 1, 1, keys.len()), device)?;
            parts.push(of_query.broadcast_eq(&of_keys)?);
        }
        Ok(parts)
    }

    /// The linear bias to subtract, if any: `slope * |distance|`, (B, H, T, S) with some dimensions of 1.
    fn linear_bias(
        &self,
        queries: &Range<usize>,
        keys: &Range<usize>,
        dtype: DType,
        device: &Device,
    ) -> Result<Option<Tensor>> {
        let Some(slopes) = &self.options.mask.alibi else { return Ok(None) };
        let sequences = self.structure.sequences();
        let position = |one: &Sequence, query: usize| (one.first + query as i64) as f64;
        let positions: Vec<f64> =
            sequences.iter().flat_map(|one| queries.clone().map(move |query| position(one, query))).collect();
        let positions = Tensor::from_vec(positions, (sequences.len(), 1, queries.len(), 1), &Device::Cpu)?;
        let keys: Vec<f64> = keys.clone().map(|key| key as f64).collect();
        let slopes = Tensor::new(slopes.as_slice(), &Device::Cpu)?.reshape((1, (), 1, 1))?;
        let [positions, keys, slopes] = [positions, Tensor::new(keys, &Device::Cpu)?.reshape((1, 1, 1, ()))?, slopes]
            .map(|tensor| tensor.to_dtype(dtype).and_then(|tensor| tensor.to_device(device)));
        positions?.broadcast_sub(&keys?)?.abs()?.broadcast_mul(&slopes?).map(Some)
    }
}

/// A number as a tensor. It is made on the CPU, because not every device has `f64`.
fn constant(x: f64, dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::new(x, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

/// The part for some queries and keys of a tensor that broadcasts to (B, H, T, S), of rank 4.
fn part(tensor: &Tensor, queries: &Range<usize>, keys: &Range<usize>) -> Result<Tensor> {
    let mut part = tensor.clone();
    while part.rank() < 4 {
        part = part.unsqueeze(0)?;
    }
    for (dim, range) in [(2, queries), (3, keys)] {
        if part.dim(dim)? > 1 {
            part = part.narrow(dim, range.start, range.len())?;
        }
    }
    Ok(part)
}

/// Of keys or values (B, H, S, D) those that each query sees, and zeros: (B, H, T, S, D).
fn only(visible: &Tensor, xs: &Tensor) -> Result<Tensor> {
    let (b, h, t, s) = visible.dims4()?;
    let shape = (b, h, t, s, xs.dim(3)?);
    let xs = xs.unsqueeze(2)?.broadcast_as(shape)?;
    visible.unsqueeze(4)?.broadcast_as(shape)?.where_cond(&xs, &xs.zeros_like()?.detach())
}

/// The factors of dropout on the weights (B, H, T, S) of some queries and keys.
fn dropout_factors(
    options: &DropoutOptions,
    weights: &Tensor,
    queries: &Range<usize>,
    keys: &Range<usize>,
) -> Result<Tensor> {
    let (_, h, t, s) = weights.dims4()?;
    let (factors, first_stream) = (options.factors()?, options.first_sequence.wrapping_mul(h as u64));
    let mut values = vec![0f32; weights.elem_count()];
    for (row, values) in values.chunks_exact_mut(s).enumerate() {
        let first = ((queries.start + row % t) as u64) << 32 | keys.start as u64;
        factors.fill(first_stream.wrapping_add((row / t) as u64), first, values);
    }
    Tensor::from_vec(values, weights.shape(), &Device::Cpu)?.to_dtype(weights.dtype())?.to_device(weights.device())
}

/// (B, S, G, D) to (B, H, S, D): each head repeated for every query head that uses it.
fn repeat_kv(xs: &Tensor, h: usize) -> Result<Tensor> {
    let (b, s, g, d) = xs.dims4()?;
    let xs = xs.transpose(1, 2)?.unsqueeze(2)?; // (B, G, 1, S, D)
    xs.broadcast_as((b, g, h / g, s, d))?.reshape((b, h, s, d))?.contiguous()
}

/// Softmax over the last dimension of (B, H, T, S), and its log-sum-exp (B, H, T); each head's sink is one more score. A
/// row of only minus infinities, without a sink, gives zeros and minus infinity.
fn softmax(scores: &Tensor, sinks: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    let sinks = sinks.map(|sinks| sinks.reshape((1, (), 1, 1))).transpose()?;
    // Shifting a row does not change its softmax, so the maximum is a constant, without a gradient.
    let max = scores.detach().max_keepdim(D::Minus1)?;
    let max = match &sinks {
        Some(sinks) => max.broadcast_maximum(&sinks.detach())?,
        None => max,
    };
    let max = max.eq(f64::NEG_INFINITY)?.where_cond(&max.zeros_like()?, &max)?;
    let numerators = scores.broadcast_sub(&max)?.exp()?;
    let sums = numerators.sum_keepdim(D::Minus1)?;
    let sums = match &sinks {
        Some(sinks) => (sums + sinks.broadcast_sub(&max)?.exp()?)?,
        None => sums,
    };
    // Where nothing is visible, every numerator is 0, so any divisor but 0 gives zeros.
    let empty = sums.eq(0.0)?;
    let sums = (&sums + empty.to_dtype(sums.dtype())?)?;
    let nothing = constant(f64::NEG_INFINITY, max.dtype(), max.device())?.broadcast_as(max.shape())?;
    let lse = empty.where_cond(&nothing, &(sums.log()? + max)?)?.squeeze(D::Minus1)?;
    Ok((numerators.broadcast_div(&sums)?, lse))
}
