//! Writing text as it is generated.

use std::io::Write;
use std::ops::ControlFlow;

use anyhow::{Context, Result, bail};
use candle_attention::generate::{Sampler, generate};
use candle_attention::model::CausalLm;
use candle_attention::text::Tokenizer;

/// The ids to start from: those of `prompt`; without one, the end-of-text token, else a line break, else the first id.
fn prompt_ids(model: &CausalLm, tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>> {
    if !prompt.is_empty() {
        let ids = tokenizer.encode(prompt).context("the prompt")?;
        if ids.is_empty() {
            bail!("the prompt: the tokenizer makes nothing of it");
        }
        return Ok(ids);
    }
    let line_break = || tokenizer.encode("\n").ok().filter(|ids| !ids.is_empty());
    Ok(model.config().end_of_text_id.map(|id| vec![id]).or_else(line_break).unwrap_or_else(|| vec![0]))
}

/// Writes the prompt and, token by token, its continuation.
pub fn write(
    model: &CausalLm,
    tokenizer: &Tokenizer,
    prompt: &str,
    max_tokens: usize,
    sampler: &mut Sampler,
    out: &mut dyn Write,
) -> Result<()> {
    let ids = prompt_ids(model, tokenizer, prompt)?;
    write!(out, "{prompt}")?;
    let mut new = Vec::new();
    let mut shown = 0;
    let mut failed = None;
    generate(model, &ids, max_tokens, sampler, &mut |id| {
        new.push(id);
        match show(tokenizer, &new, shown, out) {
            Ok(bytes) => shown = bytes,
            Err(error) => failed = Some(error),
        }
        if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    // What was held back as an unfinished character is shown as it is.
    let text = tokenizer.decode(&new)?;
    writeln!(out, "{}", text.get(shown..).unwrap_or_default())?;
    Ok(())
}

/// As [`write()`], byte by byte: what a model of bytes makes need not be text.
pub fn write_bytes(
    model: &CausalLm,
    tokenizer: &Tokenizer,
    prompt: &str,
    max_tokens: usize,
    sampler: &mut Sampler,
    out: &mut dyn Write,
) -> Result<()> {
    let ids = prompt_ids(model, tokenizer, prompt)?;
    write!(out, "{prompt}")?;
    let mut result = Ok(());
    generate(model, &ids, max_tokens, sampler, &mut |id| {
        result =
            tokenizer.decode_bytes(&[id]).map_err(anyhow::Error::from).and_then(|bytes| Ok(out.write_all(&bytes)?));
        if result.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    result?;
    Ok(writeln!(out)?)
}

/// Writes the text of `ids` past the first `shown` bytes, but not a character that may still be unfinished. Returns
/// how many bytes have been shown.
fn show(tokenizer: &Tokenizer, ids: &[u32], shown: usize, out: &mut dyn Write) -> Result<usize> {
    let text = tokenizer.decode(ids)?;
    let finished = text.trim_end_matches(char::REPLACEMENT_CHARACTER).len();
    if finished <= shown || !text.is_char_boundary(shown) {
        return Ok(shown);
    }
    write!(out, "{}", &text[shown..finished])?;
    out.flush()?;
    Ok(finished)
}
