//! Built-in recipes: files of options with a name.

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::options::Options;

/// A built-in recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// nanoGPT's CPU recipe: LayerNorm, learned positions, GELU; AdamW
    Gpt2,
    /// The same width, depth and rates with RMSNorm, rotary positions, a gated feed-forward network and grouped heads
    Llama,
    /// As llama, with normalised queries and keys
    Qwen3,
    /// Validation loss 1.88 on Tiny Shakespeare within seconds: a small qwen3, Muon
    Quick,
    /// The lowest loss on Tiny Shakespeare within 20 minutes on two cores: a larger qwen3, Muon, dropout
    Best,
}

impl Preset {
    /// The options it sets.
    pub fn options(self) -> Result<Options> {
        let (name, toml) = match self {
            Self::Gpt2 => ("gpt2", include_str!("presets/gpt2.toml")),
            Self::Llama => ("llama", include_str!("presets/llama.toml")),
            Self::Qwen3 => ("qwen3", include_str!("presets/qwen3.toml")),
            Self::Quick => ("quick", include_str!("presets/quick.toml")),
            Self::Best => ("best", include_str!("presets/best.toml")),
        };
        Options::from_toml(toml).with_context(|| format!("preset {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid() {
        for preset in Preset::value_variants() {
            let options = preset.options().unwrap();
            options.check().unwrap();
            options.model_config(65, None).validate().unwrap();
        }
    }

    #[test]
    fn llama_and_qwen3_have_grouped_heads() {
        for preset in [Preset::Llama, Preset::Qwen3] {
            let config = preset.options().unwrap().model_config(65, None);
            assert_eq!((config.num_heads, config.kv_heads()), (4, 2), "{preset:?}");
        }
    }
}
