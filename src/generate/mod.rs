//! Text from a model, token by token.
//!
//! [`generate`] and [`generate_side_by_side`] give ids, as a [`Sampler`] chooses them from the logits; [`Continuation`] goes from
//! a text to its continuations.

mod continuation;
mod sampler;

use std::ops::ControlFlow;

use candle_core::{DType, Result, Tensor, bail};

pub use continuation::{Continuation, Form, Piece};
pub use sampler::{Sampler, SamplingOptions};

use crate::model::CausalLm;

/// Continues `prompt` by at most `max_tokens` tokens, telling each to `on_token`, which may break off. Returns the
/// new tokens. Generation ends at an end-of-text token ([`ModelConfig::ends_text`](crate::model::ModelConfig::ends_text)), which is not returned.
///
/// Once prompt and continuation are longer than the context, a model with rotary positions sees the last `context_len` tokens, one
/// with learned positions between half and all of them: see [`Decoder`](crate::model::Decoder).
///
/// # Errors
/// If the prompt is empty, or has an id that the vocabulary lacks.
pub fn generate(
    model: &CausalLm,
    prompt: &[u32],
    max_tokens: usize,
    sampler: &mut Sampler,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>> {
    let samplers = std::slice::from_mut(sampler);
    let samples = generate_side_by_side(model, prompt, max_tokens, samplers, &mut |_, id| {
        Ok(id.map_or(ControlFlow::Break(()), &mut *on_token))
    })?;
    Ok(samples.into_iter().flatten().collect())
}

/// Continues `prompt` once for each sampler, all of them in one batch: the weights are read once a token for all. `on_token`
/// is told the number of a sample and its new token, or `None` where an end of text ends it, and may end this sample, or all
/// with an error. Otherwise as [`generate`].
///
/// # Errors
/// Those of [`generate`] and of `on_token`.
pub fn generate_side_by_side(
    model: &CausalLm,
    prompt: &[u32],
    max_tokens: usize,
    samplers: &mut [Sampler],
    on_token: &mut dyn FnMut(usize, Option<u32>) -> Result<ControlFlow<()>>,
) -> Result<Vec<Vec<u32>>> {
    check_prompt(model, prompt)?;
    let (count, config) = (samplers.len(), model.config());
    let mut texts = vec![prompt.to_vec(); count];
    let mut is_going_on = vec![true; count];
    let mut decoder = model.decoder();
    let mut unread = prompt.repeat(count);
    for _ in 0..max_tokens {
        if !is_going_on.contains(&true) {
            break;
        }
        let input = Tensor::from_vec(unread, (count, ()), model.device())?; // (B, T)
        let logits = decoder.next_token_logits(&input)?.to_dtype(DType::F32)?.to_vec2::<f32>()?; // (B, V)
        // A sample that has ended goes on being read, for all to stay of one length, but nobody hears of it.
        unread = vec![prompt[0]; count];
        for (i, sampler) in samplers.iter_mut().enumerate() {
            if !is_going_on[i] {
                continue;
            }
            let id = sampler.sample(&logits[i], &texts[i])?;
            if config.ends_text(id) {
                is_going_on[i] = false;
                let _ = on_token(i, None)?;
                continue;
            }
            texts[i].push(id);
            unread[i] = id;
            is_going_on[i] = on_token(i, Some(id))?.is_continue();
        }
    }
    Ok(texts.into_iter().map(|mut text| text.split_off(prompt.len())).collect())
}

fn check_prompt(model: &CausalLm, prompt: &[u32]) -> Result<()> {
    let vocab_size = model.config().vocab_size;
    if prompt.is_empty() {
        bail!("generate: expected a prompt of at least one token, got none");
    }
    match prompt.iter().find(|&&id| id as usize >= vocab_size) {
        Some(id) => bail!("generate: expected ids below {vocab_size}, got {id}"),
        None => Ok(()),
    }
}
