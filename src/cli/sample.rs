//! Writing text as it is generated.

use std::io::Write;
use std::ops::ControlFlow;

use anyhow::Result;
use candle_attention::generate::Continuation;
use candle_attention::run::Run;

/// Between two samples.
const SEPARATOR: &str = "---------------";

/// Writes the prompt and its continuation: the first token by token, others, if there are any, behind it when all are done.
pub fn write(run: &Run, prompt: &str, continuation: &Continuation, out: &mut dyn Write) -> Result<()> {
    write!(out, "{prompt}")?;
    out.flush()?;
    let mut later = vec![Vec::new(); continuation.samples.saturating_sub(1)];
    let mut result = Ok(());
    continuation.write(run, prompt, &mut |sample, new| {
        if sample > 0 {
            later[sample - 1].extend_from_slice(new);
            return ControlFlow::Continue(());
        }
        result = out.write_all(new).and_then(|()| out.flush());
        if result.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    result?;
    writeln!(out)?;
    for text in later {
        write!(out, "{SEPARATOR}\n{prompt}")?;
        out.write_all(&text)?;
        writeln!(out)?;
    }
    Ok(())
}
