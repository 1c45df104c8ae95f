//! How positions become angles: `rope_parameters` of transformers 5, and what earlier versions wrote in its place.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::host::{Result, bail};
use crate::model::config::{ModelConfig, ROPE_THETA};
use crate::nn::RotaryScaling;

/// The keys of all kinds; those that a kind does not use are ignored, as in transformers.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Rope {
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    #[serde(rename = "type", skip_serializing)]
    old_type: Option<String>,
    #[serde(skip_serializing)]
    partial_rotary_factor: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    factor: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_max_position_embeddings: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    low_freq_factor: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    high_freq_factor: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beta_fast: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beta_slow: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncate: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attention_factor: Option<f64>,
    // What a model with several kinds of layers would have here.
    #[serde(skip_serializing)]
    full_attention: Option<Value>,
    #[serde(skip_serializing)]
    mscale: Option<f64>,
    #[serde(skip_serializing)]
    mscale_all_dim: Option<f64>,
}

/// What stands in the rest of the file, and is used where [`Rope`] lacks it.
pub(super) struct Outside {
    pub(super) rope_theta: Option<f64>,
    pub(super) max_position_embeddings: usize,
    pub(super) original_max_position_embeddings: Option<usize>,
    pub(super) partial_rotary_factor: Option<f64>,
}

impl Rope {
    pub(super) fn of(config: &ModelConfig) -> Self {
        let named =
            |name: &str| Self { rope_theta: Some(config.rope_theta), rope_type: Some(name.into()), ..Self::default() };
        match config.rope_scaling {
            RotaryScaling::None => named("default"),
            RotaryScaling::Linear { factor } => Self { factor: Some(factor), ..named("linear") },
            RotaryScaling::Dynamic { factor } => Self { factor: Some(factor), ..named("dynamic") },
            RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => Self {
                factor: Some(factor),
                low_freq_factor: Some(low_freq_factor),
                high_freq_factor: Some(high_freq_factor),
                original_max_position_embeddings: Some(original_positions),
                ..named("llama3")
            },
            RotaryScaling::Yarn { factor, original_positions, beta_fast, beta_slow, truncate, attention_factor } => {
                Self {
                    factor: Some(factor),
                    original_max_position_embeddings: Some(original_positions),
                    beta_fast: Some(beta_fast),
                    beta_slow: Some(beta_slow),
                    truncate: Some(truncate),
                    attention_factor: Some(attention_factor),
                    ..named("yarn")
                }
            }
        }
    }

    /// The base of the frequencies, and their scaling.
    pub(super) fn read(self, outside: &Outside) -> Result<(f64, RotaryScaling)> {
        let theta = self.rope_theta.or(outside.rope_theta).unwrap_or(ROPE_THETA);
        if let Some(part) = self.partial_rotary_factor.or(outside.partial_rotary_factor).filter(|part| *part != 1.0) {
            bail!("expected partial_rotary_factor 1, got {part}");
        }
        if self.full_attention.is_some() {
            bail!("expected rope_parameters of all layers, got them by kind of layer");
        }
        let kind = self.rope_type.as_deref().or(self.old_type.as_deref()).unwrap_or("default");
        let needed = |name: &str, value: Option<f64>| match value {
            Some(value) => Ok(value),
            None => bail!("expected {name} with rope_type {kind}, got none"),
        };
        // Those outside come first, as in transformers.
        let original_positions = outside
            .original_max_position_embeddings
            .or(self.original_max_position_embeddings)
            .unwrap_or(outside.max_position_embeddings);
        let scaling = match kind {
            "default" => RotaryScaling::None,
            "linear" => RotaryScaling::Linear { factor: needed("factor", self.factor)? },
            "dynamic" => RotaryScaling::Dynamic { factor: needed("factor", self.factor)? },
            "llama3" => RotaryScaling::Llama3 {
                factor: needed("factor", self.factor)?,
                low_freq_factor: needed("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: needed("high_freq_factor", self.high_freq_factor)?,
                original_positions,
            },
            "yarn" => {
                let ratio = outside.max_position_embeddings as f64 / original_positions as f64;
                let factor = self.factor.unwrap_or(ratio);
                RotaryScaling::Yarn {
                    factor,
                    original_positions,
                    beta_fast: self.beta_fast.filter(|beta| *beta != 0.0).unwrap_or(32.0),
                    beta_slow: self.beta_slow.filter(|beta| *beta != 0.0).unwrap_or(1.0),
                    truncate: self.truncate.unwrap_or(true),
                    attention_factor: self.attention_factor.unwrap_or_else(|| self.mean_scale(factor)),
                }
            }
            other => bail!("expected rope_type default, linear, dynamic, llama3 or yarn, got {other}"),
        };
        Ok((theta, scaling))
    }

    /// Yarn's factor on cosines and sines where the file has none (DeepSeek's `mscale`).
    fn mean_scale(&self, factor: f64) -> f64 {
        let usual = RotaryScaling::yarn_attention_factor(factor);
        let times = |scale: f64| 1.0 + scale * (usual - 1.0);
        match (self.mscale, self.mscale_all_dim) {
            (Some(one), Some(all)) if one != 0.0 && all != 0.0 => times(one) / times(all),
            _ => usual,
        }
    }
}
