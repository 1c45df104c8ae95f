//! `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::io::BufWriter;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::peft_config::PeftConfig;
use super::{Site, sites};
use crate::host::file_names::ADAPTER_WEIGHTS;
use crate::host::{Error, Result, bail, disk, input, listed};
use crate::model::tensor_file::{TensorFile, write_tensors};
use crate::model::tensors;
use crate::model::{Architecture, ModelConfig};

/// What precedes the names of the model.
const PREFIX: &str = "base_model.model.";

/// Writes the tensors of an adapter, given by their names in the model. The file is replaced atomically.
///
/// # Errors
/// If a tensor is missing, or the file cannot be written.
pub(crate) fn save_adapter(
    path: &Path,
    config: &ModelConfig,
    adapter: &BTreeMap<String, Tensor>,
    mut metadata: BTreeMap<&str, String>,
) -> Result<()> {
    metadata.insert("format", "pt".into());
    let get = |name: String| match adapter.get(&name) {
        Some(tensor) => Ok(tensor),
        None => bail!("adapter: {name} is missing"),
    };
    let mut on_disk = BTreeMap::new();
    for site in sites(config) {
        let name = format!("{PREFIX}{}", site.on_disk);
        let b = site.b().map(get).collect::<Result<Vec<_>>>()?;
        on_disk.insert(format!("{name}.lora_A.weight"), get(site.a())?.clone());
        on_disk.insert(format!("{name}.lora_B.weight"), Tensor::cat(&b, 0)?);
    }
    disk::replace(path, |file| write_tensors(&mut BufWriter::new(file), &on_disk, &metadata))
}

/// Adds the product of the adapter in a folder to the weights of its base model: `W + scale B A` for each layer that has
/// one.
///
/// # Errors
/// If the adapter cannot be read, or one of its tensors does not belong to a linear layer of the blocks.
pub(crate) fn merge_adapter(
    folder: &Path,
    mut weights: BTreeMap<String, Tensor>,
    config: &ModelConfig,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>> {
    let peft = PeftConfig::open(folder)?;
    if !folder.join(ADAPTER_WEIGHTS).exists() && folder.join("adapter_model.bin").exists() {
        bail!(
            "{}: adapter_model.bin is a pickle, which is not read: save the adapter (LoRA) as safetensors",
            folder.display()
        );
    }
    let path = input::inside(folder, ADAPTER_WEIGHTS)?;
    let mut file = TensorFile::open(&path)?;
    let (pairs, mut problems) = pairs(&file, config);
    for (site, [a, b]) in pairs {
        let (rank, scale) = peft.of(&site.on_disk);
        let (a, b) = (read(&mut file, &a, device)?, read(&mut file, &b, device)?);
        let [out_dim, in_dim] = site.shape;
        if a.dims() != [rank, in_dim] || b.dims() != [out_dim, rank] {
            problems.push(format!(
                "{}: expected lora_A of shape [{rank}, {in_dim}] and lora_B of [{out_dim}, {rank}], got {:?} and {:?}",
                site.on_disk,
                a.dims(),
                b.dims()
            ));
            continue;
        }
        site.add(&(b.matmul(&a)? * scale)?, &mut weights)?;
    }
    if problems.is_empty() {
        Ok(weights)
    } else {
        Err(Error::Input(format!("{}: {}", path.display(), listed(&problems))))
    }
}

/// The layers that have an adapter, with the names of A and B on disk, and all problems with names.
fn pairs(file: &TensorFile, config: &ModelConfig) -> (Vec<(Site, [String; 2])>, Vec<String>) {
    let mut places: BTreeMap<(String, char), String> = BTreeMap::new();
    let mut problems = Vec::new();
    for name in file.tensors().into_keys() {
        match place(&name, config.architecture) {
            Some(place) => {
                if let Some(twin) = places.insert(place, name.clone()) {
                    problems.push(format!("{twin} and {name} are the same tensor"));
                }
            }
            None => problems.push(format!("{name} is no matrix of an adapter (LoRA)")),
        }
    }
    let mut pairs = Vec::new();
    for site in sites(config) {
        let [a, b] = ['A', 'B'].map(|matrix| places.remove(&(site.on_disk.clone(), matrix)));
        match (a, b) {
            (Some(a), Some(b)) => pairs.push((site, [a, b])),
            (None, None) => {}
            (Some(alone), None) | (None, Some(alone)) => problems.push(format!("{alone} is without its pair")),
        }
    }
    let others = places.into_values();
    problems.extend(others.map(|name| format!("{name}: expected adapters on linear layers of the blocks only")));
    (pairs, problems)
}

/// The layer that a tensor on disk belongs to, and whether it is A or B. The name of the adapter may be in it.
fn place(name: &str, architecture: Architecture) -> Option<(String, char)> {
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    let (layer, end) = name.split_once(".lora_")?;
    let (matrix, end) = (end.chars().next()?, end.get(1..)?);
    if !['A', 'B'].contains(&matrix) || !end.ends_with(".weight") || end.matches('.').count() > 2 {
        return None;
    }
    let prefix = tensors::prefix(architecture);
    let is_whole = layer.starts_with(prefix) || layer == tensors::HEAD;
    Some((if is_whole { layer.to_string() } else { format!("{prefix}{layer}") }, matrix))
}

fn read(file: &mut TensorFile, name: &str, device: &Device) -> Result<Tensor> {
    Ok(file.read(name, device)?.to_dtype(DType::F32)?)
}

impl Site {
    /// Adds a matrix to the weights of its parts.
    fn add(&self, delta: &Tensor, weights: &mut BTreeMap<String, Tensor>) -> Result<()> {
        for (part, delta) in self.parts.iter().zip(delta.chunk(self.parts.len(), 0)?) {
            let name = format!("{part}.weight");
            let Some(weight) = weights.get_mut(&name) else { bail!("{name} is missing in the base of the adapter") };
            *weight = (&*weight + delta)?;
        }
        Ok(())
    }
}
