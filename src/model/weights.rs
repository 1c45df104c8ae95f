//! The weights on disk: Hugging Face's names and layout of a GPT-2.
//!
//! Hugging Face packs the three projections of attention into one matrix and stores the matrices of its `Conv1D`
//! as (in, out), where this crate's layers have one matrix each, stored as (out, in):
//!
//! | on disk, after `transformer.` | shape | here |
//! |---|---|---|
//! | `wte.weight`, `wpe.weight` | (V, C), (context, C) | `token_embedding.weight`, `position_embedding.weight` |
//! | `h.N.ln_1`, `h.N.ln_2`, `ln_f` | (C) | `blocks.N.attention_norm`, `blocks.N.mlp_norm`, `norm` |
//! | `h.N.attn.c_attn` | (C, 3C) | `blocks.N.attention.{q_proj, k_proj, v_proj}`, each (C, C) |
//! | `h.N.attn.c_proj` | (C, C) | `blocks.N.attention.o_proj` (C, C) |
//! | `h.N.mlp.c_fc` | (C, F) | `blocks.N.mlp.up_proj` (F, C) |
//! | `h.N.mlp.c_proj` | (F, C) | `blocks.N.mlp.down_proj` (C, F) |
//! | `lm_head.weight` (no prefix; absent if tied) | (V, C) | `head.weight` (V, C) |
//!
//! All but the embeddings and the head have a bias on disk; a model without biases writes zeros.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek};
use std::path::Path;

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::config::ModelConfig;
use super::tensor_file::TensorFile;
use crate::errors::{bare, listed};
use crate::{files, input, memory};

/// One tensor on disk, `weight` and possibly `bias`, and the tensors of the model that it consists of.
#[derive(Clone)]
struct Entry {
    on_disk: String,
    /// Names in the model, stacked along the first dimension.
    parts: Vec<String>,
    /// Shape of the weight of all parts stacked.
    shape: Vec<usize>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A matrix stored as it is, never with a bias.
    Embedding,
    /// A vector and its bias.
    Norm,
    /// A matrix stored transposed, and its bias.
    Projection,
}

fn entries(config: &ModelConfig) -> Vec<Entry> {
    let &ModelConfig { vocab_size: v, context_len, embed_dim: c, hidden_dim: f, .. } = config;
    let mut all = Vec::new();
    let mut add = |on_disk: String, parts: &[String], shape: &[usize], kind| {
        all.push(Entry { on_disk, parts: parts.to_vec(), shape: shape.to_vec(), kind });
    };
    add("transformer.wte".into(), &["token_embedding".into()], &[v, c], Kind::Embedding);
    add("transformer.wpe".into(), &["position_embedding".into()], &[context_len, c], Kind::Embedding);
    for i in 0..config.num_layers {
        let on_disk = |name| format!("transformer.h.{i}.{name}");
        let part = |name: &str| format!("blocks.{i}.{name}");
        let qkv = ["attention.q_proj", "attention.k_proj", "attention.v_proj"].map(part);
        add(on_disk("ln_1"), &[part("attention_norm")], &[c], Kind::Norm);
        add(on_disk("attn.c_attn"), &qkv, &[3 * c, c], Kind::Projection);
        add(on_disk("attn.c_proj"), &[part("attention.o_proj")], &[c, c], Kind::Projection);
        add(on_disk("ln_2"), &[part("mlp_norm")], &[c], Kind::Norm);
        add(on_disk("mlp.c_fc"), &[part("mlp.up_proj")], &[f, c], Kind::Projection);
        add(on_disk("mlp.c_proj"), &[part("mlp.down_proj")], &[c, f], Kind::Projection);
    }
    add("transformer.ln_f".into(), &["norm".into()], &[c], Kind::Norm);
    if !config.tie_embeddings {
        add("lm_head".into(), &["head".into()], &[v, c], Kind::Embedding);
    }
    all
}

/// Writes `tensors`, by their names in the model, to `path` in Hugging Face's layout; the file is replaced whole.
///
/// # Errors
/// If a tensor of `config` is missing from `tensors`, or the file cannot be written.
pub fn save_weights(path: &Path, config: &ModelConfig, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    files::replace_with(path, &weights_to_bytes(config, tensors)?)
}

/// The content of the file that [`save_weights`] writes.
pub(crate) fn weights_to_bytes(config: &ModelConfig, tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    let get = |name: String| match tensors.get(&name) {
        Some(tensor) => Ok(tensor),
        None => bail!("weights: {name} is missing"),
    };
    let stack = |parts: &[String], suffix: &str| {
        let parts = parts.iter().map(|part| get(format!("{part}.{suffix}"))).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 0)
    };
    let mut on_disk = Vec::new();
    for entry in entries(config) {
        let weight = stack(&entry.parts, "weight")?;
        let (dtype, device) = (weight.dtype(), weight.device().clone());
        let weight = if entry.kind == Kind::Projection { weight.t()?.contiguous()? } else { weight };
        on_disk.push((format!("{}.weight", entry.on_disk), weight));
        if entry.kind != Kind::Embedding {
            let bias = match config.bias {
                true => stack(&entry.parts, "bias")?,
                false => Tensor::zeros(entry.shape[0], dtype, &device)?,
            };
            on_disk.push((format!("{}.bias", entry.on_disk), bias));
        }
    }
    safetensors_to_bytes(on_disk)
}

/// The content of a safetensors file that transformers opens.
pub(crate) fn safetensors_to_bytes(tensors: Vec<(String, Tensor)>) -> Result<Vec<u8>> {
    // transformers refuses files that do not name the framework whose layout they have.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    Ok(safetensors::serialize(tensors, Some(metadata))?)
}

