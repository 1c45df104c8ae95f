//! `attn generate --chat`: a conversation with a model.

use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;

use anyhow::{Context, Result};
use candle_attention::generate::{AnswerEnd, Chat, Continuation};

use super::terminal::note;

/// Answers `prompt`, or without one each line of standard input until its end.
pub fn run(mut chat: Chat, prompt: Option<&str>, continuation: &Continuation, out: &mut dyn Write) -> Result<()> {
    if let Some(prompt) = prompt {
        return answer(&mut chat, prompt, continuation, out);
    }
    let is_terminal = io::stdin().is_terminal();
    let mut line = String::new();
    loop {
        if is_terminal {
            write!(io::stderr(), "> ").and_then(|()| io::stderr().flush())?;
        }
        line.clear();
        if io::stdin().lock().read_line(&mut line).context("cannot read standard input")? == 0 {
            return Ok(());
        }
        let message = line.trim();
        if !message.is_empty() {
            answer(&mut chat, message, continuation, out)?;
        }
    }
}

/// Writes the answer to a message as it comes.
fn answer(chat: &mut Chat, message: &str, continuation: &Continuation, out: &mut dyn Write) -> Result<()> {
    let mut written = Ok(());
    let end = chat.answer(message, continuation, &mut |text| {
        written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        if written.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    written?;
    writeln!(out)?;
    out.flush()?;
    match end {
        AnswerEnd::MaxTokens => note(&format!("the answer was cut at --max-tokens {}", continuation.max_tokens)),
        AnswerEnd::Context => note("the answer was cut where the context is full"),
        _ => {}
    }
    Ok(())
}
