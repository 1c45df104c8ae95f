//! Writing text as it is generated.

use std::io::{self, Write};
use std::ops::ControlFlow;

use anyhow::Result;
use candle_attention::generate::{Continuation, Piece};
use candle_attention::run::Run;

/// Between two samples.
const SEPARATOR: &str = "---------------";

/// Writes the prompt and its continuation, token by token; several one behind the other.
pub fn write(run: &Run, prompt: &str, continuation: &Continuation, out: &mut dyn Write) -> Result<()> {
    let waiting = (0..continuation.samples).map(|_| Waiting::default()).collect();
    let mut page = Page { out, prompt, waiting, shown: 0, is_begun: false };
    let mut result = Ok(());
    continuation.write(run, prompt, &mut |piece| {
        if result.is_ok() {
            result = page.take(&piece);
        }
        // All samples end where nobody reads them.
        if result.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(result?)
}

/// Samples in their order: the first that has not ended is shown as it comes, those behind it wait.
struct Page<'a> {
    out: &'a mut dyn Write,
    prompt: &'a str,
    waiting: Vec<Waiting>,
    /// The number of the one that is shown.
    shown: usize,
    /// Whether its prompt is written: a prompt that the tokenizer refuses never is.
    is_begun: bool,
}

#[derive(Default)]
struct Waiting {
    text: Vec<u8>,
    is_whole: bool,
}

impl Page<'_> {
    fn take(&mut self, piece: &Piece) -> io::Result<()> {
        let waiting = &mut self.waiting[piece.sample];
        waiting.text.extend_from_slice(piece.text);
        waiting.is_whole = piece.is_last;
        while let Some(Waiting { text, is_whole }) = self.waiting.get_mut(self.shown) {
            if !std::mem::replace(&mut self.is_begun, true) {
                write!(self.out, "{}", self.prompt)?;
            }
            self.out.write_all(text)?;
            text.clear();
            if !*is_whole {
                break;
            }
            writeln!(self.out)?;
            self.shown += 1;
            self.is_begun = false;
            if self.shown < self.waiting.len() {
                writeln!(self.out, "{SEPARATOR}")?;
            }
        }
        self.out.flush()
    }
}
