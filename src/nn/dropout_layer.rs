//! Dropout as a layer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{ModuleT, Result, Tensor};

use crate::ops::{self, DropoutOptions, RandomKey};

/// Dropout with reproducible random numbers: candle-nn's `Dropout` on [`ops::dropout`].
///
/// It counts its calls: what call `n` drops depends only on the seed and on `n`, and clones share the count. Where
/// calls may come in any order, as from the shards of a batch, use [`ops::dropout`], which takes step and sequence
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
    /// Drops elements with probability `drop_p`. The seed is 0; layers made this way differ by the order in which the
    /// program makes them.
    pub fn new(drop_p: f32) -> Self {
        static MADE: AtomicU64 = AtomicU64::new(1);
        Self { site: MADE.fetch_add(1, Ordering::Relaxed), ..Self::seeded(drop_p, 0) }
    }

    /// Drops elements with probability `drop_p`. Give each layer of a model its own seed.
    pub fn seeded(drop_p: f32, seed: u64) -> Self {
        Self { rate: drop_p.into(), seed, site: 0, calls: Arc::default() }
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
