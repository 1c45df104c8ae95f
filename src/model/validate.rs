//! Which configurations are valid.

use candle_core::{Result, bail};

use super::Architecture;
use super::config::{DropoutRates, ModelConfig};

impl ModelConfig {
    /// The largest number of layers.
    pub const MAX_LAYERS: usize = 1 << 12;

    /// The largest size of anything else. Both are far above any model, and low enough that a count of parameters fits 64
    /// bits.
    pub const MAX_SIZE: usize = 1 << 24;

    /// Refuses sizes and options from which no model can be built.
    ///
    /// # Errors
    /// Naming what is out of its range or does not fit together.
    pub fn validate(&self) -> Result<()> {
        // With one token there is nothing to predict, and a single channel is normalised to zero.
        for (name, size, min, max) in [
            ("vocab_size", self.vocab_size, 2, Self::MAX_SIZE),
            ("context_len", self.context_len, 1, Self::MAX_SIZE),
            ("embed_dim", self.embed_dim, 2, Self::MAX_SIZE),
            ("num_layers", self.num_layers, 1, Self::MAX_LAYERS),
            ("num_heads", self.num_heads, 1, Self::MAX_SIZE),
            ("num_kv_heads", self.kv_heads(), 1, Self::MAX_SIZE),
            ("head_dim", self.head_dim.unwrap_or(1), 1, Self::MAX_SIZE),
            ("hidden_dim", self.hidden_dim, 1, Self::MAX_SIZE),
        ] {
            if size < min || size > max {
                bail!("model config: expected {name} between {min} and {max}, got {size}");
            }
        }
        self.validate_heads()?;
        self.validate_numbers()?;
        self.validate_architecture()?;
        if let Some(id) = self.begin_of_text_id.filter(|&id| id as usize >= self.vocab_size) {
            bail!("model config: expected a begin-of-text id below vocab_size {}, got {id}", self.vocab_size);
        }
        if let Some(id) = self.end_ids().find(|&id| id as usize >= self.vocab_size) {
            bail!("model config: expected an end-of-text id below vocab_size {}, got {id}", self.vocab_size);
        }
        if self.end_of_text_id.is_none() && !self.other_end_ids.is_empty() {
            bail!("model config: expected other_end_ids only with an end_of_text_id, got them alone");
        }
        Ok(())
    }

    /// Refuses options that only another architecture has.
    fn validate_architecture(&self) -> Result<()> {
        let Self { architecture, .. } = self;
        let of_others = [
            ("mlp_bias", self.mlp_bias, Architecture::Llama),
            ("a sliding window", self.sliding_window.is_some(), Architecture::Qwen3),
            ("scores without scale_attn_weights", !self.scale_attn_weights, Architecture::Gpt2),
            ("scale_attn_by_inverse_layer_idx", self.scale_attn_by_inverse_layer_idx, Architecture::Gpt2),
        ];
        if let Some((what, _, owner)) =
            of_others.into_iter().find(|(_, is_set, owner)| *is_set && owner != architecture)
        {
            let (owner, got) = (owner.model_type(), architecture.model_type());
            bail!("model config: expected {what} only with {owner}, got it with {got}");
        }
        match &self.sliding_window {
            Some(window) if window.len == 0 || window.layers.len() != self.num_layers => bail!(
                "model config: expected a sliding_window of at least 1 and its layers out of {}, got {} and {}",
                self.num_layers,
                window.len,
                window.layers.len()
            ),
            _ => self.rope_scaling.check(),
        }
    }

    fn validate_heads(&self) -> Result<()> {
        let &Self { architecture, embed_dim: c, num_heads: h, .. } = self;
        let (g, d) = (self.kv_heads(), self.head_channels());
        // Hugging Face's llama requires this even if head_dim is given.
        let is_free = self.head_dim.is_some() && architecture == Architecture::Qwen3;
        if !(is_free || c.is_multiple_of(h)) {
            bail!("model config: expected num_heads to divide embed_dim, got num_heads {h} and embed_dim {c}");
        }
        if !h.is_multiple_of(g) {
            bail!("model config: expected num_kv_heads to divide num_heads, got {g} and {h}");
        }
        if architecture == Architecture::Gpt2 && (g != h || d != c / h) {
            bail!("model config: expected {h} heads of keys and values of {} channels in gpt2, got {g} of {d}", c / h);
        }
        if architecture.is_rotary() && !d.is_multiple_of(2) {
            bail!("model config: expected an even head_dim for rotary positions, got {d}");
        }
        // So that the parameters can be counted.
        if h.saturating_mul(d) > Self::MAX_SIZE {
            bail!("model config: expected heads of at most {} channels in all, got {h} of {d}", Self::MAX_SIZE);
        }
        Ok(())
    }

    fn validate_numbers(&self) -> Result<()> {
        // As the model will compute with it: in `f32`.
        let norm_eps = self.norm_eps as f32;
        if !(norm_eps.is_finite() && norm_eps > 0.0) {
            bail!("model config: expected norm_eps above 0, got {}", self.norm_eps);
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            bail!("model config: expected rope_theta above 0, got {}", self.rope_theta);
        }
        if !(0.0..=1.0).contains(&self.init_stdev) {
            bail!("model config: expected init_stdev from 0 to 1, got {}", self.init_stdev);
        }
        let DropoutRates { embedding, attention, residual } = self.dropout;
        for (name, rate) in [("embedding", embedding), ("attention", attention), ("residual", residual)] {
            if !(0.0..1.0).contains(&rate) {
                bail!("model config: expected {name} dropout from 0 to below 1, got {rate}");
            }
        }
        Ok(())
    }
}
