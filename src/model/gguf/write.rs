//! Writing a model as a GGUF file.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use candle_core::{DType, Device, Tensor};

use super::{name, paired_heads, reordered, rope};
use crate::host::gguf_writer::{self, Metadata};
use crate::host::{Result, bail};
use crate::model::tensors::{self, Bias, Entry};
use crate::model::{Activation, Architecture, ModelConfig};

/// How matrices are stored in a GGUF file. Norms, biases and learned positions are always `f32`, as llama.cpp's own
/// converter has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum GgufType {
    /// 32 bits.
    F32,
    /// 16 bits.
    #[default]
    F16,
    /// 8 bits with a scale for each 32 numbers of a row: 8.5 bits a weight.
    Q8_0,
}

impl GgufType {
    /// Their names.
    pub const NAMES: [(&str, Self); 3] = [("f32", Self::F32), ("f16", Self::F16), ("q8_0", Self::Q8_0)];

    /// `general.file_type`.
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
        }
    }

    /// How a tensor is stored.
    fn of(self, part: &str, shape: &[usize]) -> GgmlDType {
        let is_matrix = shape.len() == 2 && part != "position_embedding";
        match self {
            Self::F32 => GgmlDType::F32,
            _ if !is_matrix => GgmlDType::F32,
            Self::Q8_0 if shape[1].is_multiple_of(GgmlDType::Q8_0.block_size()) => GgmlDType::Q8_0,
            Self::F16 | Self::Q8_0 => GgmlDType::F16,
        }
    }
}

/// Writes a model to the GGUF file `path`, which is replaced atomically: `weights` by their names in the model, and the
/// metadata of its tokenizer from [`Tokenizer::to_gguf`](crate::text::Tokenizer::to_gguf). Returns what a user should
/// know about the file, if anything.
///
/// # Errors
/// If the format has no way to say what the model computes, a weight is missing or too large for 16 bits, or the file
/// cannot be written.
pub fn save_gguf(
    path: &Path,
    config: &ModelConfig,
    weights: &BTreeMap<String, Tensor>,
    tokenizer: Vec<(String, Value)>,
    kind: GgufType,
) -> Result<Vec<String>> {
    config.validate()?;
    let (mut metadata, mut notes) = describe(config)?;
    metadata.push(("general.file_type".into(), Value::U32(kind.file_type())));
    if kind == GgufType::Q8_0 {
        metadata.push(("general.quantization_version".into(), Value::U32(2)));
    }
    metadata.extend(tokenizer);
    let (scaling, divisors) = rope::describe(config)?;
    let name_of = |key: &str| format!("{}.{key}", config.architecture.model_type());
    metadata.extend(scaling.into_iter().map(|(key, value)| (name_of(key), value)));
    let (mut tensors, mut halves) = (Vec::new(), 0);
    tensors.extend(divisors.map(|divisors| (rope::DIVISORS.to_string(), divisors, GgmlDType::F32)));
    for entry in tensors::entries(config) {
        for (name, tensor) in packed(&entry, config, weights)? {
            let stored = kind.of(&entry.parts[0], tensor.dims());
            halves += usize::from(kind == GgufType::Q8_0 && stored == GgmlDType::F16);
            if stored == GgmlDType::F16 && tensor.abs()?.max_all()?.to_scalar::<f32>()? > half_max() {
                bail!("{name}: expected weights that 16 bits can hold, got larger ones; take f32");
            }
            tensors.push((name, tensor, stored));
        }
    }
    if halves > 0 {
        notes.push(format!("{halves} matrices are stored as f16: q8_0 needs rows of a multiple of 32 numbers"));
    }
    gguf_writer::write(path, &metadata, &tensors)?;
    Ok(notes)
}

/// The largest number of 16 bits.
fn half_max() -> f32 {
    65504.0
}

