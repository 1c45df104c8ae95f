//! Low-rank adapters of linear layers.

use candle_core::{Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

use super::Linear;
use crate::ops::{self, record};

/// The size of adapters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraConfig {
    /// The rank of the product B A (r).
    pub rank: usize,
    /// The adapters' output is multiplied by `alpha / rank`.
    pub alpha: f64,
}

impl LoraConfig {
    /// Adapters of this rank, and an `alpha` of twice it.
    pub fn new(rank: usize) -> Self {
        Self { rank, alpha: 2.0 * rank as f64 }
    }

    /// The factor on the adapters' output.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Reads or creates `lora_A.weight` (r, in).
    pub(super) fn down(&self, in_dim: usize, vb: &VarBuilder) -> Result<Tensor> {
        if self.rank == 0 || !self.alpha.is_finite() {
            bail!("lora: expected a rank of at least 1 and a finite alpha, got {} and {}", self.rank, self.alpha);
        }
        let bound = 1.0 / (in_dim as f64).sqrt();
        vb.pp("lora_A").get_with_hints((self.rank, in_dim), "weight", Init::Uniform { lo: -bound, up: bound })
    }

    /// Reads or creates `lora_B.weight` (out, r).
    pub(super) fn up(&self, out_dim: usize, vb: &VarBuilder) -> Result<Tensor> {
        vb.pp("lora_B").get_with_hints((out_dim, self.rank), "weight", candle_nn::init::ZERO)
    }
}

/// A linear layer that is fine-tuned through a low-rank adapter (LoRA, Hu et al. 2021, arXiv:2106.09685):
///
/// ```text
/// y = x W^T + b + (alpha / r) (x A^T) B^T
/// ```
///
/// W and b are frozen: no gradient is computed for them. A (r, in) starts uniformly in `±1 / sqrt(in)` and B (out, r) at
/// zero, as in PEFT, so that the layer starts as the one without an adapter. At the first step the gradient of A is
/// therefore zero.
///
/// ```
/// use candle_attention::nn::{Linear, LoraConfig, LoraLinear, Parameters};
/// use candle_core::{DType, Device, Module, Tensor};
///
/// // A layer from anywhere: here with W (3, 2) of ones.
/// let base = Linear::new(Tensor::ones((3, 2), DType::F32, &Device::Cpu)?, None);
/// let parameters = Parameters::new(42);
/// let layer = LoraLinear::new(base, &LoraConfig::new(1), parameters.var_builder(DType::F32, &Device::Cpu))?;
///
/// let xs = Tensor::new(&[[1f32, 2.]], &Device::Cpu)?;
/// assert_eq!(layer.forward(&xs)?.to_vec2::<f32>()?, [[3., 3., 3.]]);
/// // A and B are all that is trained, and saved.
/// assert_eq!(parameters.count(), 2 + 3);
/// // One matrix again, for inference.
/// assert_eq!(layer.merged()?.weight().dims(), [3, 2]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LoraLinear {
    base: Linear,
    a: Tensor,
    b: Tensor,
    scale: f64,
}

impl LoraLinear {
    /// Freezes a layer, and reads or creates its adapter: `lora_A.weight` (r, in) and `lora_B.weight` (out, r).
    ///
    /// # Errors
    /// If the rank is 0, or the builder lacks a tensor or has it in another shape.
    pub fn new(base: Linear, config: &LoraConfig, vb: VarBuilder) -> Result<Self> {
        let (out_dim, in_dim) = base.weight().dims2()?;
        let (a, b) = (config.down(in_dim, &vb)?, config.up(out_dim, &vb)?);
        Self::from_tensors(base, a, b, config.scale())
    }

    /// From a layer, which is frozen, A (r, in), B (out, r), and the factor on `(x A^T) B^T`.
    ///
    /// # Errors
    /// If the shapes do not fit together.
    pub fn from_tensors(base: Linear, a: Tensor, b: Tensor, scale: f64) -> Result<Self> {
        let (out_dim, in_dim) = base.weight().dims2()?;
        let (rank, _) = a.dims2()?;
        if a.dims() != [rank, in_dim] || b.dims() != [out_dim, rank] {
            bail!(
                "lora: expected A (r, {in_dim}) and B ({out_dim}, r) for a weight ({out_dim}, {in_dim}), got {:?} and {:?}",
                a.dims(),
                b.dims()
            );
        }
        let base = Linear::new(base.weight().detach(), base.bias().map(Tensor::detach));
        Ok(Self { base, a, b, scale })
    }

    /// The frozen layer.
    pub fn base(&self) -> &Linear {
        &self.base
    }

    /// A (r, in).
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// B (out, r).
    pub fn b(&self) -> &Tensor {
        &self.b
    }

    /// The factor on `(x A^T) B^T`: `alpha / r`.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The same function as one layer, with the weight `W + (alpha / r) B A`; without a graph.
    ///
    /// # Errors
    /// If the tensors differ in dtype or device.
    pub fn merged(&self) -> Result<Linear> {
        let delta = (self.b.detach().matmul(&self.a.detach())? * self.scale)?;
        Ok(Linear::new((self.base.weight() + delta)?, self.base.bias().cloned()))
    }
}

impl Module for LoraLinear {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let down = record::scale(&ops::linear(xs, &self.a, None)?, self.scale)?; // (.., r)
        record::add(&self.base.forward(xs)?, &ops::linear(&down, &self.b, None)?)
    }
}
