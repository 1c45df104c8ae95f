//! Text from a model, token by token.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use candle_core::{DType, Result, Tensor, bail};
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
        if self.options.temperature == 0.0 || self.options.top_k == Some(1) {
            return Ok(likeliest(logits));
        }
        let kept = self.candidates(logits);
        let mut left = self.rng.random::<f64>() * kept.iter().map(|(_, weight)| weight).sum::<f64>();
        for (id, weight) in &kept {
            left -= weight;
            if left < 0.0 {
                return Ok(*id);
            }
        }
        // Rounding may leave a rest above the sum: it belongs to the last.
        Ok(kept.last().map_or_else(|| likeliest(logits), |(id, _)| *id))
    }

    /// The tokens to choose among, with weights proportional to their probabilities. They are sorted only where the options
    /// ask which are the likeliest.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        if let Some(k) = self.options.top_k.filter(|k| *k < all.len()) {
            all.select_nth_unstable_by(k - 1, by_rank);
            all.truncate(k);
        }
        let highest = all.iter().fold(f32::NEG_INFINITY, |most, (_, logit)| most.max(*logit));
        let weight = |logit: f32| (f64::from(logit - highest) / self.options.temperature).exp();
        let Some(p) = self.options.top_p.filter(|p| *p < 1.0) else {
            // In the order of ids, whatever the selection above has left: a seed means the same everywhere.
            all.sort_unstable_by_key(|(id, _)| *id);
            return all.into_iter().map(|(id, logit)| (id, weight(logit))).collect();
        };
        all.sort_unstable_by(by_rank);
        let nucleus = p * all.iter().map(|(_, logit)| weight(*logit)).sum::<f64>();
        let mut sum = 0.0;
        let ranked = all.into_iter().map(|(id, logit)| (id, weight(logit)));
        ranked
            .take_while(|(_, weight)| {
                let is_needed = sum < nucleus;
                sum += weight;
                is_needed
            })
            .collect()
    }
}

/// The higher logit first, of equal ones the lower id.
fn by_rank(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The first of the highest.
fn likeliest(logits: &[f32]) -> u32 {
    let best = (0..).zip(logits).fold(
        (0, f32::NEG_INFINITY),
        |best: (u32, f32), (id, logit)| {
            if *logit > best.1 { (id, *logit) } else { best }
        },
    );
    best.0
}

/// Continues `prompt` by at most `max_tokens` tokens, telling each to `on_token`, which may break off. Returns the
/// new tokens. Generation ends at the end-of-text token, which is not returned.
///
/// Once prompt and continuation are longer than the context, the model sees between half and all of the last `context_len`
/// tokens: see [`Decoder`](crate::model::Decoder).
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
    let mut decoder = model.decoder();
    let (mut ids, mut unread) = (Vec::new(), prompt.to_vec());
    for _ in 0..max_tokens {
        let input = Tensor::from_vec(unread, (1, ()), model.device())?; // (1, T)
        let logits = decoder.next_token_logits(&input)?.squeeze(0)?.to_dtype(DType::F32)?; // (V)
        let id = sampler.sample(&logits.to_vec1()?)?;
        if Some(id) == config.end_of_text_id {
            break;
        }
        ids.push(id);
        if on_token(id).is_break() {
            break;
        }
        unread = vec![id];
    }
    Ok(ids)
}
