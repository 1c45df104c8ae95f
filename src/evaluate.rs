//! How well a model predicts a text.

use candle_core::{Device, Result, bail};

use crate::model::{CausalLm, ForwardContext};
use crate::ops::{self, CrossEntropyOptions};
use crate::text::Batch;

/// The mean loss over a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy, in nats a token.
    pub loss: f64,
    /// Tokens that were predicted.
    pub tokens: usize,
}

impl Evaluation {
    /// `exp(loss)`: between how many equally likely tokens the model wavers.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }

    /// The loss as [`bits_per_byte`].
    pub fn bits_per_byte(&self, tokens: usize, bytes: usize) -> f64 {
        bits_per_byte(self.loss, tokens, bytes)
    }
}

/// A loss in nats a token as bits a byte of text: the length of the text, written by the model as briefly as it can, in bits for
/// each of its bytes. It is comparable between tokenizers.
///
/// The text is `bytes` long, and makes `tokens`. Of these all count: those that were not predicted, the first of a text and
/// those behind the last whole window, with the mean of the others; and the ends of texts, which have no bytes, but are
/// to be predicted with any tokenizer.
pub fn bits_per_byte(loss: f64, tokens: usize, bytes: usize) -> f64 {
    loss / std::f64::consts::LN_2 * tokens as f64 / bytes as f64
}

/// Batches that [`evaluate`] takes at once: enough for all threads, and few enough for an iterator that is asked to stop
/// to be asked often.
pub(crate) fn side_by_side() -> usize {
    2 * rayon::current_num_threads()
}

/// The mean loss of `model`, built without a graph, over all targets of `batches`.
///
/// # Errors
/// If there is no batch, one that can't be read, or one that the model refuses.
pub fn evaluate(model: &CausalLm, batches: impl Iterator<Item = Result<Batch>>, device: &Device) -> Result<Evaluation> {
    let (mut total, mut tokens) = (0.0, 0);
    let mut batches = batches.peekable();
    while batches.peek().is_some() {
        // Side by side, each on one thread, and added in order.
        let group = batches.by_ref().take(side_by_side()).collect::<Result<Vec<Batch>>>()?;
        let losses = ops::map(group.len(), |i| {
            let (batch, options) = (&group[i], CrossEntropyOptions::default());
            let context = ForwardContext { dropout: None, documents: batch.documents_tensor(device)? };
            let (ids, targets) = (batch.inputs_tensor(device)?, batch.targets_tensor(device)?);
            let loss = model.loss_with(&ids, &targets, &options, &context)?;
            Ok(f64::from(loss.to_scalar::<f32>()?))
        });
        for (batch, loss) in group.iter().zip(losses.into_iter().collect::<Result<Vec<_>>>()?) {
            total += loss * batch.targets.len() as f64;
            tokens += batch.targets.len();
        }
    }
    if tokens == 0 {
        bail!("evaluate: expected at least one batch, got none");
    }
    Ok(Evaluation { loss: total / tokens as f64, tokens })
}
