//! What a forward pass has beside its ids: dropout and documents.

use candle_core::{Result, Tensor};

use super::config::DropoutRates;
use crate::ops::{self, DropoutOptions, Mask, RandomKey};

/// What a forward pass has beside its ids. The default is evaluation: nothing is dropped, and a position sees all before it.
#[derive(Clone, Debug, Default)]
pub struct ForwardContext {
    /// Drops at the rates of the model's configuration, by these random numbers.
    pub dropout: Option<DropoutSource>,
    /// The number of the document at each position, (B, T) of `u32`: a position sees those before it that have its own.
    pub documents: Option<Tensor>,
}

/// Where a forward pass takes its random numbers from: what a sequence drops is a function of seed, step, its number in the
/// batch, layer and place, whatever the shards and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropoutSource {
    /// The seed of the run.
    pub seed: u64,
    /// The step of training.
    pub step: u64,
    /// The number of the first sequence in the whole batch of the step.
    pub first_sequence: u64,
}

/// The places of a block where something is dropped, in the order of a pass.
const PLACES: u64 = 3;

/// The forward pass of one model: its context, with the model's rates.
pub(super) struct Pass {
    rates: DropoutRates,
    source: Option<DropoutSource>,
    mask: Option<Mask>,
}

/// What a block takes beside its input.
#[derive(Default)]
pub(super) struct BlockPass<'a> {
    pub(super) mask: Option<&'a Mask>,
    pub(super) attention: Option<DropoutOptions>,
    pub(super) after_attention: Option<DropoutOptions>,
    pub(super) after_mlp: Option<DropoutOptions>,
}

impl Pass {
    pub(super) fn new(rates: DropoutRates, context: &ForwardContext) -> Self {
        Self { rates, source: context.dropout, mask: context.documents.clone().map(Mask::Documents) }
    }

    /// What the embeddings drop.
    pub(super) fn embedding(&self) -> Option<DropoutOptions> {
        self.at(0, self.rates.embedding)
    }

    /// What block `i` is given.
    pub(super) fn block(&self, i: usize) -> BlockPass<'_> {
        let first = 1 + PLACES * i as u64;
        BlockPass {
            mask: self.mask.as_ref(),
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

/// The input, or what is left of it.
pub(super) fn dropped(xs: Tensor, dropout: Option<&DropoutOptions>) -> Result<Tensor> {
    match dropout {
        Some(options) => ops::dropout(&xs, options),
        None => Ok(xs),
    }
}
