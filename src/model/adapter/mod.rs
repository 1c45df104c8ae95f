//! Adapters (LoRA) in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! | on disk, after `base_model.model.` | shape | here |
//! |---|---|---|
//! | `NAME.lora_A.weight` | (r, in) | `PART.lora_A.weight` |
//! | `NAME.lora_B.weight` | (out, r) | `PART.lora_B.weight` |
//!
//! NAME is that of a linear layer of the blocks on disk, PART that in the model, both as in [`tensors`]. gpt2's packed
//! `c_attn` has one A, here `qkv_proj.lora_A.weight`, and a B that is cut into those of `q_proj`, `k_proj` and `v_proj`.

mod peft_config;
mod peft_file;

use super::config::ModelConfig;
use super::tensors;
use crate::nn::LoraConfig;

pub(crate) use peft_config::{adapter_json, own_adapter};
pub(crate) use peft_file::{merge_adapter, save_adapter};

/// A linear layer of the blocks, which an adapter may change.
struct Site {
    /// Its name on disk.
    on_disk: String,
    /// The layers of the model that it consists of.
    parts: Vec<String>,
    /// The shape of the stacked weight.
    shape: [usize; 2],
}

impl Site {
    /// The name of A in the model.
    fn a(&self) -> String {
        let part = match self.parts.as_slice() {
            [part] => part.clone(),
            parts => parts[0].replace("q_proj", "qkv_proj"),
        };
        format!("{part}.lora_A.weight")
    }

    /// The names of the parts of B in the model.
    fn b(&self) -> impl Iterator<Item = String> {
        self.parts.iter().map(|part| format!("{part}.lora_B.weight"))
    }
}

/// All linear layers of the blocks, in the order of a forward pass.
fn sites(config: &ModelConfig) -> Vec<Site> {
    let is_in_a_block = |entry: &tensors::Entry| entry.parts[0].starts_with("blocks.");
    let matrices = tensors::entries(config).into_iter().filter(is_in_a_block);
    let site = |entry: tensors::Entry| match entry.shape[..] {
        [out_dim, in_dim] => Some(Site { on_disk: entry.on_disk, parts: entry.parts, shape: [out_dim, in_dim] }),
        _ => None,
    };
    matrices.filter_map(site).collect()
}

impl ModelConfig {
    /// The names and shapes of the tensors of an adapter on all linear layers of the blocks, in the order of a forward
    /// pass.
    pub fn lora_parameters(&self, lora: &LoraConfig) -> Vec<(String, Vec<usize>)> {
        let of_site = |site: Site| {
            let [out_dim, in_dim] = site.shape;
            let b = [out_dim / site.parts.len(), lora.rank];
            let all = std::iter::once((site.a(), vec![lora.rank, in_dim]));
            all.chain(site.b().map(|name| (name, b.to_vec())).collect::<Vec<_>>())
        };
        sites(self).into_iter().flat_map(of_site).collect()
    }

    /// The number of scalars in them.
    pub fn lora_parameter_count(&self, lora: &LoraConfig) -> usize {
        self.lora_parameters(lora).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }
}
