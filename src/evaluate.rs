//! How well a model predicts a text.

use candle_core::{Device, Result, bail};

use crate::model::{CausalLm, ForwardContext};
use crate::ops::{self, CrossEntropyOptions};
use crate::text::Batch;

/// The mean loss over a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy, in nats per token.
    pub loss: f64,
    /// Number of predicted tokens.
    pub tokens: usize,
}

impl Evaluation {
    /// `exp(loss)`: the number of equally likely tokens that the model is in effect choosing among.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }

    /// The loss in [`bits_per_byte`].
    pub fn bits_per_byte(&self, tokens: usize, bytes: usize) -> f64 {
        bits_per_byte(self.loss, tokens, bytes)
    }
}

/// Converts a loss in nats per token to bits per byte: the length in bits to which the model could compress the text,
/// for each of its bytes. Unlike the loss, it is comparable between tokenizers.
///
/// The text has `bytes` bytes and `tokens` tokens, all of which count. The few that are not predicted (the first of a
/// text and those after the last whole window) count with the mean of the others, as do end-of-text tokens: they have
/// no bytes, but have to be predicted whatever the tokenizer.
pub fn bits_per_byte(loss: f64, tokens: usize, bytes: usize) -> f64 {
    loss / std::f64::consts::LN_2 * tokens as f64 / bytes as f64
}

/// How many batches [`evaluate`] takes at once: enough for all threads, and few enough that an iterator which may stop
/// is asked often.
pub(crate) fn side_by_side() -> usize {
    2 * rayon::current_num_threads()
}

/// The mean loss of `model`, which should be built without a graph, over all targets of `batches`.
///
/// # Errors
/// If there is no batch, or one cannot be read or does not fit the model.
pub fn evaluate(model: &CausalLm, batches: impl Iterator<Item = Result<Batch>>, device: &Device) -> Result<Evaluation> {
    let (mut total, mut tokens) = (0.0, 0);
    let mut batches = batches.peekable();
    while batches.peek().is_some() {
        // Side by side, each on one thread, then added in order.
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
