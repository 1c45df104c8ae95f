//! The attention weights of all heads for one prompt, and the logit lens.

use std::collections::BTreeMap;
use std::io::BufWriter;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::head_scores::HeadScores;
use super::logit_lens::LogitLens;
use crate::cpu::storage::values;
use crate::host::{Result, bail, disk, memory};
use crate::model::{CausalLm, TensorFile, write_tensors};

/// What one forward pass over a prompt shows: who attends to whom, and what each layer would predict.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AttentionMap {
    /// The prompt's ids (T).
    pub ids: Vec<u32>,
    /// The weight that position `t` gives to position `s`, for every layer and head: (L, H, T, T), `f32`. What a position
    /// may not see has weight 0.
    pub weights: Tensor,
    /// The predictions after each layer.
    pub lens: LogitLens,
}

/// The names of the tensors on disk.
const IDS: &str = "ids";
const WEIGHTS: &str = "attention";
const SCORES: &str = "head_scores";

impl AttentionMap {
    /// Runs `model` over the prompt `ids`.
    ///
    /// # Errors
    /// If there are no ids or more than the model's context, one is V or more, memory cannot hold the weights, or the model
    /// gives numbers that are not finite.
    pub fn new(model: &CausalLm, ids: &[u32]) -> Result<Self> {
        let map = Self::of(model, ids)?;
        match map.is_finite()? {
            true => Ok(map),
            false => bail!("attention-map: the model gives numbers that are not finite"),
        }
    }

    /// As [`new`](Self::new), finite or not.
    pub(crate) fn of(model: &CausalLm, ids: &[u32]) -> Result<Self> {
        let (config, t) = (model.config(), ids.len());
        let max = config.context_len;
        if !(1..=max).contains(&t) {
            bail!("attention-map: expected a prompt of 1 to {max} tokens, the model's context, got {t}");
        }
        // Of each layer, then of all together.
        let bytes = memory::tensor_bytes(&[2, config.num_layers, config.num_heads, t, t], size_of::<f32>());
        memory::check(&format!("attention-map: the weights of {t} tokens"), bytes)?;
        let trace = model.trace(&Tensor::new(ids, model.device())?.unsqueeze(0)?)?;
        let weights = Tensor::cat(&trace.weights, 0)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?; // (L, H, T, T)
        Ok(Self { ids: ids.to_vec(), weights, lens: LogitLens::new(model, &trace.residuals, ids)? })
    }

    pub(crate) fn is_finite(&self) -> Result<bool> {
        let all = [&self.weights, &self.lens.probabilities, &self.lens.next];
        // NaN and infinity times zero are NaN, also in a sum.
        let sums = all.map(|tensor| (tensor * 0.0)?.sum_all()?.to_scalar::<f32>());
        Ok(sums.into_iter().collect::<candle_core::Result<Vec<_>>>()?.iter().all(|sum| *sum == 0.0))
    }

    /// Whether this is a map of the same prompt, by a model of the same sizes.
    pub fn is_comparable(&self, other: &Self) -> bool {
        let sizes = |map: &Self| [map.weights.dims().to_vec(), map.lens.ids.dims().to_vec()];
        self.ids == other.ids && sizes(self) == sizes(other)
    }

    /// The number of layers and heads: (L, H).
    pub fn heads(&self) -> (usize, usize) {
        let dims = self.weights.dims();
        (dims[0], dims[1])
    }

    /// The weights (T, T) of one head, row by row, each a query. Layer and head are counted from 0.
    ///
    /// # Errors
    /// If there is no such head.
    pub fn head(&self, layer: usize, head: usize) -> Result<Vec<f32>> {
        Ok(self.weights.get(layer)?.get(head)?.flatten_all()?.to_vec1()?)
    }