/// Reads a `model.safetensors` of Hugging Face's layout: the tensors by their names in the model, as `f32`.
///
/// The prefix `transformer.` may be absent, and the masks that old files hold as buffers are passed over. Names, shapes and
/// dtypes are compared with `config` before a tensor is read.
///
/// # Errors
/// If the file cannot be read, lies outside of its folder by a link, or needs more memory than there is; or tensors are
/// missing, left over, misshapen, or not zero though `config` has no biases; all of them are listed.
pub fn load_weights(path: &Path, config: &ModelConfig, device: &Device) -> Result<BTreeMap<String, Tensor>> {
    let (folder, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
    read_weights(path, TensorFile::open(&input::inside(folder, name)?)?, config, device)
}

/// [`load_weights`] of a file with this content; `path` is for messages.
pub(crate) fn weights_from_bytes(
    path: &Path,
    bytes: &[u8],
    config: &ModelConfig,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>> {
    read_weights(path, TensorFile::from_bytes(path, bytes)?, config, device)
}

/// A name on disk, the entry it belongs to, and whether it is its `weight` or its `bias`.
type Found = (String, Entry, &'static str);

/// See [`load_weights`].
fn read_weights<R: Read + Seek>(
    path: &Path,
    mut file: TensorFile<R>,
    config: &ModelConfig,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>> {
    config.validate()?;
    let (mut found, mut problems) = assigned(&file.tensors(), config);
    if problems.is_empty() {
        memory::check(&path.display().to_string(), config.parameter_bytes())?;
    } else {
        // Only what may be one more problem is read.
        found.retain(|(_, _, suffix)| *suffix == "bias" && !config.bias);
    }
    let mut tensors = BTreeMap::new();
    for (on_disk, entry, suffix) in found {
        let tensor = file.read(&on_disk, device)?;
        match entry.unpack(suffix, &tensor, config.bias) {
            Ok(parts) => tensors.extend(parts),
            Err(error) => problems.push(format!("{on_disk}: {}", bare(&error))),
        }
    }
    if problems.is_empty() { Ok(tensors) } else { Err(in_file(path, &problems)) }
}

/// For each tensor of the model that fits its name on disk, and what it is; and all that is wrong with the names, shapes
/// and dtypes.
fn assigned(tensors: &BTreeMap<String, TensorInfo>, config: &ModelConfig) -> (Vec<Found>, Vec<String>) {
    let (mut on_disk, mut problems) = (BTreeMap::new(), Vec::new());
    for (name, info) in tensors {
        if name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") {
            continue;
        }
        if let Some((twin, _)) = on_disk.insert(with_prefix(name), (name.clone(), info)) {
            problems.push(format!("{twin} and {name} are the same tensor"));
        }
    }
    if config.tie_embeddings {
        // Tied by the configuration: some files hold the copy all the same.
        on_disk.remove("lm_head.weight");
    }
    let mut found = Vec::new();
    for entry in entries(config) {
        for suffix in ["weight", "bias"] {
            if suffix == "bias" && entry.kind == Kind::Embedding {
                continue;
            }
            let name = format!("{}.{suffix}", entry.on_disk);
            match on_disk.remove(&name).map(|(name, info)| (entry.misfit(suffix, info), name)) {
                None => problems.push(format!("{name} is missing")),
                Some((Some(misfit), name)) => problems.push(format!("{name}: {misfit}")),
                Some((None, name)) => found.push((name, entry.clone(), suffix)),
            }
        }
    }
    problems.extend(on_disk.into_values().map(|(name, _)| format!("{name} has no place in the model")));
    (found, problems)
}

fn in_file(path: &Path, problems: &[String]) -> Error {
    Error::Msg(format!("{}: {}", path.display(), listed(problems)))
}

fn with_prefix(name: &str) -> String {
    let has_prefix = name.starts_with("transformer.") || name.starts_with("lm_head.");
    if has_prefix { name.to_string() } else { format!("transformer.{name}") }
}

impl Entry {
    fn is_transposed(&self, suffix: &str) -> bool {
        suffix == "weight" && self.kind == Kind::Projection
    }

    /// What is wrong with the tensor on disk of `suffix` `weight` or `bias`.
    fn misfit(&self, suffix: &str, info: &TensorInfo) -> Option<String> {
        let mut expected = if suffix == "weight" { self.shape.clone() } else { vec![self.shape[0]] };
        if self.is_transposed(suffix) {
            expected.reverse();
        }
        if info.shape != expected {
            return Some(format!("expected shape {expected:?}, got {:?}", info.shape));
        }
        let is_float = matches!(info.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64 | Dtype::F8_E4M3);
        (!is_float).then(|| format!("expected a floating-point dtype, got {:?}", info.dtype))
    }

    /// The model's tensors in the tensor on disk of `suffix` `weight` or `bias`, which fits.
    fn unpack(&self, suffix: &str, tensor: &Tensor, has_biases: bool) -> Result<Vec<(String, Tensor)>> {
        let tensor = tensor.to_dtype(DType::F32)?;
        if suffix == "bias" && !has_biases {
            if tensor.abs()?.max_all()?.to_scalar::<f32>()? != 0.0 {
                bail!("expected zeros, as config.json has \"bias\": false");
            }
            return Ok(Vec::new());
        }
        let tensor = if self.is_transposed(suffix) { tensor.t()?.contiguous()? } else { tensor };
        let parts = tensor.chunk(self.parts.len(), 0)?;
        let named = self.parts.iter().zip(parts);
        named.map(|(name, part)| Ok((format!("{name}.{suffix}"), part.contiguous()?))).collect()
    }
}
