//! Printing text as it is generated.

use std::io::{self, Write};
use std::ops::ControlFlow;

use anyhow::Result;
use candle_attention::generate::{Continuation, Piece};
use candle_attention::run::Run;

/// The line between two samples.
const SEPARATOR: &str = "---------------";

/// Writes the prompt and its continuation, token by token; several samples one after the other.
pub fn write(run: &Run, prompt: &str, continuation: &Continuation, out: &mut dyn Write) -> Result<()> {
    let pending = (0..continuation.samples).map(|_| PendingSample::default()).collect();
    let mut printer = SamplePrinter { out, prompt, pending, shown: 0, is_begun: false };
    let mut result = Ok(());
    continuation.write(run, prompt, &mut |piece| {
        if result.is_ok() {
            result = printer.take(&piece);
        }
        // Once the output is closed, all samples stop.
        if result.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(result?)
}

/// Prints samples in order: the first unfinished one as it comes, while the later ones are kept.
struct SamplePrinter<'a> {
    out: &'a mut dyn Write,
    prompt: &'a str,
    pending: Vec<PendingSample>,
    /// The index of the sample that is being shown.
    shown: usize,
    /// Whether its prompt has been written: a prompt that the tokenizer refuses never is.
    is_begun: bool,
}

/// The part of a sample that is not shown yet.
#[derive(Default)]
struct PendingSample {
    text: Vec<u8>,
    is_finished: bool,
}

impl SamplePrinter<'_> {
    fn take(&mut self, piece: &Piece) -> io::Result<()> {
        let sample = &mut self.pending[piece.sample];
        sample.text.extend_from_slice(piece.text);
        sample.is_finished = piece.is_last;
        while let Some(PendingSample { text, is_finished }) = self.pending.get_mut(self.shown) {
            if !std::mem::replace(&mut self.is_begun, true) {
                write!(self.out, "{}", self.prompt)?;
            }
            self.out.write_all(text)?;
            text.clear();
            if !*is_finished {
                break;
            }
            writeln!(self.out)?;
            self.shown += 1;
            self.is_begun = false;
            if self.shown < self.pending.len() {
                writeln!(self.out, "{SEPARATOR}")?;
            }
        }
        self.out.flush()
    }
}
