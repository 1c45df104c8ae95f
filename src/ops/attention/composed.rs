//! The composed operation on all queries: at once where they are few, else chunk by chunk, so that it takes memory linear
//! in the number of positions: backward composes each chunk again.

use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, DType, Layout, MetalStorage, Result, Shape, Storage, Tensor, Var, bail,
};

use super::AttentionOptions;
use super::cpu::{Dims, Sizes};
use super::op::Extras;
use super::reference::{Block, Composed};
use super::structure::Structure;
use crate::cpu::storage::{precise, second_derivatives, zero_with_graph};
use crate::ops::record::{self, Kept};

/// Queries in a chunk.
const CHUNK: usize = 256;

/// The output (B, T, H, E), the log-sum-exp (B, H, T), in `f32` for halves, and the weights (B, H, T, S) if wanted.
pub(super) struct Results {
    pub(super) out: Tensor,
    pub(super) lse: Tensor,
    pub(super) weights: Option<Tensor>,
}

/// Attention of checked arguments.
pub(super) fn attention(
    [q, k, v]: [&Tensor; 3],
    sizes: Sizes,
    options: &AttentionOptions,
    with_weights: bool,
) -> Result<Results> {
    let Sizes { b, h, dims: Dims { t, s, d, e }, .. } = sizes;
    // In half precision, sums would stop growing at a few hundred.
    let (dtype, precise) = (q.dtype(), precise(q.dtype()));
    if [q, k, v].iter().any(|tensor| tensor.elem_count() == 0) {
        return nothing([q, k, v], [b, t, s, h, e], options);
    }
    let [q, k, v] = [q, k, v].map(|tensor| tensor.to_dtype(precise));
    let (q, k, v) = (q?, k?, v?);
    let to_precise = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| tensor.to_dtype(precise)).transpose();
    let (bias, sinks) = (to_precise(&options.mask.bias)?, to_precise(&options.sinks)?);
    let structure = Structure::new(&options.mask, [b, t, s])?;
    let mut composed = Composed { options: options.clone(), structure, bias, is_tame: true };
    let (mut k, mut v, mut kv_are_tame) = (k.clone(), v.clone(), is_tame(&k)? && is_tame(&v)?);
    if !kv_are_tame {
        // Padding may hold anything.
        let seen = composed.seen([b, h], t, s, q.device())?; // (B, S, 1, 1)
        (k, v) = (only_seen(&k, &seen)?, only_seen(&v, &seen)?);
        kv_are_tame = is_tame(&k)? && is_tame(&v)?;
    }
    composed.is_tame = kv_are_tame && is_tame(&q)?;
    let rows = match composed.is_tame {
        true => CHUNK,
        // Each product is a tensor of its own.
        false => ((1 << 24) / (b * h * s * d.max(e))).clamp(1, CHUNK),
    };
    // In chunks, second derivatives would be cut.
    if t <= rows || with_weights || Extras::of(options).bias.is_some() || second_derivatives() {
        let Block { out, weights, lse } = composed.block(&q, [&k, &v], sinks.as_ref(), (0..t, 0..s))?;
        return Ok(Results { out: out.to_dtype(dtype)?, lse, weights: Some(weights.to_dtype(dtype)?) });
    }
    let both = in_chunks(&q, [&k, &v], sinks, Chunks { composed, rows })?;
    let lse = both.narrow(3, e, 1)?.squeeze(3)?.transpose(1, 2)?.contiguous()?;
    Ok(Results { out: both.narrow(3, 0, e)?.contiguous()?.to_dtype(dtype)?, lse, weights: None })
}

/// No keys, no queries or no values: zeros with zero gradients. (candle's maximum over nothing would be an error.) The
/// log-sum-exp is that of the sinks.
fn nothing(tensors: [&Tensor; 3], [b, t, s, h, e]: [usize; 5], options: &AttentionOptions) -> Result<Results> {
    let nothing = zero(&tensors, options)?;
    let dtype = precise(nothing.dtype());
    let lse = match &options.sinks {
        Some(sinks) => sinks.to_dtype(dtype)?.reshape((1, h, 1))?,
        None => Tensor::full(f32::NEG_INFINITY, (1, 1, 1), nothing.device())?.to_dtype(dtype)?,
    };
    let lse =
        lse.broadcast_add(&nothing.to_dtype(dtype)?.reshape((1, 1, 1))?)?.broadcast_as((b, h, t))?.contiguous()?;
    let of = |shape: [usize; 4]| nothing.broadcast_as(shape.as_slice());
    Ok(Results { out: of([b, t, h, e])?.contiguous()?, lse, weights: Some(of([b, h, t, s])?) })
}

/// Zero, with zero gradients for all tensors of a call.
pub(super) fn zero(tensors: &[&Tensor], options: &AttentionOptions) -> Result<Tensor> {
    let all = tensors.iter().copied().chain(&options.mask.bias).chain(&options.sinks).map(zero_with_graph);
    all.reduce(|a, b| a? + b?).unwrap_or_else(|| bail!("attention: expected tensors"))
}

/// Whether all elements are finite, and so far from the largest numbers that sums of products are finite too.
fn is_tame(tensor: &Tensor) -> Result<bool> {
    // As far as this makes infinite, times 0, is NaN.
    let far = if tensor.dtype() == DType::F64 { 1e158 } else { 1e20 };
    let zero = ((tensor.detach() * far)? * 0.0)?.sum_all()?;
    Ok(zero.to_dtype(DType::F32)?.to_scalar::<f32>()? == 0.0)
}

/// Keys or values (B, S, G, D), with zeros where no query sees them.
fn only_seen(xs: &Tensor, seen: &Tensor) -> Result<Tensor> {
    seen.broadcast_as(xs.shape())?.where_cond(xs, &xs.zeros_like()?.detach())
}

