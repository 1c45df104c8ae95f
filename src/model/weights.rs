//! Reading and writing weights with Hugging Face's names and layout, listed in [`tensors`](super::tensors).

use std::collections::BTreeMap;
use std::io::BufWriter;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::adapter::merge_adapter;
use super::config::ModelConfig;
use super::gguf;
use super::tensor_file::write_tensors;
use super::tensor_files::TensorFiles;
use super::tensors::{self, Bias, Entry, HEAD};
use crate::host::{Error, ModelPath, Result, adapter_base, bail, disk, listed, memory};
use crate::nn::mapping::unpacked;

/// Writes `tensors`, given by their names in the model, to `path` in Hugging Face's layout. The file is replaced
/// atomically.
///
/// # Errors
/// If a tensor of `config` is missing from `tensors`, or the file cannot be written.
pub fn save_weights(path: &Path, config: &ModelConfig, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    save_weights_with(path, config, tensors, BTreeMap::new())
}

/// As [`save_weights`], with more metadata.
pub(crate) fn save_weights_with(
    path: &Path,
    config: &ModelConfig,
    tensors: &BTreeMap<String, Tensor>,
    mut metadata: BTreeMap<&str, String>,
) -> Result<()> {
    // transformers refuses files that do not name a framework.
    metadata.insert("format", "pt".into());
    let on_disk = on_disk(config, tensors)?;
    disk::replace(path, |file| write_tensors(&mut BufWriter::new(file), &on_disk, &metadata))
}

/// The tensors of a model by their names on disk.
fn on_disk(config: &ModelConfig, tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let get = |name: String| match tensors.get(&name) {
        Some(tensor) => Ok(tensor),
        None => bail!("weights: {name} is missing"),
    };
    let stack = |parts: &[String], suffix: &str| {
        let parts = parts.iter().map(|part| get(format!("{part}.{suffix}"))).collect::<Result<Vec<_>>>()?;
        Ok::<_, Error>(Tensor::cat(&parts, 0)?)
    };
    let mut on_disk = BTreeMap::new();
    for entry in tensors::entries(config) {
        let weight = stack(&entry.parts, "weight")?;
        let (dtype, device) = (weight.dtype(), weight.device().clone());
        let weight = if entry.is_transposed { weight.t()?.contiguous()? } else { weight };
        on_disk.insert(format!("{}.weight", entry.on_disk), weight);
        let bias = match entry.bias {
            Bias::Absent => continue,
            Bias::Zero => Tensor::zeros(entry.shape[0], dtype, &device)?,
            Bias::Trained => stack(&entry.parts, "bias")?,
        };
        on_disk.insert(format!("{}.bias", entry.on_disk), bias);
    }
    Ok(on_disk)
}

/// Reads the weights of a model: of a folder in Hugging Face's layout, in one file or in shards, of a single
/// `.safetensors` file, or of a GGUF file. An adapter (LoRA) in PEFT's layout is merged into the weights of its base. The
/// tensors have their names in the model and are `f32`.
///
/// The prefix `transformer.` or `model.` may be absent, wrappers of torch may have left `module.` or `_orig_mod.` in the
/// names, a tied head may have the name of the embedding, of the head or both, and tables that follow from the sizes are
/// ignored. Names, shapes and dtypes are compared with `config` before any tensor is read.
///
/// # Errors
/// If a file cannot be read, is a link out of its folder, or needs more memory than there is; or if tensors are
/// missing, left over or misshapen, biases are not zero though `config` has none, or the head differs from the token
/// embedding though `config` ties them. All of these are listed, the first twelve by name.
pub fn load_weights(path: &Path, config: &ModelConfig, device: &Device) -> Result<BTreeMap<String, Tensor>> {
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        return read_weights(TensorFiles::open(path)?, config, device);
    }
    match ModelPath::of(path)? {
        ModelPath::Folder(folder) => read_weights(TensorFiles::of(&folder)?, config, device),
        ModelPath::Gguf(file) => gguf::load_weights(&file, config, device),
        ModelPath::Adapter(folder) => {
            let weights = load_weights(&adapter_base(&folder)?, config, device)?;
            merge_adapter(&folder, weights, config, device)
        }
    }
}

/// The token embedding's name in the model.
const EMBEDDING: &str = "token_embedding.weight";

