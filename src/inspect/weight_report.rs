//! What the weights of a model look like, without a text.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::spectrum::{Spectrum, triangle};
use crate::cpu::parallel::map;
use crate::cpu::sums::euclidean_norm;
use crate::host::{Result, bail};
use crate::model::ModelConfig;

/// The norms and spectra of a model's weights, how far they have moved, and how much of a gradient reaches them.
///
/// ```
/// use candle_attention::{inspect::WeightReport, model::{CausalLm, ModelConfig}, nn::Parameters};
/// use candle_core::{DType, Device};
///
/// let config = ModelConfig { embed_dim: 12, num_heads: 3, num_layers: 2, ..ModelConfig::gpt2(11) };
/// let parameters = Parameters::new(0);
/// CausalLm::new(&config, parameters.var_builder(DType::F32, &Device::Cpu))?;
/// let weights = parameters.vars().into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect();
///
/// let report = WeightReport::new(&config, &weights, None, None)?;
/// let head = &report.heads[1][2]; // layer 2, head 3
/// assert_eq!(head.vo.singular_values.len(), 4); // D
/// assert!(head.qk.spectral_norm() <= head.qk.frobenius_norm());
/// # Ok::<(), candle_attention::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WeightReport {
    /// Each head, by layer.
    pub heads: Vec<Vec<HeadSpectra>>,
    /// Each tensor, in the order of a forward pass.
    pub tensors: Vec<TensorReport>,
}

/// The two matrices (C, C) that a head consists of, each of rank D at most. With W^Q, W^K, W^V (C, D) and W^O (D, C) of the
/// head; heads that share keys and values share W^K and W^V.
///
/// Source: Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HeadSpectra {
    /// Of `W^Q W^K^T / sqrt(D)`, the bilinear form of the scores: `score[t][s] = x_t (W^Q W^K^T) x_s^T / sqrt(D)` for rows
    /// `x_t` that have gone through the norm before the layer. That norm's own weight, biases of the projections, rotary
    /// positions and the norms of queries and keys (qwen3) are not part of it.
    pub qk: Spectrum,
    /// Of `W^V W^O`: what the head writes into the residual stream, `x_s W^V W^O`, for a token that it looks at. The norm's
    /// weight and biases are not part of it.
    pub vo: Spectrum,
}

/// One tensor. Norms are Euclidean.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TensorReport {
    /// Its name in the model.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// `|W|`.
    pub norm: f64,
    /// `|W - W_0| / |W_0|` with the initial weights W_0; infinite where they were zero and are no longer. `None` without
    /// initial weights.
    pub change: Option<f64>,
    /// The norm of the gradient, which may have overflowed; `None` without gradients.
    pub gradient: Option<f64>,
}

impl WeightReport {
    /// From the weights of a model, by their names in the model, and the initial weights and the gradients where there are
    /// any, such as [`train::initial_weights`](crate::train::initial_weights) and
    /// [`train::gradients`](crate::train::gradients) give.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape than `config` says, or a weight is not finite.
    pub fn new(
        config: &ModelConfig,
        weights: &BTreeMap<String, Tensor>,
        initial: Option<&BTreeMap<String, Tensor>>,
        gradients: Option<&BTreeMap<String, Tensor>>,
    ) -> Result<Self> {
        config.validate()?;
        let tensors = config.parameters().into_iter().map(|(name, shape)| {
            let weight = tensor("weights", weights, &name, &shape)?;
            let norm = finite("weights", &name, &weight)?;
            let moved = |initial| -> Result<f64> {
                let initial = tensor("initial weights", initial, &name, &shape)?;
                let (start, moved) =
                    (finite("initial weights", &name, &initial)?, euclidean_norm(&(&weight - initial)?)?);
                Ok(if moved == 0.0 { 0.0 } else { moved / start })
            };
            let of_gradient = |all| -> Result<f64> { Ok(euclidean_norm(&tensor("gradients", all, &name, &shape)?)?) };
            let (change, gradient) = (initial.map(moved).transpose()?, gradients.map(of_gradient).transpose()?);
            Ok(TensorReport { name, shape, norm, change, gradient })
        });
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let heads = (0..config.num_layers).map(|layer| heads(config, weights, layer)).collect::<Result<_>>()?;
        Ok(Self { heads, tensors })
    }
}

/// A tensor in `f32` on the CPU, without its graph: it is only looked at.
fn tensor(kind: &str, tensors: &BTreeMap<String, Tensor>, name: &str, shape: &[usize]) -> Result<Tensor> {
    match tensors.get(name) {
        None => bail!("{kind}: {name} is missing"),
        Some(tensor) if tensor.dims() != shape => {
            bail!("{kind}: expected {name} of shape {shape:?}, got {:?}", tensor.dims())
        }
        Some(tensor) => Ok(tensor.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?),
    }
}

/// The norm of a tensor.
fn finite(kind: &str, name: &str, tensor: &Tensor) -> Result<f64> {
    match euclidean_norm(tensor)? {
        norm if norm.is_finite() => Ok(norm),
        norm => bail!("{kind}: expected finite values in {name}, got some that are not: its norm is {norm}"),
    }
}

/// The heads of a layer.
fn heads(config: &ModelConfig, weights: &BTreeMap<String, Tensor>, layer: usize) -> Result<Vec<HeadSpectra>> {
    let (c, d, groups) = (config.embed_dim, config.head_channels(), config.kv_heads());
    let rows = |name: &str, heads: usize| -> Result<Vec<f32>> {
        let name = format!("blocks.{layer}.attention.{name}.weight");
        Ok(tensor("weights", weights, &name, &[heads * d, c])?.flatten_all()?.to_vec1()?)
    };
    let (q, k, v) = (rows("q_proj", config.num_heads)?, rows("k_proj", groups)?, rows("v_proj", groups)?);
    let name = format!("blocks.{layer}.attention.o_proj.weight");
    let o = tensor("weights", weights, &name, &[c, config.num_heads * d])?;
    let o: Vec<f32> = o.t()?.flatten_all()?.to_vec1()?; // (H D, C)
    // D rows of C values, a head of a weight stored as (out, in), are the D columns of its (C, D).
    let of = |rows: &[f32], head: usize| {
        triangle(rows[head * d * c..][..d * c].iter().map(|value| f64::from(*value)).collect(), c, d)
    };
    let shared = map(groups, |group| (of(&k, group), of(&v, group)));
    let spectra = map(config.num_heads, |head| {
        let (k, v) = &shared[head * groups / config.num_heads];
        let qk = Spectrum::of_product(&of(&q, head), k, config.attention_scale(layer))?;
        Ok(HeadSpectra { qk, vo: Spectrum::of_product(v, &of(&o, head), 1.0)? })
    });
    spectra.into_iter().collect()
}
