//! The loss of a model: of a batch, in training and in evaluation, and of a whole text.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};

use crate::cpu::parallel::{map, threads};
use crate::host::{Result, bail};
use crate::model::{CausalLm, DropoutSource, ForwardContext};
use crate::ops::CrossEntropyOptions;
use crate::processes::{Alone, Processes, gather_numbers};
use crate::text::{Batch, Ids, windows};

/// Tokens in a batch of an evaluation: enough for large matrix products, few enough to need little memory.
pub(super) const VALIDATION_BATCH_TOKENS: usize = 4096;

/// The loss of a batch, in nats per token that counts: a scalar.
pub(super) fn loss(
    model: &CausalLm,
    batch: &Batch,
    dropout: Option<DropoutSource>,
    options: &CrossEntropyOptions,
) -> candle_core::Result<Tensor> {
    let context = ForwardContext { dropout, documents: batch.documents.clone() };
    let options = CrossEntropyOptions { ignore_index: Some(Batch::IGNORED.into()), ..*options };
    model.loss_with(&batch.inputs, &batch.targets, &options, &context)
}

/// The mean loss over a text.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Evaluation {
    /// Mean cross-entropy, in nats per token.
    pub loss: f64,
    /// Number of predicted tokens, in conversations those of the assistant's turns.
    pub tokens: usize,
}

impl Evaluation {
    /// `exp(loss)`: the number of equally likely tokens that the model is in effect choosing among.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }

    /// The mean over several texts.
    pub fn mean(all: &[Self]) -> Self {
        let tokens = all.iter().map(|one| one.tokens).sum::<usize>();
        let nats: f64 = all.iter().map(|one| one.loss * one.tokens as f64).sum();
        Self { loss: nats / tokens as f64, tokens }
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

/// The mean loss of `model`, which should be built without a graph, over the non-overlapping windows of `ids`: all that
/// have its context's length and, unless `drop_last`, a shorter last one. `on_batch` is told, before each batch, how
/// many of how many tokens are done or in progress, and may break off: then there is no result. In conversations the mean
/// is over what the assistant says.
///
/// With a `separator`, the id that ends each document, documents are isolated.
///
/// # Errors
/// If there are too few ids, or they cannot be read or do not fit the model.
pub fn evaluate(
    model: &CausalLm,
    ids: &Ids,
    drop_last: bool,
    separator: Option<u32>,
    on_batch: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Option<Evaluation>> {
    evaluate_windows(model, ids, (model.config().context_len, drop_last), separator, &Alone, on_batch)
}

/// [`evaluate`] with windows of `context_len` tokens, of which a shorter last one is left out with `drop_last`. Several processes
/// take turns, batch by batch, and then `on_batch` cannot break off.
pub(super) fn evaluate_windows(
    model: &CausalLm,
    ids: &Ids,
    (context_len, drop_last): (usize, bool),
    separator: Option<u32>,
    processes: &dyn Processes,
    on_batch: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Option<Evaluation>> {
    let device: &Device = model.device();
    let batch_size = (VALIDATION_BATCH_TOKENS / context_len).max(1);
    let mut batches = windows(ids, (batch_size, context_len), drop_last, separator, device)?.enumerate().peekable();
    let total = if drop_last { (ids.len() - 1) / context_len * context_len } else { ids.len() - 1 };
    let (mut own, mut done) = (vec![], 0);
    while batches.peek().is_some() {
        // Side by side, each on one thread.
        let mut group: Vec<Batch> = vec![];
        while group.len() < 2 * threads()
            && let Some((i, batch)) = batches.next()
        {
            let batch = batch?;
            done += batch.tokens();
            if i % processes.count() != processes.rank() {
                continue;
            }
            if on_batch(done, total).is_break() && processes.count() == 1 {
                return Ok(None);
            }
            group.push(batch);
        }
        let losses = map(group.len(), |i| {
            let loss = loss(model, &group[i], None, &CrossEntropyOptions::default())?;
            let learned = group[i].learned()?;
            Ok([f64::from(loss.to_scalar::<f32>()?) * learned as f64, learned as f64])
        });
        own.extend(losses.into_iter().collect::<Result<Vec<_>>>()?);
    }
    let [nats, tokens] = in_order(&own, processes)?;
    if tokens == 0.0 {
        bail!("evaluate: expected a token that counts, as in an assistant's turn, got none");
    }
    Ok(Some(Evaluation { loss: nats / tokens, tokens: tokens as usize }))
}

/// The sums of the nats and tokens of all batches, in their order: of this process and of the others.
fn in_order(own: &[[f64; 2]], processes: &dyn Processes) -> Result<[f64; 2]> {
    let all = gather_numbers(processes, own.as_flattened())?;
    let mut sums = [0.0; 2];
    // A turn of the processes, of which the last may not be whole.
    for turn in 0..all[0].len() / 2 {
        for batch in all.iter().filter_map(|all| all.as_chunks::<2>().0.get(turn)) {
            sums.iter_mut().zip(batch).for_each(|(sum, number)| *sum += number);
        }
    }
    Ok(sums)
}