/// A layer's tensors in the file's layout, by their names there.
fn packed(entry: &Entry, config: &ModelConfig, weights: &BTreeMap<String, Tensor>) -> Result<Vec<(String, Tensor)>> {
    let mut all = Vec::new();
    for &suffix in entry.suffixes() {
        let tensor = if suffix == "bias" && entry.bias == Bias::Zero {
            Tensor::zeros(entry.shape[0], DType::F32, &Device::Cpu)?
        } else {
            stacked(entry, suffix, weights)?
        };
        let tensor = match paired_heads(entry, config) {
            Some(heads) => reordered(&tensor, heads, [2, config.head_channels() / 2])?,
            None => tensor,
        };
        all.push((format!("{}.{suffix}", name(entry)), tensor));
    }
    Ok(all)
}

fn stacked(entry: &Entry, suffix: &str, weights: &BTreeMap<String, Tensor>) -> Result<Tensor> {
    let mut parts = Vec::new();
    for part in &entry.parts {
        let name = format!("{part}.{suffix}");
        let Some(tensor) = weights.get(&name) else { bail!("weights: {name} is missing") };
        parts.push(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?);
    }
    Ok(Tensor::cat(&parts, 0)?.contiguous()?)
}

/// The metadata that describe the model, and what the format cannot say and a reader will do nearly as well.
fn describe(config: &ModelConfig) -> Result<(Metadata, Vec<String>)> {
    // All fields are named, so that none that changes the arithmetic is forgotten.
    let &ModelConfig {
        architecture,
        vocab_size,
        context_len,
        embed_dim,
        num_layers,
        num_heads,
        num_kv_heads: _,
        head_dim: _,
        hidden_dim,
        activation,
        norm_eps,
        rope_theta,
        rope_scaling: _,
        ref sliding_window,
        scale_attn_weights,
        scale_attn_by_inverse_layer_idx,
        bias,
        mlp_bias: _,
        tie_embeddings: _,
        begin_of_text_id: _,
        end_of_text_id: _,
        other_end_ids: _,
        dropout: _,
        init_stdev: _,
        residual_init: _,
    } = config;
    let mut notes = Vec::new();
    match (architecture, activation) {
        (Architecture::Gpt2, Activation::GeluTanh) | (Architecture::Llama | Architecture::Qwen3, Activation::Silu) => {}
        (Architecture::Gpt2, Activation::GeluErf) => notes.push(
            "readers of GGUF compute gpt2 with the tanh approximation of GELU, this model with the exact one: logits \
             will differ slightly"
                .into(),
        ),
        (_, other) => bail!("GGUF has no way to say that a {} computes {other:?}", architecture.model_type()),
    }
    let slides = sliding_window.as_ref().is_some_and(|window| window.len < context_len);
    if slides || !scale_attn_weights || scale_attn_by_inverse_layer_idx {
        bail!(
            "GGUF has no way to say sliding_window, scale_attn_weights or scale_attn_by_inverse_layer_idx of a {}",
            architecture.model_type()
        );
    }
    if architecture == Architecture::Qwen3 && bias {
        notes.push("llama.cpp refuses a qwen3 with attention biases, which this one has; other readers take it".into());
    }
    let (name, heads, width) = (architecture.model_type(), config.kv_heads(), config.head_channels());
    let mut sizes = vec![
        ("context_length", context_len),
        ("embedding_length", embed_dim),
        ("block_count", num_layers),
        ("feed_forward_length", hidden_dim),
        ("vocab_size", vocab_size),
        ("attention.head_count", num_heads),
        ("attention.head_count_kv", heads),
    ];
    let mut numbers = vec![];
    if architecture.is_rotary() {
        sizes.extend([
            ("attention.key_length", width),
            ("attention.value_length", width),
            ("rope.dimension_count", width),
        ]);
        numbers.extend([("attention.layer_norm_rms_epsilon", norm_eps), ("rope.freq_base", rope_theta)]);
    } else {
        numbers.push(("attention.layer_norm_epsilon", norm_eps));
    }
    let mut metadata = vec![("general.architecture".to_string(), Value::String(name.into()))];
    for (key, size) in sizes {
        // No size of a valid model exceeds 24 bits.
        metadata.push((format!("{name}.{key}"), Value::U32(size as u32)));
    }
    metadata.extend(numbers.into_iter().map(|(key, number)| (format!("{name}.{key}"), Value::F32(number as f32))));
    Ok((metadata, notes))
}
