//! The model below adapters, which is not trained.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use sha2::{Digest, Sha256};

use crate::cpu::parallel::map;
use crate::cpu::storage::values;
use crate::host::{Error, ModelPath, Result, bail};
use crate::model::{CausalLm, ModelConfig, load_weights};
use crate::nn::LoraConfig;

/// A model on disk whose weights stay as they are, and which is fine-tuned through adapters (LoRA).
pub struct FrozenBase {
    /// Where it is, as an absolute path.
    pub(super) path: PathBuf,
    /// SHA-256 of its weights, in hexadecimal, with the rank and alpha of its adapters.
    pub(super) fingerprint: String,
    pub(super) lora: LoraConfig,
    weights: VarBuilder<'static>,
}

impl FrozenBase {
    /// Reads the weights of the model at `path`, whose configuration is `config`, with dropout as it should be in training.
    ///
    /// # Errors
    /// Those of [`load_weights`], and if it is an adapter itself.
    pub fn open(path: &Path, lora: &LoraConfig, config: &ModelConfig, device: &Device) -> Result<Self> {
        if let ModelPath::Adapter(_) = ModelPath::of(path)? {
            bail!("{}: adapters (LoRA) cannot be trained on top of an adapter: merge that first", path.display());
        }
        let absolute = std::path::absolute(path).map_err(Error::io("read", path))?;
        let weights = load_weights(path, config, device)?;
        let fingerprint = format!("{} rank {} alpha {}", fingerprint(&weights)?, lora.rank, lora.alpha);
        let weights = VarBuilder::from_tensors(weights.into_iter().collect(), DType::F32, device);
        Ok(Self { path: absolute, fingerprint, lora: *lora, weights })
    }

    /// The model with adapters from `vb`.
    pub(super) fn with_adapters(&self, config: &ModelConfig, vb: VarBuilder) -> candle_core::Result<CausalLm> {
        CausalLm::new(config, self.weights.clone())?.with_lora(&self.lora, vb)
    }
}

/// SHA-256 over that of each tensor, whose name, shape and values count.
fn fingerprint(weights: &BTreeMap<String, Tensor>) -> Result<String> {
    const BUFFERED: usize = 1 << 14;
    let of_tensor = |(name, tensor): (&String, &Tensor)| -> Result<Sha256> {
        let mut hash = Sha256::new_with_prefix(format!("{name} {:?} ", tensor.dims()));
        let mut bytes = Vec::with_capacity(BUFFERED * size_of::<f32>());
        for values in values(&tensor.to_device(&Device::Cpu)?.contiguous()?)?.chunks(BUFFERED) {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            hash.update(&bytes);
        }
        Ok(hash)
    };
    let tensors: Vec<(&String, &Tensor)> = weights.iter().collect();
    let mut all = Sha256::new();
    for hash in map(tensors.len(), |i| of_tensor(tensors[i])) {
        all.update(hash?.finalize());
    }
    Ok(all.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
