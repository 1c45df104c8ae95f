//! The tensors of each architecture: their names and shapes in this crate and on disk, where they are Hugging Face's.
//!
//! Hugging Face's gpt2 packs the three attention projections into one matrix and stores the matrices of its `Conv1D` as
//! (in, out); this crate has separate matrices, stored as (out, in):
//!
//! | gpt2 on disk, after `transformer.` | shape | here |
//! |---|---|---|
//! | `wte.weight`, `wpe.weight` | (V, C), (context, C) | `token_embedding.weight`, `position_embedding.weight` |
//! | `h.N.ln_1`, `h.N.ln_2`, `ln_f` | (C) | `blocks.N.attention_norm`, `blocks.N.mlp_norm`, `norm` |
//! | `h.N.attn.c_attn` | (C, 3C) | `blocks.N.attention.{q_proj, k_proj, v_proj}`, each (C, C) |
//! | `h.N.attn.c_proj` | (C, C) | `blocks.N.attention.o_proj` (C, C) |
//! | `h.N.mlp.c_fc` | (C, F) | `blocks.N.mlp.up_proj` (F, C) |
//! | `h.N.mlp.c_proj` | (F, C) | `blocks.N.mlp.down_proj` (C, F) |
//! | `lm_head.weight` (no prefix; absent if tied) | (V, C) | `head.weight` (V, C) |
//!
//! On disk, all but the embeddings and the head have a bias; a model without biases writes zeros.
//!
//! Its llama and qwen3 have the same matrices as this crate, stored as (out, in), with H heads of queries and G of keys
//! and values, each of D channels:
//!
//! | on disk, after `model.` | shape | here |
//! |---|---|---|
//! | `embed_tokens.weight` | (V, C) | `token_embedding.weight` |
//! | `layers.N.input_layernorm`, `layers.N.post_attention_layernorm`, `norm` | (C) | `blocks.N.attention_norm`, `blocks.N.mlp_norm`, `norm` |
//! | `layers.N.self_attn.q_proj`, `k_proj`, `v_proj` | (HD, C), (GD, C), (GD, C) | `blocks.N.attention.q_proj` and so on |
//! | `layers.N.self_attn.o_proj` | (C, HD) | `blocks.N.attention.o_proj` |
//! | `layers.N.self_attn.q_norm`, `k_norm` (qwen3) | (D) | `blocks.N.attention.q_norm` and so on |
//! | `layers.N.mlp.gate_proj`, `up_proj`, `down_proj` | (F, C), (F, C), (C, F) | `blocks.N.mlp.gate_proj` and so on |
//! | `lm_head.weight` (no prefix; absent if tied) | (V, C) | `head.weight` |

use super::Architecture;
use super::config::ModelConfig;
use crate::host::memory;

/// One layer on disk, with a `weight` and possibly a `bias`, and the layers of the model that it consists of.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) on_disk: String,
    /// Names in the model; their tensors are stacked along the first dimension in equal parts.
    pub(super) parts: Vec<String>,
    /// The shape of the stacked weight.
    pub(super) shape: Vec<usize>,
    /// Whether the weight is stored transposed.
    pub(super) is_transposed: bool,
    pub(super) bias: Bias,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Bias {
    /// Neither in the model nor on disk.
    Absent,
    /// Only on disk, as zeros.
    Zero,
    /// In the model and on disk.
    Trained,
}

impl Bias {
    fn trained_if(is_trained: bool) -> Self {
        if is_trained { Self::Trained } else { Self::Absent }
    }
}

impl Entry {
    fn new(on_disk: impl Into<String>, part: impl Into<String>, shape: &[usize], bias: Bias) -> Self {
        let (on_disk, parts) = (on_disk.into(), vec![part.into()]);
        Self { on_disk, parts, shape: shape.to_vec(), is_transposed: false, bias }
    }

    /// The suffixes of its names on disk.
    pub(super) fn suffixes(&self) -> &'static [&'static str] {
        if self.bias == Bias::Absent { &["weight"] } else { &["weight", "bias"] }
    }

    /// The names and shapes of its trainable tensors in the model.
    fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let mut shape = self.shape.clone();
        shape[0] /= self.parts.len();
        let mut all = Vec::new();
        for part in &self.parts {
            all.push((format!("{part}.weight"), shape.clone()));
            if self.bias == Bias::Trained {
                all.push((format!("{part}.bias"), vec![shape[0]]));
            }
        }
        all
    }
}

/// All layers, in the order of a forward pass.
pub(super) fn entries(config: &ModelConfig) -> Vec<Entry> {
    let mut all = match config.architecture {
        Architecture::Gpt2 => gpt2(config),
        Architecture::Llama | Architecture::Qwen3 => llama(config),
    };
    if !config.tie_embeddings {
        all.push(Entry::new(HEAD, "head", &[config.vocab_size, config.embed_dim], Bias::Absent));
    }
    all
}

/// The head's name on disk.
pub(super) const HEAD: &str = "lm_head";

/// The prefix of all names on disk except the head's.
pub(super) fn prefix(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Gpt2 => "transformer.",
        Architecture::Llama | Architecture::Qwen3 => "model.",
    }
}

/// The token embedding's name on disk.
pub(super) fn embedding(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Gpt2 => "transformer.wte.weight",
        Architecture::Llama | Architecture::Qwen3 => "model.embed_tokens.weight",
    }
}

