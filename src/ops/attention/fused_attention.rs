//! The fused operation, from tensors to heads.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};

use super::AttentionOptions;
use super::heads::{self, Heads, View};
use super::kernel::Dims;
use super::layout::{GradientLayout, Sizes};
use super::mask::{Mask, Seen};
use super::scores::{Scoring, Softmax};
use super::visible::{Causal, Full, Other, Visible};
use crate::cpu::random::DropoutFactors;
use crate::cpu::storage::{slice, values};
use crate::ops::record::is_tracked;

/// The operation, with the softmax of each query (B, H, T), which it keeps for backward.
pub(super) struct Attention {
    scale: f32,
    mask: Mask,
    softcap: Option<f32>,
    /// The factors, and the index of the first sequence.
    dropout: Option<(DropoutFactors, u64)>,
    /// Whether no gradients will be needed.
    is_forward_only: bool,
    softmax: OnceLock<Vec<Softmax>>,
}

/// The operation with the mask of each head, which `sees` creates.
struct Masked<'a, F> {
    op: &'a Attention,
    num_heads: usize,
    sees: F,
}

impl<V: Visible, F: Fn(usize, usize) -> V + Sync> Heads for Masked<'_, F> {
    type Visible = V;

    fn visible(&self, sequence: usize, head: usize) -> V {
        (self.sees)(sequence, head)
    }

    fn scoring(&self, sequence: usize, head: usize) -> Scoring<'_> {
        let &Attention { scale, softcap, ref dropout, .. } = self.op;
        let stream = |first: u64| {
            first.wrapping_add(sequence as u64).wrapping_mul(self.num_heads as u64).wrapping_add(head as u64)
        };
        let dropout = dropout.as_ref().map(|(factors, first)| (factors, stream(*first)));
        Scoring { scale, softcap, dropout }
    }

    fn is_forward_only(&self) -> bool {
        self.op.is_forward_only
    }
}

impl Attention {
    /// From checked options, the channels of a head, and the tensors it will be applied to.
    pub(super) fn new(options: &AttentionOptions, head_dim: usize, tensors: &[&Tensor]) -> Result<Self> {
        let dropout = match options.dropout.filter(|dropout| dropout.rate > 0.0) {
            Some(dropout) => Some((dropout.factors()?, dropout.first_sequence)),
            None => None,
        };
        Ok(Self {
            scale: options.scale.factor(head_dim) as f32,
            mask: options.mask.clone(),
            softcap: options.softcap.map(|cap| cap as f32),
            dropout,
            is_forward_only: !tensors.iter().any(|tensor| is_tracked(tensor)),
            softmax: OnceLock::new(),
        })
    }

    /// The output (B, T, H, E).
    fn forward(&self, views: [View; 3], sizes: Sizes) -> Result<Vec<f32>> {
        let (op, num_heads) = (self, sizes.h);
        let (out, softmax) = match Seen::new(&self.mask, sizes.head.t, sizes.head.s)? {
            None => heads::forward(views, &Masked { op, num_heads, sees: |_, _| Full }, sizes),
            Some(Seen::Causal { before }) => {
                heads::forward(views, &Masked { op, num_heads, sees: |_, _| Causal { before } }, sizes)
            }
            Some(seen) => {
                let sees = |sequence, head| Other { seen: &seen, sequence, head };
                heads::forward(views, &Masked { op, num_heads, sees }, sizes)
            }
        };
        // Each call creates its own operation, so this is still empty.
        let _ = self.softmax.set(softmax);
        Ok(out)
    }

    /// The gradients of queries, keys and values, in the buffers of `layout`.
    fn backward(
        &self,
        views: [View; 3],
        out: &Tensor,
        dout: &Tensor,
        layout: GradientLayout,
        sizes: Sizes,
    ) -> Result<Vec<Vec<f32>>> {
        let Some(softmax) = self.softmax.get() else { bail!("attention: backward before forward") };
        let dout = dout.contiguous()?;
        let (out, dout) = (values(out)?, values(&dout)?);
        let saved = (&*out, &*dout, &**softmax);
        let (op, num_heads) = (self, sizes.h);
        Ok(match Seen::new(&self.mask, sizes.head.t, sizes.head.s)? {
            None => heads::backward(views, saved, &Masked { op, num_heads, sees: |_, _| Full }, layout, sizes),
            Some(Seen::Causal { before }) => {
                heads::backward(views, saved, &Masked { op, num_heads, sees: |_, _| Causal { before } }, layout, sizes)
            }
            Some(seen) => {
                let sees = |sequence, head| Other { seen: &seen, sequence, head };
                heads::backward(views, saved, &Masked { op, num_heads, sees }, layout, sizes)
            }
        })
    }
}

