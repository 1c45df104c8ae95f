//! Counter-based random numbers: what is dropped is a function of a key and a place, not of the order of calls.
//!
//! They come from ChaCha with 8 rounds. A key selects a family of 2^64 streams, and any word of a stream can be
//! computed directly. So backward can draw again what forward drew, and threads and shards draw what the whole batch
//! would.

use candle_core::{Result, bail};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::simd::dispatch;

/// The key of a family of random streams: equal keys give equal numbers, different keys independent ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RandomKey {
    /// The seed of the run.
    pub seed: u64,
    /// The training step.
    pub step: u64,
    /// The place in the model: one number for each dropout of each layer.
    pub site: u64,
}

/// What to drop; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DropoutOptions {
    /// The probability that an element becomes 0, from 0 to below 1. The others are divided by `1 - rate`.
    pub rate: f64,
    /// The key of the random numbers.
    pub key: RandomKey,
    /// The index in the whole batch of the tensor's first sequence, so that the shards of a batch drop what the whole
    /// would.
    pub first_sequence: u64,
}

impl DropoutOptions {
    /// The source of the factors on elements.
    ///
    /// # Errors
    /// If the rate is not from 0 to below 1.
    pub(crate) fn factors(&self) -> Result<DropoutFactors> {
        let &Self { rate, key: RandomKey { seed, step, site }, .. } = self;
        if !(0.0..1.0).contains(&rate) {
            bail!("dropout: expected a rate from 0 to below 1, got {rate}");
        }
        let mut bytes = [0; 32];
        for (bytes, number) in bytes.chunks_exact_mut(8).zip([seed, step, site]) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        Ok(DropoutFactors {
            rng: ChaCha8Rng::from_seed(bytes),
            dropped_below: (rate * 2f64.powi(32)) as u32,
            kept: (1.0 / (1.0 - rate)) as f32,
        })
    }
}

/// The factors on elements: 0, or `1 / (1 - rate)`.
#[derive(Clone, Debug)]
pub(crate) struct DropoutFactors {
    /// At the start of its first stream.
    rng: ChaCha8Rng,
    dropped_below: u32,
    kept: f32,
}

impl DropoutFactors {
    /// Writes the factors of the elements from `first` on of a stream, each from one 32-bit word.
    pub(crate) fn fill(&self, stream: u64, first: u64, out: &mut [f32]) {
        /// Drawn at once: a few blocks of the generator.
        const WORDS: usize = 256;
        let mut rng = self.rng.clone();
        rng.set_stream(stream);
        rng.set_word_pos(first.into());
        let mut words = [0; 4 * WORDS];
        for out in out.chunks_mut(WORDS) {
            let words = &mut words[..4 * out.len()];
            rng.fill_bytes(words);
            let (words, _) = words.as_chunks();
            self.factors_of(words, out);
        }
    }

    fn factors_of(&self, words: &[[u8; 4]], out: &mut [f32]) {
        let &Self { dropped_below, kept, .. } = self;
        dispatch(
            #[inline(always)]
            || {
                for (factor, word) in out.iter_mut().zip(words) {
                    *factor = if u32::from_le_bytes(*word) >= dropped_below { kept } else { 0.0 };
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(options: &DropoutOptions, stream: u64, first: u64, n: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; n];
        options.factors().unwrap().fill(stream, first, &mut out);
        out
    }

    #[test]
    fn pieces_are_those_of_the_whole() {
        let options = DropoutOptions { rate: 0.3, ..Default::default() };
        for far in [0, (7 << 32) - 5] {
            let whole = drawn(&options, 3, far, 1009);
            for (first, n) in [(0, 1), (1, 67), (17, 500), (64, 300), (255, 754), (1008, 1)] {
                assert_eq!(drawn(&options, 3, far + first as u64, n), whole[first..first + n], "{n} from {first}");
            }
        }
    }

    #[test]
    fn the_share_that_is_kept_is_right_and_the_mean_is_1() {
        for rate in [0.0, 0.1, 0.5, 0.9] {
            let n = 1 << 20;
            let factors = drawn(&DropoutOptions { rate, ..Default::default() }, 5, 0, n);
            let kept = (1.0 / (1.0 - rate)) as f32;
            assert!(factors.iter().all(|factor| *factor == 0.0 || *factor == kept));
            let share = factors.iter().filter(|factor| **factor == kept).count() as f64 / n as f64;
            // Five standard deviations of a share of n draws.
            let allowed = 5.0 * (rate * (1.0 - rate) / n as f64).sqrt();
            assert!((share - (1.0 - rate)).abs() <= allowed, "rate {rate}: kept {share}");
        }
    }

    /// At a rate of 1/2, the factors of two independent streams agree in half of all places.
    #[test]
    fn keys_and_streams_are_independent() {
        let n = 1 << 16;
        let of = |seed, step, site, stream| {
            drawn(&DropoutOptions { rate: 0.5, key: RandomKey { seed, step, site }, first_sequence: 0 }, stream, 0, n)
        };
        let all = [of(1, 2, 3, 4), of(2, 2, 3, 4), of(1, 3, 3, 4), of(1, 2, 4, 4), of(1, 2, 3, 5), of(2, 1, 3, 4)];
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                let same = a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / n as f64;
                assert!((same - 0.5).abs() < 5.0 * (0.25 / n as f64).sqrt(), "{i}: {same}");
            }
        }
        assert_eq!(all[0], of(1, 2, 3, 4));
    }

    #[test]
    fn an_invalid_rate_is_named() {
        for rate in [-0.1, 1.0, f64::NAN, f64::INFINITY] {
            let error = DropoutOptions { rate, ..Default::default() }.factors().unwrap_err().to_string();
            assert!(error.contains(&format!("dropout: expected a rate from 0 to below 1, got {rate}")), "{error}");
        }
        // The highest rate below 1 keeps one word of 2^32.
        let rate = 1.0 - f64::EPSILON / 2.0;
        assert_eq!(DropoutOptions { rate, ..Default::default() }.factors().unwrap().dropped_below, u32::MAX);
    }
}
