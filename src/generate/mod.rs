//! Text from a model, token by token.
//!
//! [`Continuation`] goes from a text to its continuations. Below it, [`generate`] and [`generate_side_by_side`] work on
//! ids, which a [`Sampler`] chooses from the logits. Above it, [`Chat`] keeps a conversation.

mod chat;
mod continuation;
mod defaults;
mod export;
mod pipeline;
mod sampler;

use std::ops::ControlFlow;

use candle_core::{DType, Tensor};

pub use chat::{AnswerEnd, Chat};
pub use continuation::{Continuation, OutputForm, Piece};
pub use defaults::GenerationDefaults;
pub use export::{export_folder, export_gguf};
pub use pipeline::Pipeline;
pub use sampler::{Sampler, SamplingOptions};

use crate::host::{Result, bail, memory};
use crate::model::{CausalLm, Decoder};

/// Continues `prompt` by at most `max_tokens` tokens, passing each to `on_token`, which may stop it. Returns the new
/// tokens. Generation ends at an end-of-text token ([`ModelConfig::ends_text`](crate::model::ModelConfig::ends_text)),
/// which is not returned.
///
/// Once prompt and continuation are longer than the context, a model with rotary positions sees the last `context_len`
/// tokens, and one with learned positions between half of them and all: see [`Decoder`].
///
/// # Errors
/// If the prompt is empty or has an id outside the vocabulary, or memory cannot hold the keys and values of the text.
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

/// Continues `prompt` once for each sampler, all in one batch, so that each step reads the weights once for all of
/// them. `on_token` gets the index of a sample and its new token, or `None` where an end of text ends the sample; it
/// may stop this sample, or all of them with an error. Otherwise as [`generate`].
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
    let mut decoder = model.decoder();
    check_memory(&decoder, count, prompt.len(), max_tokens)?;
    let mut texts = vec![prompt.to_vec(); count];
    let mut is_running = vec![true; count];
    let mut unread = prompt.repeat(count);
    for _ in 0..max_tokens {
        if !is_running.contains(&true) {
            break;
        }
        let input = Tensor::from_vec(unread, (count, ()), model.device())?; // (B, T)
        let logits = decoder.next_token_logits(&input)?.to_dtype(DType::F32)?.to_vec2::<f32>()?; // (B, V)
        // A sample that has ended is still read, so that all stay of one length, but nothing of it is passed on.
        unread = vec![prompt[0]; count];
        for (i, sampler) in samplers.iter_mut().enumerate() {
            if !is_running[i] {
                continue;
            }
            let id = sampler.sample(&logits[i], &texts[i])?;
            if config.ends_text(id) {
                is_running[i] = false;
                let _ = on_token(i, None)?;
                continue;
            }
            texts[i].push(id);
            unread[i] = id;
            is_running[i] = on_token(i, Some(id))?.is_continue();
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

/// Refuses more samples of a prompt, or longer ones, than memory can hold.
fn check_memory(decoder: &Decoder, count: usize, prompt_len: usize, max_tokens: usize) -> Result<()> {
    // The prompt's ids twice: as the texts so far and as what is to be read.
    let ids = memory::tensor_bytes(&[2, count, prompt_len], size_of::<u32>());
    memory::check(&format!("generate: {count} samples of a prompt of {prompt_len} tokens"), ids)?;
    // The last token is not read.
    decoder.check_room(count, prompt_len, prompt_len.saturating_add(max_tokens.saturating_sub(1)))
}