/// A name on disk, the entry it belongs to, and which part of it: `weight` or `bias`.
type Found = (String, Entry, &'static str);

/// See [`load_weights`].
fn read_weights(mut files: TensorFiles, config: &ModelConfig, device: &Device) -> Result<BTreeMap<String, Tensor>> {
    config.validate()?;
    let path = files.path().to_path_buf();
    let (mut found, copy, mut problems) = assigned(&files.tensors(), config);
    if problems.is_empty() {
        memory::check(&path.display().to_string(), config.parameter_bytes())?;
    } else {
        // Read only what may reveal further problems.
        found.retain(|(_, entry, suffix)| *suffix == "bias" && entry.bias == Bias::Zero);
    }
    let mut tensors = BTreeMap::new();
    for (on_disk, entry, suffix) in found {
        let tensor = files.read(&on_disk, device)?;
        match entry.unpack(suffix, &tensor) {
            Ok(parts) => tensors.extend(parts),
            Err(error) => problems.push(format!("{on_disk}: {error}")),
        }
    }
    if let Some(copy) = copy.filter(|_| problems.is_empty()) {
        let head = files.read(&copy, device)?.to_dtype(DType::F32)?;
        if !is_same(&head, tensors.get(EMBEDDING))? {
            problems.push(format!(
                "{copy} is not the token embedding, though config.json ties the head to it (tie_word_embeddings)"
            ));
        }
    }
    if problems.is_empty() {
        return Ok(tensors);
    }
    Err(Error::Input(format!("{}: {}", path.display(), listed(&problems))))
}

fn is_same(tensor: &Tensor, other: Option<&Tensor>) -> Result<bool> {
    match other.filter(|other| other.dims() == tensor.dims()) {
        Some(other) => Ok(tensor.ne(other)?.max_all()?.to_scalar::<u8>()? == 0),
        None => Ok(false),
    }
}

/// The tensors on disk that fit the model; the name on disk of a head that should be a copy of the token embedding; and
/// all problems with names, shapes and dtypes.
fn assigned(infos: &BTreeMap<String, TensorInfo>, config: &ModelConfig) -> (Vec<Found>, Option<String>, Vec<String>) {
    let (mut on_disk, mut problems) = (BTreeMap::new(), Vec::new());
    for (name, info) in infos {
        let plain = plain_name(name, config);
        if tensors::is_table(config.architecture, &plain) {
            continue;
        }
        if let Some((twin, _)) = on_disk.insert(plain, (name.clone(), info)) {
            problems.push(format!("{twin} and {name} are the same tensor"));
        }
    }
    // Files contain a tied tensor under either name, or both.
    let embedding = tensors::embedding(config.architecture);
    let mut copy = if config.tie_embeddings { on_disk.remove(&format!("{HEAD}.weight")) } else { None };
    if !on_disk.contains_key(embedding)
        && let Some(head) = copy.take()
    {
        on_disk.insert(embedding.into(), head);
    }
    let mut found = Vec::new();
    for entry in tensors::entries(config) {
        for &suffix in entry.suffixes() {
            let name = format!("{}.{suffix}", entry.on_disk);
            match on_disk.remove(&name).map(|(name, info)| (entry.misfit(suffix, info), name)) {
                None => problems.push(format!("{name} is missing")),
                Some((Some(misfit), name)) => problems.push(format!("{name}: {misfit}")),
                Some((None, name)) => found.push((name, entry.clone(), suffix)),
            }
        }
    }
    problems.extend(on_disk.into_values().map(|(name, _)| format!("{name} has no place in the model")));
    (found, copy.map(|(name, _)| name), problems)
}

/// The name as transformers writes it: with the architecture's prefix, and without what wrappers of torch put in it.
fn plain_name(name: &str, config: &ModelConfig) -> String {
    const WRAPPERS: [&str; 4] = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
    let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    let (name, prefix) = (parts.join("."), tensors::prefix(config.architecture));
    let is_whole = name.starts_with(prefix) || name.starts_with(HEAD);
    if is_whole { name } else { format!("{prefix}{name}") }
}

impl Entry {
    /// What is wrong with the tensor on disk, if anything; `suffix` is `weight` or `bias`.
    fn misfit(&self, suffix: &str, info: &TensorInfo) -> Option<String> {
        let mut expected = if suffix == "weight" { self.shape.clone() } else { vec![self.shape[0]] };
        if suffix == "weight" && self.is_transposed {
            expected.reverse();
        }
        if info.shape != expected {
            return Some(format!("expected shape {expected:?}, got {:?}", info.shape));
        }
        let is_float = matches!(info.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64 | Dtype::F8_E4M3);
        (!is_float).then(|| format!("expected a floating-point dtype, got {:?}", info.dtype))
    }

    /// Splits a tensor on disk that fits into the model's tensors; `suffix` is `weight` or `bias`.
    pub(super) fn unpack(&self, suffix: &str, tensor: &Tensor) -> Result<Vec<(String, Tensor)>> {
        let tensor = tensor.to_dtype(DType::F32)?;
        if suffix == "bias" && self.bias == Bias::Zero {
            if tensor.abs()?.max_all()?.to_scalar::<f32>()? != 0.0 {
                bail!("expected zeros, as config.json has \"bias\": false");
            }
            return Ok(Vec::new());
        }
        let parts = unpacked(&tensor, self.parts.len(), suffix == "weight" && self.is_transposed)?;
        Ok(self.parts.iter().zip(parts).map(|(name, part)| (format!("{name}.{suffix}"), part)).collect())
    }
}
