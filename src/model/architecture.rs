//! The architectures that the model can have.

use serde::{Deserialize, Serialize};

/// A decoder as Hugging Face knows it, by its `model_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// LayerNorm, learned positions, and a feed-forward network of two projections (Radford et al. 2019).
    #[default]
    Gpt2,
    /// RMSNorm, rotary positions, and a gated feed-forward network (Touvron et al. 2023, arXiv:2302.13971).
    Llama,
    /// As llama, with norms of queries and of keys (Yang et al. 2025, arXiv:2505.09388).
    Qwen3,
}

impl Architecture {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Gpt2, Self::Llama, Self::Qwen3];

    /// Its `model_type` in Hugging Face's files.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
            Self::Qwen3 => "qwen3",
        }
    }

    /// Whether queries and keys turn with their position; otherwise positions are learned and added to the tokens.
    pub fn is_rotary(self) -> bool {
        self != Self::Gpt2
    }

    /// Whether the feed-forward network has a third projection, whose activation gates the second.
    pub fn is_gated(self) -> bool {
        self != Self::Gpt2
    }

    /// Whether queries and keys are normalised.
    pub fn has_qk_norm(self) -> bool {
        self == Self::Qwen3
    }

    /// The usual width of the feed-forward network: 4 times the channels, or with a gate, whose third projection costs as
    /// much as another, 8/3 of them rounded up to a multiple of 8 (Shazeer 2020, arXiv:2002.05202).
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
