//! The configuration of a model in the metadata of a GGUF file.

use std::path::Path;

use super::rope;
use crate::host::gguf::{GgufFile, special_id};
use crate::host::{Result, bail};
use crate::model::config::ROPE_THETA;
use crate::model::{Activation, Architecture, ModelConfig};

/// Keys, after the architecture, that are read, or that say nothing of the arithmetic.
const KNOWN: [&str; 13] = [
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
];

/// The configuration in a GGUF file.
pub(in crate::model) fn open_config(path: &Path) -> Result<ModelConfig> {
    let mut file = GgufFile::open(path)?;
    let name = file.required("general.architecture", file.text("general.architecture")?)?;
    let Some(architecture) = Architecture::ALL.into_iter().find(|one| one.model_type() == name) else {
        bail!("{}: expected general.architecture gpt2, llama or qwen3, got {name}", path.display());
    };
    refuse_other_arithmetic(&file, name)?;
    let mut config = read(&file, architecture)?;
    if architecture.is_rotary() {
        config.rope_scaling = rope::read(&mut file, &config)?;
    }
    config.validate().map_err(|error| crate::host::Error::from(error).at(path.display()))?;
    Ok(config)
}

/// Refuses keys that would change the arithmetic, unless their value does not.
fn refuse_other_arithmetic(file: &GgufFile, architecture: &str) -> Result<()> {
    let mut keys: Vec<&str> = file.keys().filter(|key| !key.ends_with(".tensor_data_layout")).collect();
    keys.sort_unstable();
    for key in keys {
        let Some(name) = key.strip_prefix(architecture).and_then(|rest| rest.strip_prefix('.')) else { continue };
        let is_neutral = match name {
            "expert_count" | "expert_used_count" => file.whole(key)? == Some(0),
            "attention.causal" => file.switch(key)? == Some(true),
            name => KNOWN.contains(&name) || rope::KEYS.contains(&name),
        };
        if !is_neutral {
            bail!("{}: {key} is not supported: it would change what the model computes", file.path().display());
        }
    }
    Ok(())
}

fn read(file: &GgufFile, architecture: Architecture) -> Result<ModelConfig> {
    let key = |name: &str| format!("{}.{name}", architecture.model_type());
    let size = |name: &str| file.required(&key(name), file.whole(&key(name))?);
    let (embed_dim, num_heads) = (size("embedding_length")?, size("attention.head_count")?);
    let usual = embed_dim / num_heads.max(1);
    let head_dim = file.whole(&key("attention.key_length"))?.unwrap_or(usual);
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = file.whole(&key(name))?.filter(|&other| other != head_dim) {
            bail!("{}: expected {} {head_dim}, the width of a head, got {other}", file.path().display(), key(name));
        }
    }
    let has = |name: &str| file.shape(name).is_some();
    let embedding = file.required("token_embd.weight", file.shape("token_embd.weight"))?;
    let vocab_size = embedding.first().copied().unwrap_or_default();
    let known = |name| special_id(file, name).map(|id| id.filter(|&id| (id as usize) < vocab_size));
    let [first, second, third] = [known("eos")?, known("eot")?, known("eom")?];
    let mut end_ids: Vec<u32> = Vec::new();
    for id in [first, second, third].into_iter().flatten() {
        if !end_ids.contains(&id) {
            end_ids.push(id);
        }
    }
    let mut end_ids = end_ids.into_iter();
    let is_gpt2 = architecture == Architecture::Gpt2;
    let norm_eps = if is_gpt2 { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    Ok(ModelConfig {
        context_len: size("context_length")?,
        embed_dim,
        num_layers: size("block_count")?,
        num_heads,
        num_kv_heads: file.whole(&key("attention.head_count_kv"))?.filter(|&heads| heads != num_heads),
        head_dim: Some(head_dim).filter(|&head_dim| head_dim != usual),
        hidden_dim: size("feed_forward_length")?,
        // What llama.cpp computes: the format has no key for it.
        activation: if is_gpt2 { Activation::GeluTanh } else { Activation::Silu },
        norm_eps: file.required(&key(norm_eps), file.number(&key(norm_eps))?)?,
        rope_theta: file.number(&key("rope.freq_base"))?.unwrap_or(ROPE_THETA),
        bias: is_gpt2 || has("blk.0.attn_q.bias"),
        mlp_bias: has("blk.0.ffn_gate.bias"),
        tie_embeddings: !has("output.weight"),
        begin_of_text_id: known("bos")?,
        end_of_text_id: end_ids.next(),
        other_end_ids: end_ids.collect(),
        ..ModelConfig::of(architecture, vocab_size)
    })
}
