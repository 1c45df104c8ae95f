//! Dropout as a layer.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{ModuleT, Result, Tensor};

use crate::ops::{self, DropoutOptions, RandomKey};

/// Dropout with reproducible random numbers: candle-nn's `Dropout` on [`ops::dropout`].
///
/// It counts its calls in training: what call `n` drops depends only on the seed and on `n`, and clones share the count.
/// A run that is resumed continues exactly if [`Dropout::calls`] is saved with it and given to [`Dropout::set_calls`].
/// Where calls may come in any order, as from the shards of a batch, use [`ops::dropout`], which takes step and sequence
/// numbers instead.
///
/// ```
/// use candle_attention::nn::Dropout;
/// use candle_core::{DType, Device, Tensor};
///
/// let xs = Tensor::ones((3, 100), DType::F32, &Device::Cpu)?;
/// let drawn = |dropout: &Dropout| dropout.forward(&xs, true)?.to_vec2::<f32>();
/// let (one, other) = (Dropout::seeded(0.5, 7), Dropout::seeded(0.5, 7));
/// let first = drawn(&one)?;
/// assert_ne!(first, drawn(&one)?);
/// assert_eq!(first, drawn(&other)?);
///
/// let resumed = Dropout::seeded(0.5, 7);
/// resumed.set_calls(one.calls());
/// assert_eq!(drawn(&one)?, drawn(&resumed)?);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Dropout {
    rate: f64,
    seed: u64,
    site: u64,
    calls: Arc<AtomicU64>,
}

impl Dropout {
    /// Drops elements with probability `drop_p`. Like candle-nn's, it is not reproducible: each layer made this way draws
    /// a seed of its own from the system.
    pub fn new(drop_p: f32) -> Self {
        // The only random numbers of the standard library.
        Self::seeded(drop_p, RandomState::new().build_hasher().finish())
    }

    /// Drops elements with probability `drop_p`. Give each layer of a model its own seed.
    pub fn seeded(drop_p: f32, seed: u64) -> Self {
        Self::at(drop_p, seed, 0)
    }

    /// One of many layers of one seed, told apart by `site`.
    pub(crate) fn at(drop_p: f32, seed: u64, site: u64) -> Self {
        Self { rate: drop_p.into(), seed, site, calls: Arc::default() }
    }

    /// The number of calls in training so far, those of clones included.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Continues as after `calls` calls in training; so do clones.
    pub fn set_calls(&self, calls: u64) {
        self.calls.store(calls, Ordering::Relaxed);
    }

    /// In training, sets some elements to 0 and divides the others by `1 - drop_p`; otherwise returns the input.
    ///
    /// # Errors
    /// In training, those of [`ops::dropout`]: `drop_p` is not from 0 to below 1.
    pub fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        match self.next_call(train) {
            Some(options) => ops::dropout(xs, &options),
            None => Ok(xs.clone()),
        }
    }

    /// What the next call drops, if anything. Counts as a call.
    pub(crate) fn next_call(&self, train: bool) -> Option<DropoutOptions> {
        let &Self { rate, seed, site, .. } = self;
        (train && rate != 0.0).then(|| DropoutOptions {
            rate,
            key: RandomKey { seed, step: self.calls.fetch_add(1, Ordering::Relaxed), site },
            first_sequence: 0,
        })
    }
}

impl ModuleT for Dropout {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(xs, train)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn layers_of_one_seed_differ_by_site_and_those_without_one_always() {
        let xs = Tensor::ones((3, 100), DType::F32, &Device::Cpu).unwrap();
        let drawn = |dropout: Dropout| dropout.forward(&xs, true).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(drawn(Dropout::at(0.5, 7, 3)), drawn(Dropout::at(0.5, 7, 3)));
        assert_ne!(drawn(Dropout::at(0.5, 7, 3)), drawn(Dropout::at(0.5, 7, 4)));
        // The same by chance once in 2^300.
        assert_ne!(drawn(Dropout::new(0.5)), drawn(Dropout::new(0.5)));
    }
}
