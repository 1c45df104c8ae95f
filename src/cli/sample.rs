//! Writing text as it is generated.

use std::io::Write;
use std::ops::ControlFlow;

use anyhow::{Context, Result, bail};
use candle_attention::generate::{Sampler, generate};
use candle_attention::model::CausalLm;
use candle_attention::run::Run;
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

/// In what form a continuation is written.
#[derive(Clone, Copy, PartialEq)]
pub enum Form {
    /// Text: a character that may still be unfinished waits, and bytes that are none are replaced.
    Text,
    /// The bytes as they are, which a model of bytes makes and which need not be text.
    Bytes,
}

/// Writes the prompt and, token by token, its continuation.
pub fn write(
    run: &Run,
    prompt: &str,
    max_tokens: usize,
    sampler: &mut Sampler,
    form: Form,
    out: &mut dyn Write,
) -> Result<()> {
    let Run { model, tokenizer } = run;
    let ids = prompt_ids(model, tokenizer, prompt)?;
    write!(out, "{prompt}")?;
    let (mut stream, mut result) = (tokenizer.stream(), Ok(()));
    generate(model, &ids, max_tokens, sampler, &mut |id| {
        let new = match form {
            Form::Text => stream.push(id).map(String::into_bytes),
            Form::Bytes => tokenizer.decode_bytes(&[id]),
        };
        result = new.map_err(Into::into).and_then(|new| show(&new, out));
        if result.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    result?;
    // What was held back as an unfinished character is shown as it is.
    Ok(writeln!(out, "{}", stream.finish()?)?)
}

fn show(new: &[u8], out: &mut dyn Write) -> Result<()> {
    if !new.is_empty() {
        out.write_all(new)?;
        out.flush()?;
    }
    Ok(())
}
