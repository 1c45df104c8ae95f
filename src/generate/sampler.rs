//! The choice of the next token.

use std::cmp::Ordering;
use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::host::{Result, bail, bail_option};

/// How the next token is chosen from the logits: the repetition penalty is applied first, then the logits are divided
/// by the temperature, then `top_k`, `top_p` and `min_p`, in this order, narrow the tokens that are sampled by their
/// probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingOptions {
    /// The divisor of the logits; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Sample only from this many likeliest tokens; 0 is all.
    pub top_k: Option<usize>,
    /// Sample only from the fewest likeliest tokens whose probabilities add up to at least this; 1 is all.
    pub top_p: Option<f64>,
    /// Sample only from the tokens at least this many times as likely as the likeliest one (Nguyen et al. 2024,
    /// arXiv:2407.01082); 0 is all.
    pub min_p: Option<f64>,
    /// The divisor of the logits of tokens that already occur in the text, or, where they are negative, their factor; 1
    /// for no penalty (Keskar et al. 2019, arXiv:1909.05858).
    pub repetition_penalty: f64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None, min_p: None, repetition_penalty: 1.0 }
    }
}

impl SamplingOptions {
    /// Refuses values out of their range.
    ///
    /// # Errors
    /// Naming the option and the values expected and got.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            bail_option!("temperature", "expected a number of at least 0, got {}", self.temperature);
        }
        if let Some(share) = self.top_p.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
            bail_option!("top-p", "expected a number above 0 and up to 1, got {share}");
        }
        if let Some(share) = self.min_p.filter(|share| !(0.0..=1.0).contains(share)) {
            bail_option!("min-p", "expected a number from 0 to 1, got {share}");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            bail_option!("repetition-penalty", "expected a number above 0, got {}", self.repetition_penalty);
        }
        Ok(())
    }

    /// The probability (V) with which each token is chosen, given the logits (V) and the ids of the text so far, prompt
    /// included.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate), and if there are no logits, none is finite, or one is NaN or positive
    /// infinity.
    pub fn probabilities(&self, logits: &[f32], text: &[u32]) -> Result<Vec<f64>> {
        self.validate()?;
        let kept = self.candidates(logits, text)?;
        let sum = kept.iter().map(|(_, weight)| weight).sum::<f64>();
        let mut probabilities = vec![0.0; logits.len()];
        for (id, weight) in kept {
            probabilities[id as usize] = weight / sum;
        }
        Ok(probabilities)
    }

    /// The tokens to sample from, with weights proportional to their probabilities. They are sorted only where the
    /// options depend on which are the likeliest.
    fn candidates(&self, logits: &[f32], text: &[u32]) -> Result<Vec<(u32, f64)>> {
        if logits.is_empty() {
            bail!("sampler: expected the logits of at least one token, got none");
        }
        // Negative infinity marks a token that cannot be chosen.
        let is_choice = logits.iter().any(|logit| logit.is_finite());
        if !is_choice || logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            bail!("sampler: expected finite logits, got {} of which some are NaN or infinite", logits.len());
        }
        let &Self { temperature, top_k, top_p, min_p, .. } = self;
        let mut all: Vec<(u32, f64)> = (0..).zip(self.penalised(logits, text)).collect();
        if temperature == 0.0 || top_k == Some(1) {
            let best = all.into_iter().min_by(by_rank);
            return Ok(best.into_iter().map(|(id, _)| (id, 1.0)).collect());
        }
        if let Some(k) = top_k.filter(|k| (1..all.len()).contains(k)) {
            all.select_nth_unstable_by(k - 1, by_rank);
            all.truncate(k);
        }
        let highest = all.iter().fold(f64::NEG_INFINITY, |max, (_, logit)| max.max(*logit));
        let top_p = top_p.filter(|p| *p < 1.0);
        match top_p {
            Some(_) => all.sort_unstable_by(by_rank),
            // By id, whatever order the selection above has left, so that a seed gives the same tokens everywhere.
            None => all.sort_unstable_by_key(|(id, _)| *id),
        }
        let weight = |(id, logit): (u32, f64)| (id, ((logit - highest) / temperature).exp());
        let mut kept: Vec<(u32, f64)> = all.into_iter().map(weight).collect();
        if let Some(p) = top_p {
            kept.truncate(nucleus(&kept, p));
        }
        // The likeliest has weight 1. Tokens of weight 0 are dropped, so that rounding in the sum can never choose one.
        kept.retain(|(_, weight)| *weight > 0.0 && min_p.is_none_or(|p| *weight >= p));
        Ok(kept)
    }

    /// The logits, lowered for ids that occur in the text.
    fn penalised(&self, logits: &[f32], text: &[u32]) -> Vec<f64> {
        let penalty = self.repetition_penalty;
        let mut lower: Vec<f64> = logits.iter().copied().map(f64::from).collect();
        if penalty != 1.0 {
            for id in text {
                // From the original logit: an id is penalised once, however often it occurs.
                if let Some(logit) = logits.get(*id as usize).copied().map(f64::from) {
                    let penalised = if logit > 0.0 { logit / penalty } else { logit * penalty };
                    // However strong the penalty, a token that could be chosen still can.
                    let is_possible = logit.is_finite();
                    lower[*id as usize] = if is_possible { penalised.clamp(f64::MIN, f64::MAX) } else { logit };
                }
            }
        }
        lower
    }
}

