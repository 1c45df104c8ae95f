//! The fused operations: from tensors to rows.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};

use super::kernel::{self, Row, Targets, Terms};
use super::linear_kernel::{self, Gradients, Problem};
use crate::cpu::storage::{slice, values};
use crate::ops::with_bias::WithBias;

/// Cross-entropy of logits, with what backward needs of each row.
pub(super) struct CrossEntropy {
    pub(super) targets: Targets,
    pub(super) rows: OnceLock<Vec<Row>>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (loss, rows) = kernel::forward(slice(logits, layout)?, &self.targets);
        // Each call creates its own operation, so this is still empty.
        let _ = self.rows.set(rows);
        Ok((CpuStorage::F32(vec![loss]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _loss: &Tensor, dloss: &Tensor) -> Result<Option<Tensor>> {
        let Some(rows) = self.rows.get() else { bail!("cross-entropy: backward before forward") };
        let mut dlogits = vec![0.0; logits.elem_count()];
        kernel::backward(&mut dlogits, &values(logits)?, rows, &self.targets, dloss.to_scalar::<f32>()?.into());
        Ok(Some(Tensor::from_vec(dlogits, logits.shape(), &Device::Cpu)?))
    }
}

/// A linear layer, with and without a bias, and cross-entropy. Forward also computes the gradients of inputs that are
/// tracked, for a loss gradient of 1.
pub(super) struct LinearCrossEntropy {
    pub(super) targets: Vec<u32>,
    pub(super) normalizer: f64,
    pub(super) terms: Terms,
    /// Whether input, weight and bias are tracked.
    pub(super) tracked: [bool; 3],
    pub(super) gradients: OnceLock<[Option<Tensor>; 3]>,
}

impl WithBias for LinearCrossEntropy {
    const NAME: &'static str = "linear-cross-entropy";

    fn forward(
        &self,
        (xs, xs_l): (&CpuStorage, &Layout),
        (weight, weight_l): (&CpuStorage, &Layout),
        bias: &[f32],
    ) -> Result<(CpuStorage, Shape)> {
        let (vocab_size, channels) = weight_l.shape().dims2()?;
        let (xs, weight) = (slice(xs, xs_l)?, slice(weight, weight_l)?);
        let mut gradients = Gradients {
            dxs: self.tracked[0].then(|| vec![0.0; xs.len()]),
            dweight: self.tracked[1].then(Vec::new),
            dbias: self.tracked[2].then(|| vec![0.0; bias.len()]),
        };
        let &Self { normalizer, terms, .. } = self;
        let problem = Problem { xs, weight, bias, targets: &self.targets, normalizer, terms, channels, vocab_size };
        let loss = linear_kernel::forward(&problem, &mut gradients);
        let Gradients { dxs, dweight, dbias } = gradients;
        let tensor = |gradient: Option<Vec<f32>>, shape: &[usize]| {
            gradient.map(|gradient| Tensor::from_vec(gradient, shape, &Device::Cpu)).transpose()
        };
        let dbias = dbias.map(|dbias| dbias.into_iter().map(|d| d as f32).collect());
        let gradients = [tensor(dxs, xs_l.dims())?, tensor(dweight, weight_l.dims())?, tensor(dbias, &[vocab_size])?];
        // Each call creates its own operation, so this is still empty.
        let _ = self.gradients.set(gradients);
        Ok((CpuStorage::F32(vec![loss]), Shape::from(())))
    }

    fn backward(&self, _: &Tensor, _: &Tensor, _: Option<&Tensor>, dloss: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let Some([dxs, dweight, dbias]) = self.gradients.get() else {
            bail!("linear-cross-entropy: backward before forward")
        };
        let dloss = f64::from(dloss.to_scalar::<f32>()?);
        let scaled = |gradient: &Option<Tensor>| match gradient {
            Some(gradient) if dloss != 1.0 => (gradient * dloss).map(Some),
            gradient => Ok(gradient.clone()),
        };
        Ok([scaled(dxs)?, scaled(dweight)?, scaled(dbias)?])
    }
}
