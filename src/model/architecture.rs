//! The supported architectures.

use serde::{Deserialize, Serialize};

/// The architecture of a decoder, named as Hugging Face's `model_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Architecture {
    /// LayerNorm, learned positions, and a feed-forward network of two projections (Radford et al. 2019).
    #[default]
    Gpt2,
    /// RMSNorm, rotary positions, and a gated feed-forward network (Touvron et al. 2023, arXiv:2302.13971).
    Llama,
    /// As llama, with normalised queries and keys (Yang et al. 2025, arXiv:2505.09388).
    Qwen3,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gpt2, Self::Llama, Self::Qwen3];

    /// Its `model_type` in Hugging Face's files.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
            Self::Qwen3 => "qwen3",
        }
    }

    /// Its class in transformers.
    pub(super) fn class_name(self) -> &'static str {
        match self {
            Self::Gpt2 => "GPT2LMHeadModel",
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// Whether positions are rotary; otherwise they are learned and added to the token embeddings.
    pub fn is_rotary(self) -> bool {
        self != Self::Gpt2
    }

    /// Whether the feed-forward network is gated: the activation of a third projection multiplies another.
    pub fn is_gated(self) -> bool {
        self != Self::Gpt2
    }

    /// Whether queries and keys are normalised.
    pub fn has_qk_norm(self) -> bool {
        self == Self::Qwen3
    }

    /// The usual width of the feed-forward network: 4 times the channels, or with a gate, which adds a third
    /// projection, 8/3 times, rounded up to a multiple of 8 (Shazeer 2020, arXiv:2002.05202).
    ///
    /// ```
    /// use candle_attention::model::Architecture;
    ///
    /// let widths = Architecture::ALL.map(|architecture| architecture.usual_hidden_dim(128));
    /// assert_eq!(widths, [512, 344, 344]);
    /// ```
    pub fn usual_hidden_dim(self, embed_dim: usize) -> usize {
        match self.is_gated() {
            true => embed_dim.saturating_mul(8).div_ceil(3).checked_next_multiple_of(8).unwrap_or(usize::MAX),
            false => embed_dim.saturating_mul(4),
        }
    }
}