/// Chooses tokens. The same seed gives the same choices.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    rng: ChaCha8Rng,
    excluded: Arc<[u32]>,
}

impl Sampler {
    /// A sampler whose choices are determined by `seed` and, to draw several samples from one seed, `stream`.
    ///
    /// # Errors
    /// Those of [`SamplingOptions::validate`].
    pub fn new(options: SamplingOptions, seed: u64, stream: u64) -> Result<Self> {
        options.validate()?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Ok(Self { options, rng, excluded: Arc::default() })
    }

    /// The same sampler, but never choosing these ids.
    pub fn excluding(self, ids: impl Into<Arc<[u32]>>) -> Self {
        Self { excluded: ids.into(), ..self }
    }

    /// The id of the next token, given the logits (V) and the ids of the text so far, prompt included.
    ///
    /// # Errors
    /// If there are no logits, none that may be chosen is finite, or one is NaN or positive infinity.
    pub fn sample(&mut self, logits: &[f32], text: &[u32]) -> Result<u32> {
        let kept = match self.excluded.is_empty() {
            true => self.options.candidates(logits, text)?,
            false => self.options.candidates(&self.without_excluded(logits), text)?,
        };
        let mut left = self.rng.random::<f64>() * kept.iter().map(|(_, weight)| weight).sum::<f64>();
        for (id, weight) in &kept {
            left -= weight;
            if left < 0.0 {
                return Ok(*id);
            }
        }
        // Rounding may leave a remainder; it belongs to the last.
        Ok(kept.last().map_or(0, |(id, _)| *id))
    }

    fn without_excluded(&self, logits: &[f32]) -> Vec<f32> {
        let mut logits = logits.to_vec();
        for id in self.excluded.iter() {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        logits
    }
}

/// How many of the tokens, likeliest first, it takes to reach the share `p` of the total weight.
fn nucleus(ranked: &[(u32, f64)], p: f64) -> usize {
    let wanted = p * ranked.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut sum = 0.0;
    let is_needed = |(_, weight): &&(u32, f64)| {
        let is_needed = sum < wanted;
        sum += weight;
        is_needed
    };
    ranked.iter().take_while(is_needed).count()
}

/// Orders by descending logit, then by ascending id.
fn by_rank(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last candidate is what rounding chooses where the weights add up to less than their sum.
    #[test]
    fn a_token_of_probability_zero_is_no_candidate() {
        let logits = [0.5, f32::NEG_INFINITY, 0.5, f32::NEG_INFINITY];
        for options in [SamplingOptions::default(), SamplingOptions { top_p: Some(0.9999), ..Default::default() }] {
            assert_eq!(options.candidates(&logits, &[1]).unwrap(), [(0, 1.0), (2, 1.0)]);
        }
    }
}
