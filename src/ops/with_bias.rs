//! Operations on an input, a weight and perhaps a bias, as candle has operations: on two tensors, or on three.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::record::{self, Kept};
use crate::cpu::storage::slice;

/// An operation whose gradients depend on its inputs alone, which are contiguous.
pub(super) trait WithBias: Send + Sync + 'static {
    const NAME: &'static str;

    /// The result; an empty bias is none.
    fn forward(
        &self,
        xs: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: &[f32],
    ) -> Result<(CpuStorage, Shape)>;

    /// The gradients of input, weight and bias.
    fn backward(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        dys: &Tensor,
    ) -> Result<[Option<Tensor>; 3]>;
}

/// Applies an operation.
pub(super) fn apply(op: impl WithBias, xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (xs, weight) = (xs.contiguous()?, weight.contiguous()?);
    match bias {
        Some(bias) => record::apply3([&xs, &weight, &bias.contiguous()?], Op(op), Kept::Inputs),
        None => record::apply2(&xs, &weight, Op(op)),
    }
}

struct Op<O>(O);

impl<O: WithBias> CustomOp2 for Op<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_l: &Layout,
        weight: &CpuStorage,
        weight_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.0.forward((xs, xs_l), (weight, weight_l), &[])
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _ys: &Tensor,
        dys: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dxs, dweight, _] = self.0.backward(xs, weight, None, dys)?;
        Ok((dxs, dweight))
    }
}

impl<O: WithBias> CustomOp3 for Op<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_l: &Layout,
        weight: &CpuStorage,
        weight_l: &Layout,
        bias: &CpuStorage,
        bias_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.0.forward((xs, xs_l), (weight, weight_l), slice(bias, bias_l)?)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _ys: &Tensor,
        dys: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dxs, dweight, dbias] = self.0.backward(xs, weight, Some(bias), dys)?;
        Ok((dxs, dweight, dbias))
    }
}
