//! Text from a model, token by token.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Result, Tensor, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::model::CausalLm;

/// How the next token is chosen from the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingOptions {
    /// What the logits are divided by; 0 takes the likeliest token.
    pub temperature: f64,
    /// Choose among this many likeliest tokens only.
    pub top_k: Option<usize>,
    /// Choose among the fewest likeliest tokens whose probabilities add up to at least this.
    pub top_p: Option<f64>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None }
    }
}

impl SamplingOptions {
    /// Refuses values that choose nothing.
    ///
    /// # Errors
    /// Naming the option, what it expects and what it got.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            bail!("sampling options: expected a temperature of at least 0, got {}", self.temperature);
        }
        if self.top_k == Some(0) {
            bail!("sampling options: expected top_k of at least 1, got 0");
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => bail!("sampling options: expected top_p above 0 and up to 1, got {p}"),
            _ => Ok(()),
        }
    }
}

/// Chooses tokens; the same seed chooses the same ones.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler whose choices follow from `seed` and, for several samples of one seed, `stream`.
    ///
    /// # Errors
    /// Those of [`SamplingOptions::validate`].
    pub fn new(options: SamplingOptions, seed: u64, stream: u64) -> Result<Self> {
        options.validate()?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Ok(Self { options, rng })
    }

    /// The id of the next token, given the logits of all.
    ///
    /// # Errors
    /// If there are no logits, or one is not a number.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        if logits.is_empty() || logits.iter().any(|logit| logit.is_nan()) {
            bail!("sampler: expected logits that are numbers, got {} of which some may be NaN", logits.len());
        }
        let mut ranked: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&logit| f64::from(logit))).collect();
        // A stable order: of equal logits the lower id comes first.
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        if self.options.temperature == 0.0 {
            return Ok(ranked[0].0);
        }
        ranked.truncate(self.options.top_k.unwrap_or(usize::MAX));
        let highest = ranked[0].1;
        let mut total = 0.0;
        for (_, weight) in &mut ranked {
            *weight = ((*weight - highest) / self.options.temperature).exp();
            total += *weight;
        }
        let nucleus = self.options.top_p.unwrap_or(1.0) * total;
        let mut sum = 0.0;
        let kept = ranked.iter().take_while(|(_, weight)| {
            let is_needed = sum < nucleus;
            sum += weight;
            is_needed
        });
        let kept: Vec<_> = kept.copied().collect();
        let mut left = self.rng.random::<f64>() * kept.iter().map(|(_, weight)| weight).sum::<f64>();
        for (id, weight) in &kept {
            left -= weight;
            if left < 0.0 {
                return Ok(*id);
            }
        }
        // Rounding may leave a rest above the sum: it belongs to the last.
        Ok(kept.last().unwrap_or(&ranked[0]).0)
    }
}

/// Continues `prompt` by at most `max_tokens` tokens, telling each to `on_token`, which may break off. Returns the
/// new tokens. Generation ends at the end-of-text token, which is not returned.
///
/// Once prompt and continuation are longer than the context, the model sees the last `context_len` tokens.
///
/// # Errors
/// If the prompt is empty, or has an id that the vocabulary lacks.
pub fn generate(
    model: &CausalLm,
    prompt: &[u32],
    max_tokens: usize,
    sampler: &mut Sampler,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>> {
    let config = model.config();
    if prompt.is_empty() {
        bail!("generate: expected a prompt of at least one token, got none");
    }
    if let Some(id) = prompt.iter().find(|&&id| id as usize >= config.vocab_size) {
        bail!("generate: expected ids below {}, got {id}", config.vocab_size);
    }
    let mut ids = prompt.to_vec();
    for _ in 0..max_tokens {
        let visible = &ids[ids.len().saturating_sub(config.context_len)..];
        let input = Tensor::new(visible, &Device::Cpu)?.unsqueeze(0)?.to_device(model.device())?; // (1, T)
        let logits = model.next_token_logits(&input)?.squeeze(0)?.to_dtype(DType::F32)?; // (V)
        let id = sampler.sample(&logits.to_vec1()?)?;
        if Some(id) == config.end_of_text_id {
            break;
        }
        ids.push(id);
        if on_token(id).is_break() {
            break;
        }
    }
    Ok(ids.split_off(prompt.len()))
}
