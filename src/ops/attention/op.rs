//! The fused operation, from tensors to slices.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};

use super::cpu::{self, BiasShape, Dense, Dims, Heads, Place, Results, RowLayout, RowStats, Sizes, View};
use super::structure::Structure;
use super::{AttentionOptions, QkvLayout};
use crate::cpu::random::DropoutFactors;
use crate::cpu::storage::{slice, strided, values};

/// The operation, with the statistics of each query (B, H, T), which it keeps for backward.
///
/// An operation takes three tensors: queries, keys and values. Where a bias or sinks are tracked, they are queries, keys
/// and values side by side, (B, S, G, D + E), and the elements of bias and sinks.
pub(super) struct Attention {
    sizes: Sizes,
    scale: f32,
    softcap: Option<f32>,
    /// The factors, and the index of the first sequence.
    dropout: Option<(DropoutFactors, u64)>,
    structure: Structure,
    alibi: Option<Vec<f32>>,
    /// (B, H, T, S), broadcast.
    allowed: Option<Tensor>,
    bias: Option<Tensor>,
    /// (H)
    sinks: Option<Tensor>,
    extras: Extras,
    /// The order of the output's dimensions.
    layout: QkvLayout,
    with_lse: bool,
    /// Whether no gradients will be needed.
    is_forward_only: bool,
    stats: OnceLock<Vec<RowStats>>,
}

/// What is tracked beside queries, keys and values.
#[derive(Clone, Copy)]
pub(super) struct Extras {
    pub(super) bias: Option<BiasShape>,
    pub(super) sinks: bool,
}

impl Extras {
    pub(super) fn of(options: &AttentionOptions) -> Self {
        let shape = |bias: &Tensor| {
            let mut shape = [1; 4];
            shape[4 - bias.rank()..].copy_from_slice(bias.dims());
            BiasShape(shape)
        };
        let bias = options.mask.bias.as_ref().filter(|bias| bias.track_op()).map(shape);
        Self { bias, sinks: options.sinks.as_ref().is_some_and(Tensor::track_op) }
    }

    pub(super) fn any(self) -> bool {
        self.bias.is_some() || self.sinks
    }
}

impl Attention {
    /// From checked options, the sizes, and the tensors it will be applied to.
    pub(super) fn new(options: &AttentionOptions, sizes: Sizes, tensors: &[&Tensor], with_lse: bool) -> Result<Self> {
        let Sizes { b, h, dims: Dims { t, s, d, .. }, .. } = sizes;
        let dropout = match options.dropout.filter(|dropout| dropout.rate > 0.0) {
            Some(dropout) => Some((dropout.factors()?, dropout.first_sequence)),
            None => None,
        };
        let extras = Extras::of(options);
        let mask = &options.mask;
        let broadcast = |tensor: &Option<Tensor>| {
            tensor.as_ref().map(|tensor| tensor.detach().broadcast_as((b, h, t, s))).transpose()
        };
        Ok(Self {
            sizes,
            scale: options.scale.factor(d) as f32,
            softcap: options.softcap.map(|cap| cap as f32),
            dropout,
            structure: Structure::new(mask, [b, t, s])?,
            alibi: mask.alibi.as_ref().map(|slopes| slopes.iter().map(|slope| *slope as f32).collect()),
            allowed: broadcast(&mask.allowed)?,
            bias: broadcast(&mask.bias)?,
            sinks: options.sinks.as_ref().map(|sinks| sinks.detach().contiguous()).transpose()?,
            extras,
            layout: options.layout,
            with_lse,
            is_forward_only: !extras.any() && !tensors.iter().any(|tensor| tensor.track_op()),
            stats: OnceLock::new(),
        })
    }

    /// Calls `f` with what the heads compute, which borrows from the tensors of the options.
    pub(super) fn with_heads<R>(&self, f: impl FnOnce(&Heads) -> R) -> Result<R> {
        let bias = self.bias.as_ref().map(strided::<f32>).transpose()?;
        let allowed = self.allowed.as_ref().map(strided::<u8>).transpose()?;
        let sinks = self.sinks.as_ref().map(values).transpose()?;
        Ok(f(&Heads {
            num_heads: self.sizes.h,
            scale: self.scale,
            softcap: self.softcap,
            sinks: sinks.as_deref(),
            dropout: self.dropout.as_ref().map(|(factors, first)| (factors, *first)),
            structure: &self.structure,
            allowed: allowed.as_ref().map(|x| Dense { data: x.data(), strides: x.strides4() }),
            bias: bias.as_ref().map(|x| Dense { data: x.data(), strides: x.strides4() }),
            alibi: self.alibi.as_deref(),
            with_lse: self.with_lse,
            is_forward_only: self.is_forward_only,
        }))
    }

    /// Where the rows of the output lie.
    fn out_layout(&self) -> RowLayout {
        let Sizes { h, dims: Dims { t, e, .. }, .. } = self.sizes;
        let width = e + usize::from(self.with_lse);
        match self.layout {
            QkvLayout::Bthd => RowLayout::contiguous(t, h, width),
            QkvLayout::Bhtd => {
                RowLayout { offset: 0, batch_stride: h * t * width, position_stride: width, head_stride: t * width }
            }
        }
    }

    fn forward(&self, views: [View; 3]) -> Result<Vec<f32>> {
        let (out, stats) = self.with_heads(|heads| cpu::forward(views, heads, self.out_layout(), self.sizes))?;
        // Each call creates its own operation, so this is still empty.
        let _ = self.stats.set(stats);
        Ok(out)
    }

