//! Rotary frequencies for texts longer than those a model was first trained on.

use std::f64::consts::PI;

use candle_core::{Result, bail};

/// How a model stretches its rotary positions over a longer context: `rope_scaling` or `rope_parameters` in Hugging
/// Face's files. With the frequencies `f[i] = theta^(-2i/D)`, i from 0 to D/2 - 1, and a factor `s`:
///
/// | | frequencies | source |
/// |---|---|---|
/// | `Linear` | `f / s` | Chen et al. 2023, arXiv:2306.15595 |
/// | `Dynamic` | `f`: it changes nothing within the context | its base would grow beyond |
/// | `Llama3` | `f` for wavelengths `2 pi / f` shorter than `original / high`, `f / s` longer than `original / low`, between them a mean of both, weighted linearly in `original f / 2 pi` | Llama 3.1 |
/// | `Yarn` | from `f` to `f / s` by a linear ramp over i, between the channels that turn `beta_fast` and `beta_slow` times over the original positions; cosines and sines are multiplied by `attention_factor` | Peng et al. 2023, arXiv:2309.00071 |
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum RotaryScaling {
    /// None.
    #[default]
    None,
    /// All frequencies divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Frequencies that would change only beyond the context.
    Dynamic {
        /// The factor, without effect within the context.
        factor: f64,
    },
    /// Low frequencies divided by a factor, high ones kept.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Frequencies below `low_freq_factor` turns over the original positions are divided.
        low_freq_factor: f64,
        /// Frequencies above this many turns are kept.
        high_freq_factor: f64,
        /// Positions of the first training; `original_max_position_embeddings`.
        original_positions: usize,
    },
    /// A ramp over the channels, and larger dot products.
    Yarn {
        /// The factor.
        factor: f64,
        /// Positions of the first training; `original_max_position_embeddings`.
        original_positions: usize,
        /// Channels that turn more often than this are kept.
        beta_fast: f64,
        /// Channels that turn less often than this are divided.
        beta_slow: f64,
        /// Whether the borders of the ramp are whole channels.
        truncate: bool,
        /// The factor on cosines and sines, usually [`RotaryScaling::yarn_attention_factor`].
        attention_factor: f64,
    },
}

impl RotaryScaling {
    /// Yarn's usual factor on cosines and sines, `0.1 ln(factor) + 1`.
    pub fn yarn_attention_factor(factor: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
    }

    /// The factor on cosines and sines.
    pub fn attention_factor(&self) -> f64 {
        if let Self::Yarn { attention_factor, .. } = self { *attention_factor } else { 1.0 }
    }

    /// Scales the frequencies of the base `theta`, in place.
    ///
    /// # Errors
    /// If a number is not above 0, or the numbers do not fit together.
    pub fn scale(&self, frequencies: &mut [f64], theta: f64) -> Result<()> {
        self.check()?;
        match *self {
            Self::None | Self::Dynamic { .. } => {}
            Self::Linear { factor } => frequencies.iter_mut().for_each(|f| *f /= factor),
            Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_positions } => {
                for f in frequencies {
                    let turns = original_positions as f64 * *f / (2.0 * PI);
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    *f *= (1.0 - kept) / factor + kept;
                }
            }
            Self::Yarn { factor, original_positions, beta_fast, beta_slow, truncate, .. } => {
                let channels = 2.0 * frequencies.len() as f64;
                // The channel, of all D, that turns so often over the original positions.
                let channel =
                    |turns: f64| channels * (original_positions as f64 / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
                let (first, last) = match truncate {
                    true => (channel(beta_fast).floor(), channel(beta_slow).ceil()),
                    false => (channel(beta_fast), channel(beta_slow)),
                };
                let (first, last) = (first.max(0.0), last.min(channels - 1.0));
                let width = if first == last { 0.001 } else { last - first };
                for (i, f) in frequencies.iter_mut().enumerate() {
                    let divided = ((i as f64 - first) / width).clamp(0.0, 1.0);
                    *f *= divided / factor + 1.0 - divided;
                }
            }
        }
        Ok(())
    }

    /// Refuses numbers that give no frequencies.
    pub(crate) fn check(&self) -> Result<()> {
        let positive = |numbers: &[(&str, f64)]| match numbers.iter().find(|(_, x)| !(x.is_finite() && *x > 0.0)) {
            Some((name, x)) => bail!("rotary scaling: expected {name} above 0, got {x}"),
            None => Ok(()),
        };
        match *self {
            Self::None => Ok(()),
            Self::Linear { factor } | Self::Dynamic { factor } => positive(&[("factor", factor)]),
            Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_positions } => {
                if high <= low {
                    bail!("rotary scaling: expected high_freq_factor above low_freq_factor, got {high} and {low}");
                }
                positive(&[
                    ("factor", factor),
                    ("low_freq_factor", low),
                    ("original positions", original_positions as f64),
                ])
            }
            Self::Yarn { factor, original_positions, beta_fast, beta_slow, attention_factor, .. } => positive(&[
                ("factor", factor),
                ("original positions", original_positions as f64),
                ("beta_fast", beta_fast),
                ("beta_slow", beta_slow),
                ("attention_factor", attention_factor),
            ]),
        }
    }
}
