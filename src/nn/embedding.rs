//! An embedding: a learnable table of rows.

use candle_core::{DType, Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

use crate::ops;

/// candle-nn's `Embedding` on [`ops::embedding`]: ids of any integer dtype (..) give rows (.., C) of a learnable table
/// (V, C).
#[derive(Clone, Debug)]
pub struct Embedding {
    embeddings: Tensor,
    hidden_size: usize,
}

impl Embedding {
    /// From its table (V, C); `hidden_size` is C.
    pub fn new(embeddings: Tensor, hidden_size: usize) -> Self {
        Self { embeddings, hidden_size }
    }

    /// The table (V, C).
    pub fn embeddings(&self) -> &Tensor {
        &self.embeddings
    }

    /// Channels of a row (C).
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }
}

impl Module for Embedding {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let ids = match ids.dtype() {
            DType::I64 => in_u32(ids)?,
            dtype if dtype.is_int() => ids.to_dtype(DType::U32)?,
            _ => ids.clone(),
        };
        ops::embedding(&ids, &self.embeddings)
    }
}

/// Converts ids of `i64`, which candle's own conversion would truncate.
fn in_u32(ids: &Tensor) -> Result<Tensor> {
    let values: Vec<i64> = ids.flatten_all()?.to_vec1()?;
    let narrow = |id: i64| match u32::try_from(id) {
        Ok(id) => Ok(id),
        Err(_) => bail!("embedding: expected ids from 0 to below 2^32, got {id}"),
    };
    Tensor::from_vec(values.into_iter().map(narrow).collect::<Result<Vec<u32>>>()?, ids.shape(), ids.device())
}

/// Reads or creates `weight` (V, C), drawn from the standard normal distribution.
///
/// # Errors
/// If the builder lacks the tensor or has it in another shape.
pub fn embedding(in_size: usize, out_size: usize, vb: VarBuilder) -> Result<Embedding> {
    let weight = vb.get_with_hints((in_size, out_size), "weight", Init::Randn { mean: 0.0, stdev: 1.0 })?;
    Ok(Embedding::new(weight, out_size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn ids_may_have_any_integer_dtype() {
        let table = Embedding::new(Tensor::new(&[[0f32], [1.], [2.], [3.]], &Device::Cpu).unwrap(), 1);
        let of = |ids: Tensor| table.forward(&ids).and_then(|rows| rows.flatten_all()?.to_vec1::<f32>());
        let ids = Tensor::new(&[3u32, 1], &Device::Cpu).unwrap();
        for dtype in [DType::U8, DType::U32, DType::I64] {
            assert_eq!(of(ids.to_dtype(dtype).unwrap()).unwrap(), [3.0, 1.0]);
        }
        for id in [-1, 4, (1i64 << 32) + 3] {
            let error = of(Tensor::new(&[id], &Device::Cpu).unwrap()).unwrap_err().to_string();
            assert!(error.contains(&format!("got {id}")), "{error}");
        }
    }
}
