//! The fused operation: from tensors to heads, and heads to threads.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};

use super::kernel::{self, Dims, Gradients, Place, Rows, RowsMut, Saved, Softmax};
use super::layout::{GradientLayout, Sizes};
use super::mask::{Mask, Seen};
use super::visible::{Causal, Full, Other, Visible};
use crate::ops::parallel;
use crate::ops::storage::{slice, values};

/// Queries, keys or values of all sequences and heads: (B, T, H, D) with any strides but the last, which is 1.
#[derive(Clone, Copy)]
struct View<'a> {
    data: &'a [f32],
    batch_stride: usize,
    position_stride: usize,
    head_stride: usize,
}

impl<'a> View<'a> {
    fn new(data: &'a [f32], layout: &Layout) -> Self {
        let strides = layout.stride();
        let data = &data[layout.start_offset()..];
        Self { data, batch_stride: strides[0], position_stride: strides[1], head_stride: strides[2] }
    }

    fn rows(self, b: usize, h: usize) -> Rows<'a> {
        Rows { data: &self.data[b * self.batch_stride + h * self.head_stride..], stride: self.position_stride }
    }
}

/// The operation, with what it keeps for the way back: (B, H, T).
pub(super) struct Attention {
    scale: f32,
    mask: Mask,
    softmax: OnceLock<Vec<Softmax>>,
}

impl Attention {
    pub(super) fn new(scale: f64, mask: Mask) -> Self {
        Self { scale: scale as f32, mask, softmax: OnceLock::new() }
    }

    /// The output (B, T, H, E).
    fn forward(&self, views: [View; 3], sizes: Sizes) -> Result<Vec<f32>> {
        let (out, softmax) = match Seen::new(&self.mask, sizes.head.t, sizes.head.s)? {
            None => forward(views, self.scale, &|_| Full, sizes),
            Some(Seen::Causal { before }) => forward(views, self.scale, &|_| Causal { before }, sizes),
            Some(seen) => forward(views, self.scale, &|sequence| Other { seen: &seen, sequence }, sizes),
        };
        // The graph holds one such operation for each call, so nothing is there yet.
        let _ = self.softmax.set(softmax);
        Ok(out)
    }

    /// The gradients of queries, keys and values, for each sequence in one piece that `layout` divides.
    fn backward(
        &self,
        views: [View; 3],
        out: &Tensor,
        dout: &Tensor,
        layout: GradientLayout,
        sizes: Sizes,
    ) -> Result<Vec<f32>> {
        let Some(softmax) = self.softmax.get() else { bail!("attention: backward before forward") };
        let dout = dout.contiguous()?;
        let (out, dout) = (values(out)?, values(&dout)?);
        let saved = (&*out, &*dout, &**softmax);
        Ok(match Seen::new(&self.mask, sizes.head.t, sizes.head.s)? {
            None => backward(views, saved, self.scale, &|_| Full, layout, sizes),
            Some(Seen::Causal { before }) => backward(views, saved, self.scale, &|_| Causal { before }, layout, sizes),
            Some(seen) => {
                backward(views, saved, self.scale, &|sequence| Other { seen: &seen, sequence }, layout, sizes)
            }
        })
    }
}

/// Whether there are too few sequences to keep all threads busy with one each.
fn splits_heads(sizes: Sizes) -> bool {
    // gemm takes another way, with other roundings, for a single column: its distance may not depend on the threads.
    let has_columns = sizes.head.d > 1 && sizes.head.e > 1;
    sizes.b < parallel::threads() && sizes.g > 1 && has_columns
}

fn forward<V: Visible>(
    views: [View; 3],
    scale: f32,
    visible: &(impl Fn(usize) -> V + Sync),
    sizes: Sizes,
) -> (Vec<f32>, Vec<Softmax>) {
    let Sizes { b, h, g, head } = sizes;
    let Dims { t, e, .. } = head;
    let inputs = |b_i: usize, h_i: usize| {
        let g_i = h_i * g / h;
        [views[0].rows(b_i, h_i), views[1].rows(b_i, g_i), views[2].rows(b_i, g_i)]
    };
    let mut out = vec![0.0; b * t * h * e];
    let mut softmax = vec![Softmax::default(); b * h * t];
    if splits_heads(sizes) {
        let heads = parallel::map(b * h, |i| {
            let (mut out, mut softmax) = (vec![0.0; t * e], vec![Softmax::default(); t]);
            let rows = RowsMut { data: &mut out, stride: e };
            kernel::forward(rows, &mut softmax, inputs(i / h, i % h), scale, &visible(i / h), head);
            (out, softmax)
        });
        for (i, (head_out, head_softmax)) in heads.iter().enumerate() {
            softmax[i * t..(i + 1) * t].copy_from_slice(head_softmax);
            let place = Place { offset: (i / h) * t * h * e + (i % h) * e, stride: h * e };
            place.fill(&mut out, head_out, e);
        }
    } else {
        parallel::for_each_chunk_pair((&mut out, t * h * e), (&mut softmax, h * t), |b_i, out, softmax| {
            for (h_i, softmax) in softmax.chunks_exact_mut(t).enumerate() {
                let rows = RowsMut { data: &mut out[h_i * e..], stride: h * e };
                kernel::forward(rows, softmax, inputs(b_i, h_i), scale, &visible(b_i), head);
            }
        });
    }
    (out, softmax)
}