/// The output, with the log-sum-exp as a further channel: (B, T, H, E + 1).
fn in_chunks(q: &Tensor, [k, v]: [&Tensor; 2], sinks: Option<Tensor>, chunks: Chunks) -> Result<Tensor> {
    // An operation takes three tensors.
    let kv = Tensor::cat(&[k, v], 3)?;
    let results = chunks.forward(&q.detach(), &kv.detach(), sinks.as_ref().map(Tensor::detach).as_ref())?;
    let has_sinks = sinks.is_some();
    let sinks = match sinks {
        Some(sinks) => sinks,
        None => Tensor::zeros((), q.dtype(), q.device())?,
    };
    record::apply3([q, &kv, &sinks], Recomputed { results, chunks, has_sinks }, Kept::Inputs)
}

/// The operation on some queries after the other.
struct Chunks {
    composed: Composed,
    /// Queries in a chunk.
    rows: usize,
}

impl Chunks {
    fn ranges(&self, q: &Tensor, kv: &Tensor) -> Result<Vec<(Range<usize>, Range<usize>)>> {
        Ok(self.composed.ranges(q.dim(1)?, kv.dim(1)?, self.rows).collect())
    }

    /// The results (B, T, H, E + 1) of a chunk of queries, from the keys and values that they see.
    fn chunk(
        &self,
        q: &Tensor,
        kv: &Tensor,
        sinks: Option<&Tensor>,
        at: (Range<usize>, Range<usize>),
    ) -> Result<Tensor> {
        let d = q.dim(3)?;
        let (k, v) = (kv.narrow(3, 0, d)?, kv.narrow(3, d, kv.dim(3)? - d)?);
        let Block { out, lse, .. } = self.composed.block(q, [&k, &v], sinks, at)?;
        Tensor::cat(&[&out, &lse.transpose(1, 2)?.unsqueeze(3)?], 3)
    }

    fn forward(&self, q: &Tensor, kv: &Tensor, sinks: Option<&Tensor>) -> Result<Tensor> {
        let of = |(queries, keys): (Range<usize>, Range<usize>)| {
            let (q, kv) = (q.narrow(1, queries.start, queries.len())?, kv.narrow(1, keys.start, keys.len())?);
            self.chunk(&q, &kv, sinks, (queries, keys))
        };
        let chunks = self.ranges(q, kv)?.into_iter().map(of).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&chunks, 1)?.contiguous()
    }

    /// The gradients of queries, of keys and values, and of sinks.
    fn backward(&self, q: &Tensor, kv: &Tensor, sinks: Option<&Tensor>, dout: &Tensor) -> Result<[Option<Tensor>; 3]> {
        if self.composed.is_tame && !is_tame(dout)? {
            let chunks = Self { composed: Composed { is_tame: false, ..self.composed.clone() }, rows: 1 };
            return chunks.backward(q, kv, sinks, dout);
        }
        let (mut dqs, dkv) = (Vec::new(), kv.zeros_like()?.detach());
        let mut dsinks = sinks.map(Tensor::zeros_like).transpose()?;
        let var = |tensor: &Tensor| Var::from_tensor(&tensor.detach().copy()?);
        for (queries, keys) in self.ranges(q, kv)? {
            let q = var(&q.narrow(1, queries.start, queries.len())?)?;
            let part = var(&kv.narrow(1, keys.start, keys.len())?)?;
            let sinks = sinks.map(var).transpose()?;
            let dout = dout.narrow(1, queries.start, queries.len())?.detach();
            let out = self.chunk(&q, &part, sinks.as_deref(), (queries, keys.clone()))?;
            let mut gradients = (out * dout)?.sum_all()?.backward()?;
            let mut take = |var: &Var| gradients.remove(var).map_or_else(|| var.zeros_like(), Ok);
            dqs.push(take(&q)?.detach());
            let sum = (dkv.narrow(1, keys.start, keys.len())? + take(&part)?.detach())?;
            dkv.slice_set(&sum.contiguous()?, 1, keys.start)?;
            if let (Some(total), Some(sinks)) = (&mut dsinks, &sinks) {
                *total = (&*total + take(sinks)?.detach())?;
            }
        }
        Ok([Some(Tensor::cat(&dqs, 1)?), Some(dkv), dsinks])
    }
}

/// Results that are known already, with the gradients of what they were computed from.
struct Recomputed {
    results: Tensor,
    chunks: Chunks,
    has_sinks: bool,
}

impl Recomputed {
    /// The results as a storage of their own.
    fn storage(&self) -> Result<(Storage, Shape)> {
        let (storage, layout) = self.results.storage_and_layout();
        let copy = match &*storage {
            Storage::Cpu(storage) => Storage::Cpu(storage.try_clone(layout)?),
            Storage::Cuda(storage) => Storage::Cuda(storage.try_clone(layout)?),
            Storage::Metal(storage) => Storage::Metal(storage.try_clone(layout)?),
        };
        Ok((copy, layout.shape().clone()))
    }
}

impl CustomOp3 for Recomputed {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        match self.storage()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => bail!("attention: expected results on the CPU"),
        }
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        match self.storage()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => bail!("attention: expected results on a CUDA device"),
        }
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        match self.storage()? {
            (Storage::Metal(storage), shape) => Ok((storage, shape)),
            _ => bail!("attention: expected results on a Metal device"),
        }
    }

    fn bwd(
        &self,
        q: &Tensor,
        kv: &Tensor,
        sinks: &Tensor,
        _: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dq, dkv, dsinks] = self.chunks.backward(q, kv, self.has_sinks.then_some(sinks), dout)?;
        Ok((dq, dkv, dsinks))
    }
}