    /// A few numbers for each head, by layer.
    ///
    /// # Errors
    /// If the weights cannot be read.
    pub fn scores(&self) -> Result<Vec<Vec<HeadScores>>> {
        let ((layers, heads), t) = (self.heads(), self.ids.len());
        let weights = self.weights.contiguous()?;
        let all: Vec<HeadScores> =
            values(&weights)?.chunks_exact(t * t).map(|weights| HeadScores::of(weights, &self.ids)).collect();
        Ok((0..layers).map(|layer| all[layer * heads..][..heads].to_vec()).collect())
    }

    /// Writes the map to a safetensors file, which appears by one rename, with `metadata`, such as the texts of the tokens.
    ///
    /// | tensor | shape | |
    /// |---|---|---|
    /// | `ids` | (T), `u32` | the prompt |
    /// | `attention` | (L, H, T, T) | weight of query `t` on key `s` |
    /// | `head_scores` | (L, H, 6) | [`HeadScores::NAMES`]; NaN where there is none |
    /// | `lens.ids` | (L + 1, T, K), `u32` | [`LogitLens::ids`] |
    /// | `lens.probabilities` | (L + 1, T, K) | [`LogitLens::probabilities`] |
    /// | `lens.next` | (L + 1, T) | [`LogitLens::next`] |
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, path: &Path, mut metadata: BTreeMap<&str, String>) -> Result<()> {
        let (layers, heads) = self.heads();
        let scores: Vec<f32> = self.scores()?.iter().flatten().flat_map(|scores| scores.numbers()).collect();
        let scores = Tensor::from_vec(scores, (layers, heads, HeadScores::NAMES.len()), &Device::Cpu)?;
        let LogitLens { ids, probabilities, next } = &self.lens;
        let tensors = [
            (IDS, &Tensor::new(&self.ids[..], &Device::Cpu)?),
            (WEIGHTS, &self.weights),
            (SCORES, &scores),
            ("lens.ids", ids),
            ("lens.probabilities", probabilities),
            ("lens.next", next),
        ];
        let tensors = tensors.map(|(name, tensor)| (name.to_string(), tensor.clone())).into();
        metadata.insert(SCORES, HeadScores::NAMES.join(", "));
        disk::replace_quickly(path, |file| write_tensors(&mut BufWriter::new(file), &tensors, &metadata))
    }

    /// Reads a map that [`save`](Self::save) has written.
    ///
    /// # Errors
    /// If it cannot be read, or its tensors do not fit together.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = TensorFile::open(path)?;
        let mut read = |name: &str| file.read(name, &Device::Cpu);
        let (ids, weights) = (read(IDS)?, read(WEIGHTS)?);
        let lens =
            LogitLens { ids: read("lens.ids")?, probabilities: read("lens.probabilities")?, next: read("lens.next")? };
        let malformed = |error: candle_core::Error| {
            crate::Error::Input(format!("{}: expected an attention map, got {error}", path.display()))
        };
        let t = ids.dims1().map_err(malformed)?;
        let (layers, heads, _, _) = weights.dims4().map_err(malformed)?;
        let (_, _, k) = lens.ids.dims3().map_err(malformed)?;
        let shapes = [
            (&ids, vec![t], DType::U32),
            (&weights, vec![layers, heads, t, t], DType::F32),
            (&lens.ids, vec![layers + 1, t, k], DType::U32),
            (&lens.probabilities, vec![layers + 1, t, k], DType::F32),
            (&lens.next, vec![layers + 1, t], DType::F32),
        ];
        for (tensor, dims, dtype) in shapes {
            if tensor.dims() != dims || tensor.dtype() != dtype || t == 0 {
                let (got, of) = (tensor.dims(), tensor.dtype());
                bail!("{}: expected a tensor {dims:?} of {dtype:?}, got {got:?} of {of:?}", path.display());
            }
        }
        let map = Self { ids: ids.to_vec1()?, weights, lens };
        match map.is_finite()? {
            true => Ok(map),
            false => bail!("{}: expected an attention map, got numbers that are not finite", path.display()),
        }
    }
}
