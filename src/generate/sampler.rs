//! The choice of the next token.

use std::cmp::Ordering;

use candle_core::{Result, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How the next token is chosen from the logits: repetitions are held back, then the logits are divided by the temperature,
/// then `top_k`, `top_p` and `min_p`, in this order, leave some tokens to choose among by their probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingOptions {
    /// What the logits are divided by; 0 takes the likeliest token.
    pub temperature: f64,
    /// Choose among this many likeliest tokens only.
    pub top_k: Option<usize>,
    /// Choose among the fewest likeliest tokens whose probabilities add up to at least this.
    pub top_p: Option<f64>,
    /// Choose among the tokens at least this share as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082).
    pub min_p: Option<f64>,
    /// What the logits of tokens that the text has already are divided by, or multiplied by where they are negative; 1 for
    /// nothing (Keskar et al. 2019, arXiv:1909.05858).
    pub repetition_penalty: f64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None, min_p: None, repetition_penalty: 1.0 }
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
        for (name, share) in [("top_p", self.top_p), ("min_p", self.min_p)] {
            if let Some(share) = share.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
                bail!("sampling options: expected {name} above 0 and up to 1, got {share}");
            }
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            bail!("sampling options: expected a repetition penalty above 0, got {}", self.repetition_penalty);
        }
        Ok(())
    }

    /// The probability (V) of each token to be chosen, given the logits (V) and the ids of the text so far, prompt included.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate), and if no logit is finite, or one is NaN or positive infinity.
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

    /// The tokens to choose among, with weights proportional to their probabilities. They are sorted only where the options
    /// ask which are the likeliest.
    fn candidates(&self, logits: &[f32], text: &[u32]) -> Result<Vec<(u32, f64)>> {
        // Negative infinity is a token that cannot come.
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
        if let Some(k) = top_k.filter(|k| *k < all.len()) {
            all.select_nth_unstable_by(k - 1, by_rank);
            all.truncate(k);
        }
        let highest = all.iter().fold(f64::NEG_INFINITY, |most, (_, logit)| most.max(*logit));
        let top_p = top_p.filter(|p| *p < 1.0);
        match top_p {
            Some(_) => all.sort_unstable_by(by_rank),
            // In the order of ids, whatever the selection above has left: a seed means the same everywhere.
            None => all.sort_unstable_by_key(|(id, _)| *id),
        }
        let weight = |(id, logit): (u32, f64)| (id, ((logit - highest) / temperature).exp());
        let mut kept: Vec<(u32, f64)> = all.into_iter().map(weight).collect();
        if let Some(p) = top_p {
            kept.truncate(nucleus(&kept, p));
        }
        // The likeliest has the weight 1; what cannot come is no choice, however the sum of the weights is rounded.
        kept.retain(|(_, weight)| *weight > 0.0 && min_p.is_none_or(|p| *weight >= p));
        Ok(kept)
    }

    /// The logits, lower for the ids that the text has.
    fn penalised(&self, logits: &[f32], text: &[u32]) -> Vec<f64> {
        let penalty = self.repetition_penalty;
        let mut lower: Vec<f64> = logits.iter().copied().map(f64::from).collect();
        if penalty != 1.0 {
            for id in text {
                // From the logit as it was: an id counts once, however often it stands there.
                if let Some(logit) = logits.get(*id as usize).copied().map(f64::from) {
                    let penalised = if logit > 0.0 { logit / penalty } else { logit * penalty };
                    // However strong the penalty, what could come still can.
                    let is_possible = logit.is_finite();
                    lower[*id as usize] = if is_possible { penalised.clamp(f64::MIN, f64::MAX) } else { logit };
                }
            }
        }
        lower
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

    /// The id of the next token, given the logits (V) of all and the ids of the text so far, prompt included.
    ///
    /// # Errors
    /// If no logit is finite, or one is NaN or positive infinity.
    pub fn sample(&mut self, logits: &[f32], text: &[u32]) -> Result<u32> {
        let kept = self.options.candidates(logits, text)?;
        let mut left = self.rng.random::<f64>() * kept.iter().map(|(_, weight)| weight).sum::<f64>();
        for (id, weight) in &kept {
            left -= weight;
            if left < 0.0 {
                return Ok(*id);
            }
        }
        // Rounding may leave a rest above the sum: it belongs to the last.
        Ok(kept.last().map_or(0, |(id, _)| *id))
    }
}

/// How many of the tokens, the likeliest first, have together the share `p` of the weights.
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

/// The higher logit first, of equal ones the lower id.
fn by_rank(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last of the candidates is what comes where the weights add up to less than their sum, by rounding.
    #[test]
    fn what_cannot_come_is_no_candidate() {
        let logits = [0.5, f32::NEG_INFINITY, 0.5, f32::NEG_INFINITY];
        for options in [SamplingOptions::default(), SamplingOptions { top_p: Some(0.9999), ..Default::default() }] {
            assert_eq!(options.candidates(&logits, &[1]).unwrap(), [(0, 1.0), (2, 1.0)]);
        }
    }
}
