//! The report as a page.

use std::path::Path;

use anyhow::Result;
use candle_attention::inspect::{HeadSpectra, Spectrum, TensorReport};
use serde::Serialize;

use super::{Inspected, described, model};
use crate::pages::Page;

/// What the page reads.
#[derive(Serialize)]
struct Data {
    model: String,
    layers: usize,
    /// Each head, by layer.
    heads: Vec<Vec<Head>>,
    /// The same before training, where that is known.
    heads_at_start: Option<Vec<Vec<Head>>>,
    /// In the order of a forward pass.
    tensors: Vec<Tensor>,
    start: Known,
    gradients: Known,
}

#[derive(Serialize)]
struct Head {
    qk: Matrix,
    vo: Matrix,
}

#[derive(Serialize)]
struct Matrix {
    frobenius: f64,
    spectral: f64,
    rank: f64,
    /// The singular values, the largest first.
    values: Vec<f32>,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    /// Counted from 0; none of what belongs to no layer.
    layer: Option<usize>,
    /// The name in the layer.
    kind: String,
    shape: Vec<usize>,
    norm: f64,
    /// None where it started at zero, or the start is not known.
    change: Option<f64>,
    /// None where it is not a finite number, or no gradients are known.
    gradient: Option<f64>,
}

/// Whether something is known: what it is, or why it is missing.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Known {
    Is(String),
    Missing(String),
}

/// Writes the page.
pub fn write(file: &Path, inspected: &Inspected) -> Result<()> {
    let page = Page {
        body: include_str!("../../pages/weights.html"),
        title: &format!("Weights of {}", inspected.name),
        css: include_str!("../../pages/weights.css"),
        script: include_str!("../../pages/weights.js"),
    };
    let data = Data {
        model: model(&inspected.config),
        layers: inspected.config.num_layers,
        heads: heads(&inspected.report.heads),
        heads_at_start: inspected.start.as_deref().ok().map(heads),
        tensors: inspected.report.tensors.iter().map(Tensor::from).collect(),
        start: match &inspected.start {
            Ok(_) => Known::Is("the weights that training started from".into()),
            Err(reason) => Known::Missing(reason.clone()),
        },
        gradients: match &inspected.gradients {
            Ok(gradients) => Known::Is(described(gradients)),
            Err(reason) => Known::Missing(reason.clone()),
        },
    };
    page.write(file, &data)
}

fn heads(layers: &[Vec<HeadSpectra>]) -> Vec<Vec<Head>> {
    let head = |head: &HeadSpectra| Head { qk: (&head.qk).into(), vo: (&head.vo).into() };
    layers.iter().map(|heads| heads.iter().map(head).collect()).collect()
}

impl From<&Spectrum> for Matrix {
    fn from(spectrum: &Spectrum) -> Self {
        Self {
            frobenius: spectrum.frobenius_norm(),
            spectral: spectrum.spectral_norm(),
            rank: spectrum.stable_rank(),
            values: spectrum.singular_values.iter().map(|value| *value as f32).collect(),
        }
    }
}

impl From<&TensorReport> for Tensor {
    fn from(tensor: &TensorReport) -> Self {
        let in_layer = || {
            let (layer, kind) = tensor.name.strip_prefix("blocks.")?.split_once('.')?;
            Some((layer.parse().ok()?, kind.to_string()))
        };
        let (layer, kind) = in_layer().map_or((None, tensor.name.clone()), |(layer, kind)| (Some(layer), kind));
        Self {
            name: tensor.name.clone(),
            layer,
            kind,
            shape: tensor.shape.clone(),
            norm: tensor.norm,
            change: tensor.change.filter(|change| change.is_finite()),
            gradient: tensor.gradient.filter(|norm| norm.is_finite()),
        }
    }
}
