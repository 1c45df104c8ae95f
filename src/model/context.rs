//! Optional inputs of a forward pass: dropout and documents.

use candle_core::{Result, Tensor};

use super::config::DropoutRates;
use crate::ops::{self, DropoutOptions, RandomKey};

/// Optional inputs of a forward pass. The default is for evaluation: no dropout, and each position sees all earlier
/// ones.
#[derive(Clone, Debug, Default)]
pub struct ForwardContext {
    /// Random numbers for dropout, at the rates of the model's configuration; without them there is none.
    pub dropout: Option<DropoutSource>,
    /// The number of the document at each position, (B, T) of `u32`: a position sees only its own document.
    pub documents: Option<Tensor>,
}

/// The source of a forward pass's random numbers. What a sequence drops depends only on the seed, the step, its index
/// in the batch, the layer and the place in it, and not on shards or threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropoutSource {
    /// The seed of the run.
    pub seed: u64,
    /// The training step.
    pub step: u64,
    /// The index of the first sequence in the whole batch of the step.
    pub first_sequence: u64,
}

/// The places with dropout in a block.
const PLACES: u64 = 3;

/// The context of a forward pass, with the model's dropout rates.
pub(super) struct Pass {
    rates: DropoutRates,
    source: Option<DropoutSource>,
    documents: Option<Tensor>,
}

/// Optional inputs of a block.
#[derive(Default)]
pub(super) struct BlockPass<'a> {
    /// The number of each position's document, (B, T).
    pub(super) documents: Option<&'a Tensor>,
    pub(super) attention: Option<DropoutOptions>,
    pub(super) after_attention: Option<DropoutOptions>,
    pub(super) after_mlp: Option<DropoutOptions>,
}

impl Pass {
    pub(super) fn new(rates: DropoutRates, context: &ForwardContext) -> Self {
        Self { rates, source: context.dropout, documents: context.documents.clone() }
    }

    /// Dropout of the embeddings.
    pub(super) fn embedding(&self) -> Option<DropoutOptions> {
        self.at(0, self.rates.embedding)
    }

    /// The inputs of block `i`.
    pub(super) fn block(&self, i: usize) -> BlockPass<'_> {
        let first = 1 + PLACES * i as u64;
        BlockPass {
            documents: self.documents.as_ref(),
            attention: self.at(first, self.rates.attention),
            after_attention: self.at(first + 1, self.rates.residual),
            after_mlp: self.at(first + 2, self.rates.residual),
        }
    }

    fn at(&self, site: u64, rate: f64) -> Option<DropoutOptions> {
        let DropoutSource { seed, step, first_sequence } = self.source.filter(|_| rate > 0.0)?;
        Some(DropoutOptions { rate, key: RandomKey { seed, step, site }, first_sequence })
    }
}

/// The input after dropout, if there is any.
pub(super) fn dropped(xs: Tensor, dropout: Option<&DropoutOptions>) -> Result<Tensor> {
    match dropout {
        Some(options) => ops::dropout(&xs, options),
        None => Ok(xs),
    }
}
