//! Embedding: look-up of rows by id.

mod kernel;
mod reference;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};

use super::record::{self, Kept};
use crate::cpu::storage::{has_kernel, slice, values};

/// `out[i] = weight[ids[i]]`: `ids` (..) of dtype `u32`, `weight` (V, C), result (.., C).
///
/// # Errors
/// If an id is V or more, `ids` is not of dtype `u32`, or the devices differ.
///
/// ```
/// use candle_attention::ops;
/// use candle_core::{Device, Tensor};
///
/// let weight = Tensor::new(&[[1f32, 2.], [3., 4.], [5., 6.]], &Device::Cpu)?;
/// let ids = Tensor::new(&[2u32, 0], &Device::Cpu)?;
/// assert_eq!(ops::embedding(&ids, &weight)?.to_vec2::<f32>()?, [[5., 6.], [1., 2.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn embedding(ids: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (rows, channels) = weight.dims2()?;
    if ids.dtype() != DType::U32 || !weight.dtype().is_float() {
        let (ids, weight) = (ids.dtype(), weight.dtype());
        bail!(
            "embedding: expected ids of dtype U32 and a weight of a floating-point dtype, got {ids:?} and {weight:?}"
        );
    }
    if !ids.device().same_device(weight.device()) {
        let (expected, got) = (weight.device().location(), ids.device().location());
        bail!("embedding: expected ids on the weight's device {expected:?}, got {got:?}");
    }
    // candle's own look-up silently gives a row of zeros for the highest `u32`.
    let read: Vec<u32> = ids.flatten_all()?.to_vec1()?;
    if let Some(id) = read.iter().find(|&&id| id as usize >= rows) {
        bail!("embedding: expected ids below {rows}, got {id}");
    }
    let out_shape = [ids.dims(), &[channels]].concat();
    match has_kernel(&[weight]) && weight.elem_count() > 0 {
        true => record::apply1(&weight.contiguous()?, Embedding { ids: read, out_shape }, Kept::Inputs),
        false => reference::embedding(ids, weight, out_shape),
    }
}

/// The fused operation.
struct Embedding {
    ids: Vec<u32>,
    out_shape: Vec<usize>,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, weight: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, c) = layout.shape().dims2()?;
        let mut out = vec![0.0; self.ids.len() * c];
        kernel::forward(&mut out, slice(weight, layout)?, &self.ids, c);
        Ok((CpuStorage::F32(out), self.out_shape.as_slice().into()))
    }

    fn bwd(&self, weight: &Tensor, _out: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        let dout = dout.contiguous()?;
        let mut dweight = vec![0.0; weight.elem_count()];
        kernel::backward(&mut dweight, &values(&dout)?, &self.ids, weight.dim(1)?);
        Ok(Some(Tensor::from_vec(dweight, weight.shape(), &Device::Cpu)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_like_reference, randn};
    use candle_core::Var;

    fn ids(n: usize, v: usize) -> Tensor {
        Tensor::from_vec((0..n).map(|i| (i * i % v) as u32).collect::<Vec<_>>(), n, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_kernel_is_the_reference() {
        for (n, v, c) in [(1, 1, 1), (7, 13, 5), (1009, 31, 67), (3, 40_009, 1), (5, 2, 20_011), (0, 3, 5)] {
            let ids = ids(n, v);
            let reference = |x: &[Tensor]| reference::embedding(&ids, &x[0], vec![n, c]);
            assert_like_reference(
                &format!("embedding {n} {v} {c}"),
                &[randn(1, &[v, c])],
                &|x| embedding(&ids, &x[0]),
                &reference,
            );
        }
    }

    #[test]
    fn shapes_and_strides_of_ids_and_weight_do_not_matter() {
        let ids = ids(30, 7).reshape((2, 3, 5)).unwrap().transpose(0, 2).unwrap();
        let fused = |x: &[Tensor]| embedding(&ids, &x[0].narrow(1, 4, 7)?.t()?);
        let reference = |x: &[Tensor]| reference::embedding(&ids, &x[0].narrow(1, 4, 7)?.t()?, vec![5, 3, 2, 11]);
        assert_like_reference("embedding of views", &[randn(1, &[11, 13])], &fused, &reference);
    }

    /// The sum of a thousand gradients of 1, which in half precision would stop at 256.
    #[test]
    fn gradients_in_half_precision_are_summed_in_single() {
        let weight = Var::from_tensor(&Tensor::ones((3, 2), DType::BF16, &Device::Cpu).unwrap()).unwrap();
        let ids = Tensor::zeros(1024, DType::U32, &Device::Cpu).unwrap();
        let gradients = embedding(&ids, &weight).unwrap().sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(&weight).unwrap().to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(gradient, [[1024., 1024.], [0., 0.], [0., 0.]]);
    }

    #[test]
    fn empty_ids_and_tables_give_empty_results() {
        for (n, v, c) in [(0, 3, 5), (0, 0, 5), (2, 3, 0)] {
            for dtype in [DType::F32, DType::F64] {
                let weight = Tensor::zeros((v, c), dtype, &Device::Cpu).unwrap();
                assert_eq!(embedding(&ids(n, v), &weight).unwrap().dims(), [n, c]);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for dtype in [DType::F32, DType::F64] {
            let weight = randn(1, &[7, 3]).to_dtype(dtype).unwrap();
            let error =
                |ids: &[u32]| embedding(&Tensor::new(ids, &Device::Cpu).unwrap(), &weight).unwrap_err().to_string();
            assert!(error(&[3, 7]).contains("embedding: expected ids below 7, got 7"));
            assert!(error(&[u32::MAX]).contains("embedding: expected ids below 7, got 4294967295"));
            let bytes = Tensor::new(&[1u8], &Device::Cpu).unwrap();
            let error = embedding(&bytes, &weight).unwrap_err().to_string();
            assert!(error.contains("embedding: expected ids of dtype U32"), "{error}");
        }
    }
}
