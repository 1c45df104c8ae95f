//! Row look-up by candle's own operations, for any dtype and device.

use candle_core::{Result, Tensor};

use crate::cpu::storage::precise;

/// See [`super::embedding`]; the arguments have been checked, and give a result of shape `out_shape`.
pub(super) fn embedding(ids: &Tensor, weight: &Tensor, out_shape: Vec<usize>) -> Result<Tensor> {
    let dtype = weight.dtype();
    // The gradients of a row are summed, and in half precision a long sum would stop growing.
    let weight = if weight.track_op() { weight.to_dtype(precise(dtype))? } else { weight.clone() };
    weight.contiguous()?.index_select(&ids.flatten_all()?, 0)?.reshape(out_shape)?.to_dtype(dtype)
}
