//! GGUF, the file format of llama.cpp, whose names and layouts these are:
//!
//! | here | in the file | layout |
//! |---|---|---|
//! | `token_embedding`, `position_embedding`, `norm`, `head` | `token_embd`, `position_embd`, `output_norm`, `output` (absent if tied) | the same |
//! | `blocks.N.attention_norm`, `blocks.N.mlp_norm` | `blk.N.attn_norm`, `blk.N.ffn_norm` | the same |
//! | `blocks.N.attention.{q_proj, k_proj, v_proj}` | `blk.N.attn_q`, `attn_k`, `attn_v` | in llama, rows of q and k paired (below) |
//! | the same in gpt2 | `blk.N.attn_qkv` | stacked: (3C, C) |
//! | `blocks.N.attention.{o_proj, q_norm, k_norm}` | `blk.N.attn_output`, `attn_q_norm`, `attn_k_norm` | the same |
//! | `blocks.N.mlp.{gate_proj, up_proj, down_proj}` | `blk.N.ffn_gate`, `ffn_up`, `ffn_down` | the same |
//!
//! `rope_freqs` has the numbers that the frequencies of rotary positions are divided by, as Llama 3 does.
//!
//! Rotary positions turn pairs of channels. In llama.cpp's `llama` the two are neighbours; in its `qwen3`, and here, they are
//! half a head apart.

mod config;
mod rope;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{Device, Tensor};

use super::tensors::{self, Entry};
use super::{Architecture, ModelConfig};
use crate::host::gguf::GgufFile;
use crate::host::{Error, Result, listed, memory};

pub(super) use config::open_config;
pub use write::{GgufType, save_gguf};

/// Names in the model outside the blocks, and in the file.
const NAMES: [(&str, &str); 4] = [
    ("token_embedding", "token_embd"),
    ("position_embedding", "position_embd"),
    ("norm", "output_norm"),
    ("head", "output"),
];

/// Names in a block of the model, and in the file.
const IN_BLOCKS: [(&str, &str); 11] = [
    ("attention_norm", "attn_norm"),
    ("attention.q_proj", "attn_q"),
    ("attention.k_proj", "attn_k"),
    ("attention.v_proj", "attn_v"),
    ("attention.o_proj", "attn_output"),
    ("attention.q_norm", "attn_q_norm"),
    ("attention.k_norm", "attn_k_norm"),
    ("mlp_norm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// A layer's name in the file.
fn name(entry: &Entry) -> String {
    let part = entry.parts[0].as_str();
    let of = |names: &[(&str, &str)], part: &str| {
        names.iter().find(|(ours, _)| *ours == part).map_or_else(|| part.to_string(), |(_, theirs)| theirs.to_string())
    };
    match part.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
        Some((block, _)) if entry.parts.len() == 3 => format!("blk.{block}.attn_qkv"),
        Some((block, part)) => format!("blk.{block}.{}", of(&IN_BLOCKS, part)),
        None => of(&NAMES, part),
    }
}

/// The heads whose rows of this layer are paired in the file, if they are.
fn paired_heads(entry: &Entry, config: &ModelConfig) -> Option<usize> {
    let is = |part| entry.parts[0].ends_with(part);
    match config.architecture {
        Architecture::Llama if is("attention.q_proj") => Some(config.num_heads),
        Architecture::Llama if is("attention.k_proj") => Some(config.kv_heads()),
        _ => None,
    }
}

/// With each head's rows, `[outer, inner]` of them, ordered by the inner index first.
fn reordered(tensor: &Tensor, heads: usize, [outer, inner]: [usize; 2]) -> candle_core::Result<Tensor> {
    let columns = tensor.elem_count() / (heads * outer * inner);
    tensor.reshape((heads, outer, inner, columns))?.transpose(1, 2)?.contiguous()?.reshape(tensor.dims())
}

/// Reads the weights of a model as [`load_weights`](super::load_weights) does.
pub(super) fn load_weights(path: &Path, config: &ModelConfig, device: &Device) -> Result<BTreeMap<String, Tensor>> {
    config.validate()?;
    let mut file = GgufFile::open(path)?;
    let (found, problems) = assigned(&file, config);
    let in_file = |problems: &[String]| Error::Input(format!("{}: {}", path.display(), listed(problems)));
    if !problems.is_empty() {
        return Err(in_file(&problems));
    }
    memory::check(&path.display().to_string(), config.parameter_bytes())?;
    let mut tensors = BTreeMap::new();
    for (name, entry, suffix) in found {
        let mut tensor = file.read(&name, device)?;
        if let Some(heads) = paired_heads(&entry, config) {
            tensor = reordered(&tensor, heads, [config.head_channels() / 2, 2])?;
        }
        tensors.extend(entry.unpack(suffix, &tensor).map_err(|error| in_file(&[format!("{name}: {error}")]))?);
    }
    Ok(tensors)
}

/// The tensors of the file, each with the layer it belongs to and `weight` or `bias`, and what is wrong with them.
fn assigned(file: &GgufFile, config: &ModelConfig) -> (Vec<(String, Entry, &'static str)>, Vec<String>) {
    let mut left: BTreeSet<&str> = file.names().into_iter().collect();
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for entry in tensors::entries(config) {
        // No matrix is transposed in this format.
        let entry = Entry { is_transposed: false, ..entry };
        for &suffix in entry.suffixes() {
            let name = format!("{}.{suffix}", name(&entry));
            let expected = if suffix == "weight" { &entry.shape[..] } else { &entry.shape[..1] };
            match file.shape(&name) {
                None => problems.push(format!("{name} is missing")),
                Some(shape) if shape != expected => {
                    problems.push(format!("{name}: expected shape {expected:?}, got {shape:?}"));
                }
                Some(_) => found.push((name.clone(), entry.clone(), suffix)),
            }
            left.remove(name.as_str());
        }
    }
    // Part of the configuration.
    left.remove(rope::DIVISORS);
    problems.extend(left.into_iter().map(|name| format!("{name} has no place in the model")));
    (found, problems)
}