    /// The gradients of queries, keys and values, in buffers of these lengths, at these places; and those of the tracked
    /// extras, one after the other.
    fn backward(
        &self,
        views: [View; 3],
        (out, dout): (&Tensor, &Tensor),
        lens: &[usize],
        places: [Place; 3],
    ) -> Result<(Vec<Vec<f32>>, Vec<f32>)> {
        let Some(stats) = self.stats.get() else { bail!("attention: backward before forward") };
        let dout = dout.contiguous()?;
        let (out, dout) = (values(out)?, values(&dout)?);
        let results = Results { out: &out, dout: &dout, layout: self.out_layout(), stats };
        self.with_heads(|heads| {
            let (buffers, dbias) = cpu::backward(views, results, heads, (lens, places), self.extras.bias, self.sizes);
            let mut extras = dbias.unwrap_or_default();
            if let Some(sinks) = heads.sinks.filter(|_| self.extras.sinks) {
                extras.extend(cpu::sink_gradient(results, heads, sinks, self.sizes));
            }
            (buffers, extras)
        })
    }

    /// Where keys and values lie in a tensor that has them side by side.
    fn side_by_side(&self) -> [RowLayout; 2] {
        let Sizes { g, dims: Dims { s, d, e, .. }, .. } = self.sizes;
        [0, d].map(|offset| RowLayout { offset, ..RowLayout::contiguous(s, g, d + e) })
    }

    /// Queries, keys and values of the three tensors that the operation takes.
    fn views<'a>(&self, [a, b, c]: [(&'a [f32], &Layout); 3]) -> [View<'a>; 3] {
        if !self.extras.any() {
            return [a, b, c].map(|(data, layout)| View { data, layout: row_layout(layout) });
        }
        let kv = &b.0[b.1.start_offset()..];
        let [k, v] = self.side_by_side();
        [View { data: a.0, layout: row_layout(a.1) }, View { data: kv, layout: k }, View { data: kv, layout: v }]
    }
}

/// The layout of a tensor (B, T, H, D) whose last stride is 1.
fn row_layout(layout: &Layout) -> RowLayout {
    let strides = layout.stride();
    RowLayout {
        offset: layout.start_offset(),
        batch_stride: strides[0],
        position_stride: strides[1],
        head_stride: strides[2],
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_l: &Layout,
        k: &CpuStorage,
        k_l: &Layout,
        v: &CpuStorage,
        v_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Sizes { b, h, dims: Dims { t, e, .. }, .. } = self.sizes;
        let out = self.forward(self.views([(q.as_slice()?, q_l), (k.as_slice()?, k_l), (v.as_slice()?, v_l)]))?;
        let width = e + usize::from(self.with_lse);
        let shape = match self.layout {
            QkvLayout::Bthd => [b, t, h, width],
            QkvLayout::Bhtd => [b, h, t, width],
        };
        Ok((CpuStorage::F32(out), shape.as_slice().into()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Sizes { h, g, dims: Dims { t, s, d, e }, .. } = self.sizes;
        let (a, b, c) = (strided(q)?, strided(k)?, strided(v)?);
        let views = self.views([a.parts(), b.parts(), c.parts()]);
        let of_q = Place(0, RowLayout::contiguous(t, h, d));
        let of = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu).map(Some);
        if self.extras.any() {
            let [of_k, of_v] = self.side_by_side().map(|layout| Place(1, layout));
            let lens = [q.elem_count(), k.elem_count()];
            let (buffers, extras) = self.backward(views, (out, dout), &lens, [of_q, of_k, of_v])?;
            let Ok([dq, dkv]) = <[_; 2]>::try_from(buffers) else { bail!("attention: expected two gradients") };
            return Ok((of(dq, q)?, of(dkv, k)?, of(extras, v)?));
        }
        let places = [of_q, Place(1, RowLayout::contiguous(s, g, d)), Place(2, RowLayout::contiguous(s, g, e))];
        let lens = [q, k, v].map(|tensor| tensor.elem_count());
        let (buffers, _) = self.backward(views, (out, dout), &lens, places)?;
        let Ok([dq, dk, dv]) = <[_; 3]>::try_from(buffers) else { bail!("attention: expected three gradients") };
        Ok((of(dq, q)?, of(dk, k)?, of(dv, v)?))
    }
}

/// The operation on queries, keys and values packed as (B, T, 3, H, D), the output of one projection. Its own output is
/// (B, T, H * D).
pub(super) struct PackedAttention(pub(super) Attention);

impl PackedAttention {
    fn layouts(&self) -> [RowLayout; 3] {
        let Sizes { h, dims: Dims { t, d, .. }, .. } = self.0.sizes;
        let width = 3 * h * d;
        [0, 1, 2].map(|part| RowLayout {
            offset: part * h * d,
            batch_stride: t * width,
            position_stride: width,
            head_stride: d,
        })
    }

    fn views<'a>(&self, data: &'a [f32]) -> [View<'a>; 3] {
        self.layouts().map(|layout| View { data, layout })
    }
}

impl CustomOp1 for PackedAttention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, packed: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, t, width) = layout.shape().dims3()?;
        let out = self.0.forward(self.views(slice(packed, layout)?))?;
        Ok((CpuStorage::F32(out), (b, t, width / 3).into()))
    }

    fn bwd(&self, packed: &Tensor, out: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        let packed_values = values(packed)?;
        let places = self.layouts().map(|layout| Place(0, layout));
        let lens = [packed.elem_count()];
        let (buffers, _) = self.0.backward(self.views(&packed_values), (out, dout), &lens, places)?;
        buffers.into_iter().next().map(|values| Tensor::from_vec(values, packed.shape(), &Device::Cpu)).transpose()
    }
}