/// Whether the name on disk is that of a table that old files contain although it follows from the sizes.
pub(super) fn is_table(architecture: Architecture, name: &str) -> bool {
    match architecture {
        Architecture::Gpt2 => name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"),
        Architecture::Llama | Architecture::Qwen3 => name.contains(".rotary_emb."),
    }
}

fn gpt2(config: &ModelConfig) -> Vec<Entry> {
    let &ModelConfig { vocab_size: v, context_len, embed_dim: c, hidden_dim: f, .. } = config;
    let bias = if config.bias { Bias::Trained } else { Bias::Zero };
    let projection =
        |on_disk, part, shape: [usize; 2]| Entry { is_transposed: true, ..Entry::new(on_disk, part, &shape, bias) };
    let mut all = vec![
        Entry::new("transformer.wte", "token_embedding", &[v, c], Bias::Absent),
        Entry::new("transformer.wpe", "position_embedding", &[context_len, c], Bias::Absent),
    ];
    for i in 0..config.num_layers {
        let on_disk = |name| format!("transformer.h.{i}.{name}");
        let part = |name| format!("blocks.{i}.{name}");
        let parts = ["attention.q_proj", "attention.k_proj", "attention.v_proj"].map(part).to_vec();
        all.extend([
            Entry::new(on_disk("ln_1"), part("attention_norm"), &[c], bias),
            Entry { parts, ..projection(on_disk("attn.c_attn"), String::new(), [3 * c, c]) },
            projection(on_disk("attn.c_proj"), part("attention.o_proj"), [c, c]),
            Entry::new(on_disk("ln_2"), part("mlp_norm"), &[c], bias),
            projection(on_disk("mlp.c_fc"), part("mlp.up_proj"), [f, c]),
            projection(on_disk("mlp.c_proj"), part("mlp.down_proj"), [c, f]),
        ]);
    }
    all.push(Entry::new("transformer.ln_f", "norm", &[c], bias));
    all
}

fn llama(config: &ModelConfig) -> Vec<Entry> {
    let &ModelConfig { vocab_size: v, embed_dim: c, num_heads: h, hidden_dim: f, .. } = config;
    let (g, d) = (config.kv_heads(), config.head_channels());
    let (bias, mlp_bias) = (Bias::trained_if(config.bias), Bias::trained_if(config.mlp_bias));
    let mut all = vec![Entry::new("model.embed_tokens", "token_embedding", &[v, c], Bias::Absent)];
    for i in 0..config.num_layers {
        let entry = |on_disk, part, shape: &[usize], bias| {
            Entry::new(format!("model.layers.{i}.{on_disk}"), format!("blocks.{i}.{part}"), shape, bias)
        };
        all.extend([
            entry("input_layernorm", "attention_norm", &[c], Bias::Absent),
            entry("self_attn.q_proj", "attention.q_proj", &[h * d, c], bias),
            entry("self_attn.k_proj", "attention.k_proj", &[g * d, c], bias),
            entry("self_attn.v_proj", "attention.v_proj", &[g * d, c], bias),
        ]);
        if config.architecture.has_qk_norm() {
            all.push(entry("self_attn.q_norm", "attention.q_norm", &[d], Bias::Absent));
            all.push(entry("self_attn.k_norm", "attention.k_norm", &[d], Bias::Absent));
        }
        all.extend([
            entry("self_attn.o_proj", "attention.o_proj", &[c, h * d], bias),
            entry("post_attention_layernorm", "mlp_norm", &[c], Bias::Absent),
            entry("mlp.gate_proj", "mlp.gate_proj", &[f, c], mlp_bias),
            entry("mlp.up_proj", "mlp.up_proj", &[f, c], mlp_bias),
            entry("mlp.down_proj", "mlp.down_proj", &[c, f], mlp_bias),
        ]);
    }
    all.push(Entry::new("model.norm", "norm", &[c], Bias::Absent));
    all
}

impl ModelConfig {
    /// The names and shapes of all trainable tensors, in the order of a forward pass.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        entries(self).iter().flat_map(Entry::parameters).collect()
    }

    /// The number of trainable scalars.
    pub fn parameter_count(&self) -> usize {
        self.parameters().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// The bytes of all trainable scalars in `f32`, unless the number overflows.
    pub(super) fn parameter_bytes(&self) -> Option<usize> {
        let bytes = |(_, shape): &(String, Vec<usize>)| memory::tensor_bytes(shape, size_of::<f32>());
        self.parameters().iter().try_fold(0, |sum: usize, tensor| sum.checked_add(bytes(tensor)?))
    }

    /// The parameters whose gradient is zero for any data, with the reason.
    pub fn zero_gradient_parameters(&self) -> Vec<(String, &'static str)> {
        const KEY_BIAS: &str =
            "without rotary positions it adds the same to all scores of a query, which softmax ignores";
        const ONE_POSITION: &str = "with a single position, the only attention weight is always 1";
        let is_rotary = self.architecture.is_rotary();
        self.parameters()
            .into_iter()
            .filter_map(|(name, _)| match name.rsplit_once(".attention.")?.1 {
                "k_proj.bias" if !is_rotary => Some((name, KEY_BIAS)),
                tensor if self.context_len == 1 && tensor.starts_with(['q', 'k']) => Some((name, ONE_POSITION)),
                _ => None,
            })
            .collect()
    }
}