/// A view of (B, T, H, D).
fn view<'a>(data: &'a [f32], layout: &Layout) -> View<'a> {
    let strides = layout.stride();
    let data = &data[layout.start_offset()..];
    View { data, batch_stride: strides[0], position_stride: strides[1], head_stride: strides[2] }
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
        let sizes = sizes(q_l.shape(), k_l.shape(), v_l.shape())?;
        let views = [view(q.as_slice()?, q_l), view(k.as_slice()?, k_l), view(v.as_slice()?, v_l)];
        let out = self.forward(views, sizes)?;
        Ok((CpuStorage::F32(out), (sizes.b, sizes.head.t, sizes.h, sizes.head.e).into()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let sizes = sizes(q.shape(), k.shape(), v.shape())?;
        let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
        let (q_values, k_values, v_values) = (values(&q)?, values(&k)?, values(&v)?);
        let views =
            [view(&q_values, &contiguous(&q)), view(&k_values, &contiguous(&k)), view(&v_values, &contiguous(&v))];
        let gradients = self.backward(views, out, dout, GradientLayout::Separate, sizes)?;
        let mut gradients = gradients
            .into_iter()
            .zip([&q, &k, &v])
            .map(|(values, like)| Tensor::from_vec(values, like.shape(), &Device::Cpu));
        let mut next = || gradients.next().transpose();
        Ok((next()?, next()?, next()?))
    }
}

/// The layout of a contiguous tensor's values, starting at offset 0.
fn contiguous(tensor: &Tensor) -> Layout {
    Layout::contiguous(tensor.shape())
}

fn sizes(q: &Shape, k: &Shape, v: &Shape) -> Result<Sizes> {
    let ((b, t, h, d), (_, s, g, e)) = (q.dims4()?, v.dims4()?);
    debug_assert_eq!(k.dims(), [b, s, g, d]);
    Ok(Sizes { b, h, g, head: Dims { t, s, d, e } })
}

/// The operation on queries, keys and values packed as (B, T, 3, H, D), the output of one projection.
pub(super) struct PackedAttention {
    pub(super) attention: Attention,
    pub(super) num_heads: usize,
}

impl PackedAttention {
    fn views<'a>(&self, packed: &'a [f32], (_, t, width): (usize, usize, usize)) -> [View<'a>; 3] {
        let c = width / 3;
        let view = |i: usize| View {
            data: &packed[i * c..],
            batch_stride: t * width,
            position_stride: width,
            head_stride: c / self.num_heads,
        };
        [view(0), view(1), view(2)]
    }

    fn sizes(&self, (b, t, width): (usize, usize, usize)) -> Sizes {
        let (h, d) = (self.num_heads, width / 3 / self.num_heads);
        Sizes { b, h, g: h, head: Dims { t, s: t, d, e: d } }
    }
}

impl CustomOp1 for PackedAttention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, packed: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dims = layout.shape().dims3()?;
        let out = self.attention.forward(self.views(slice(packed, layout)?, dims), self.sizes(dims))?;
        Ok((CpuStorage::F32(out), (dims.0, dims.1, dims.2 / 3).into()))
    }

    fn bwd(&self, packed: &Tensor, out: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        let dims = packed.dims3()?;
        let packed_values = values(packed)?;
        let (views, sizes) = (self.views(&packed_values, dims), self.sizes(dims));
        let gradients = self.attention.backward(views, out, dout, GradientLayout::Packed, sizes)?;
        gradients.into_iter().next().map(|values| Tensor::from_vec(values, packed.shape(), &Device::Cpu)).transpose()
    }
}
