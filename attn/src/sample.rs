//! Printing text as it is generated.

use std::io::{self, Write};
use std::ops::ControlFlow;

use anyhow::Result;
use candle_attention::generate::{Continuation, Pipeline, SamplingOptions};

/// The line between two samples.
const SEPARATOR: &str = "---------------";

/// The temperature of the samples of a run.
pub const TEMPERATURE: f64 = 0.5;

/// The beginning of what a model says without a prompt, on one line; nothing if it says nothing or cannot.
pub fn short(pipeline: &Pipeline) -> Option<String> {
    const CHARACTERS: usize = 96;
    let mut text = String::new();
    let sampling = SamplingOptions { temperature: TEMPERATURE, ..Default::default() };
    let continuation = Continuation { max_tokens: CHARACTERS, sampling, ..Default::default() };
    let result = continuation.write(pipeline, "", &mut |piece| {
        text += &String::from_utf8_lossy(piece.text);
        if text.chars().count() < CHARACTERS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words.join(" ").chars().take(CHARACTERS).collect();
    (result.is_ok() && !line.is_empty()).then(|| format!("  > {line}"))
}

/// Writes the prompt and its continuation, token by token; further samples follow when they are complete.
pub fn write(pipeline: &Pipeline, prompt: &[u8], continuation: &Continuation, out: &mut dyn Write) -> Result<()> {
    let mut texts = vec![vec![]; continuation.samples];
    let (mut result, mut is_started): (io::Result<()>, bool) = (Ok(()), false);
    continuation.write(pipeline, prompt, &mut |piece| {
        if piece.sample == 0 && result.is_ok() {
            // A prompt that the tokenizer refuses is never written.
            let before = if is_started { &[] } else { prompt };
            is_started = true;
            result = out.write_all(before).and_then(|()| out.write_all(piece.text)).and_then(|()| out.flush());
        } else {
            texts[piece.sample].extend_from_slice(piece.text);
        }
        // Once the output is closed, all samples stop.
        if result.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    result?;
    writeln!(out)?;
    for text in &texts[1..] {
        writeln!(out, "{SEPARATOR}")?;
        out.write_all(prompt)?;
        out.write_all(text)?;
        writeln!(out)?;
    }
    Ok(())
}