fn backward<V: Visible>(
    views: [View; 3],
    (out, dout, softmax): (&[f32], &[f32], &[Softmax]),
    scale: f32,
    visible: &(impl Fn(usize) -> V + Sync),
    layout: GradientLayout,
    sizes: Sizes,
) -> Vec<f32> {
    let Sizes { b, h, g, head } = sizes;
    let Dims { t, s, d, e } = head;
    // The owner of a piece of gradient is a head of keys and values, with all heads of queries that use it.
    let group = |data: &mut [f32], b_i: usize, g_i: usize, places: &dyn Fn(usize) -> [Place; 3]| {
        for h_i in g_i * h / g..(g_i + 1) * h / g {
            let (start, stride) = (b_i * t * h * e + h_i * e, h * e);
            let (out, dout) = (Rows { data: &out[start..], stride }, Rows { data: &dout[start..], stride });
            let saved = Saved { out, dout, softmax: &softmax[(b_i * h + h_i) * t..][..t] };
            let inputs = [views[0].rows(b_i, h_i), views[1].rows(b_i, g_i), views[2].rows(b_i, g_i)];
            kernel::backward(Gradients { data, places: places(h_i) }, saved, inputs, scale, &visible(b_i), head);
        }
    };
    let mut gradients = vec![0.0; b * layout.len];
    if splits_heads(sizes) {
        let (per_group, dk) = (h / g, h / g * t * d);
        let local = |h_i: usize| {
            let first = h_i % per_group * t * d;
            let (dv, stride) = (dk + s * d, d);
            [Place { offset: first, stride }, Place { offset: dk, stride }, Place { offset: dv, stride: e }]
        };
        let groups = parallel::map(b * g, |i| {
            let mut data = vec![0.0; dk + s * d + s * e];
            group(&mut data, i / g, i % g, &local);
            data
        });
        for (i, data) in groups.iter().enumerate() {
            let piece = &mut gradients[i / g * layout.len..][..layout.len];
            let (dq, rest) = data.split_at(dk);
            for (j, dq) in dq.chunks_exact(t * d).enumerate() {
                layout.head(i % g * per_group + j, i % g)[0].fill(piece, dq, d);
            }
            let [_, place_k, place_v] = layout.head(0, i % g);
            place_k.fill(piece, &rest[..s * d], d);
            place_v.fill(piece, &rest[s * d..], e);
        }
    } else {
        parallel::for_each_chunk(&mut gradients, layout.len, |b_i, piece| {
            for g_i in 0..g {
                group(piece, b_i, g_i, &|h_i| layout.head(h_i, g_i));
            }
        });
    }
    gradients
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
        let views = [View::new(q.as_slice()?, q_l), View::new(k.as_slice()?, k_l), View::new(v.as_slice()?, v_l)];
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
        let layout = GradientLayout::separate(sizes);
        let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
        let (q_values, k_values, v_values) = (values(&q)?, values(&k)?, values(&v)?);
        let views = [
            View::new(&q_values, &contiguous(&q)),
            View::new(&k_values, &contiguous(&k)),
            View::new(&v_values, &contiguous(&v)),
        ];
        let gradients = self.backward(views, out, dout, layout, sizes)?;
        let gradients = Tensor::from_vec(gradients, (sizes.b, layout.len), &Device::Cpu)?;
        let part = |i: usize, like: &Tensor| {
            gradients.narrow(1, layout.places[i].offset, like.elem_count() / sizes.b)?.reshape(like.shape())
        };
        Ok((Some(part(0, &q)?), Some(part(1, &k)?), Some(part(2, &v)?)))
    }
}

/// The layout of a contiguous tensor's values, counted from their own first.
fn contiguous(tensor: &Tensor) -> Layout {
    Layout::contiguous(tensor.shape())
}

fn sizes(q: &Shape, k: &Shape, v: &Shape) -> Result<Sizes> {
    let ((b, t, h, d), (_, s, g, e)) = (q.dims4()?, v.dims4()?);
    debug_assert_eq!(k.dims(), [b, s, g, d]);
    Ok(Sizes { b, h, g, head: Dims { t, s, d, e } })
}

/// The operation on queries, keys and values packed as (B, T, 3, H, D): what one projection gives.
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
        let sizes = self.sizes(dims);
        let layout = GradientLayout::packed(sizes.h, sizes.head.d, sizes.head.t);
        let packed_values = values(packed)?;
        let gradients = self.attention.backward(self.views(&packed_values, dims), out, dout, layout, sizes)?;
        Ok(Some(Tensor::from_vec(gradients, packed.shape(), &Device::Cpu)?))
    }
}
